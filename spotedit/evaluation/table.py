"""Show the figures of a run as markdown, with the columns of the paper's Table 1."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from .data import NO_MASK, DataSet
from .edits import MODES
from .fair import check_fair
from .metrics import NAMES
from .score import Rows
from .store import Row

_COLUMNS = {"CLIP": "clip", "SSIM": "ssim", "PSNR": "psnr", "DISTS": "dists"}
_DETAILS = tuple(name for name in NAMES if name not in _COLUMNS.values())
_NO_SCORES = "no scores"
_SHOWN_PROBLEMS = 10
Values = Sequence[float | str]


def table(
    data: DataSet,
    rows: Rows,
    metrics: Rows,
    scores: Mapping[tuple[str, str], float],
    absent: Mapping[str, str],
    more_problems: Sequence[str] = (),
) -> str:
    """Return the means over the pictures that have both a dense and a spot edit.

    Args:
        rows, metrics, scores: rows and scores by (key, mode), see `run` and `score`.
        absent: for each metric that this machine cannot measure, the reason.
        more_problems: further lines for the list of problems.

    Raises:
        Unfair: the rows were not made the same way.
    """
    keys = [item.key for item in data.items]
    edits = [rows[key, mode] for key in keys for mode in MODES if (key, mode) in rows]
    check_fair(edits)
    finished = {(row["key"], row["mode"]) for row in edits if "problem" not in row}
    pairs = [key for key in keys if all((key, mode) in finished for mode in MODES)]
    lines = [f"# {data.name}", ""]
    if pairs:
        settings = rows[pairs[0], "spot"]["settings"]
        lines += [_settings(settings), ""]
        lines += _overview(pairs, rows, metrics, scores, settings["pipeline"])
        lines += ["", *_details(pairs, metrics), ""]
        lines += [*_categories(pairs, rows, metrics, scores), ""]
    lines += [f"- {note}" for note in _notes(data, edits, pairs, absent)]
    problems = [f"{key}: {problem}" for key, problem in data.problems]
    refused = [row for row in edits if "problem" in row]
    problems += [f"{row['key']}, {row['mode']}: {row['problem']}" for row in refused]
    return "\n".join([*lines, *_listed([*problems, *more_problems]), ""])


def _settings(settings: Mapping[str, object]) -> str:
    left_out = ("data", "versions", "config")
    shown = [
        f"{name} {value}"
        for name, value in settings.items()
        if name not in left_out and value is not None
    ]
    return f"Same loop in both rows: {', '.join(shown)}."


def _overview(
    pairs: Sequence[str],
    rows: Rows,
    metrics: Rows,
    scores: Mapping[tuple[str, str], float],
    pipeline: str,
) -> list[str]:
    names = {"dense": f"{pipeline}, dense", "spot": "SpotEdit (spotedit)"}
    cells = [["method", "speed-up", *_COLUMNS, "VL score"]]
    for mode in MODES:
        figures = [_cell(_values(pairs, mode, metrics, name)) for name in _COLUMNS.values()]
        judged = _cell([scores.get((key, mode), _NO_SCORES) for key in pairs])
        cells.append([names[mode], _speedup(pairs, rows, mode), *figures, judged])
    ratios = [rows[key, "spot"]["r"] for key in pairs]
    note = f"{len(pairs)} pictures; r = {fmean(ratios):.1%} of the tokens in a spot step (mean)."
    return [*_markdown(cells), "", note]


def _details(pairs: Sequence[str], metrics: Rows) -> list[str]:
    cells = [["metric", *MODES]]
    for name in _DETAILS:
        cells.append([name, *(_cell(_values(pairs, mode, metrics, name)) for mode in MODES)])
    return _markdown(cells)


def _categories(
    pairs: Sequence[str], rows: Rows, metrics: Rows, scores: Mapping[tuple[str, str], float]
) -> list[str]:
    """Return a line for each of the benchmark's kinds of edit."""
    cells = [["category", "pictures", "speed-up", "r"]]
    cells[0] += [f"{name}, {mode}" for name in ("PSNR", "VL score") for mode in MODES]
    for category in sorted({rows[key, "spot"]["category"] for key in pairs}):
        keys = [key for key in pairs if rows[key, "spot"]["category"] == category]
        ratio = f"{fmean(rows[key, 'spot']['r'] for key in keys):.1%}"
        psnr = [_cell(_values(keys, mode, metrics, "psnr")) for mode in MODES]
        judged = [_cell([scores.get((key, mode), _NO_SCORES) for key in keys]) for mode in MODES]
        speedup = _speedup(keys, rows, "spot")
        cells.append([category, str(len(keys)), speedup, ratio, *psnr, *judged])
    return _markdown(cells)


def _speedup(pairs: Sequence[str], rows: Rows, mode: str) -> str:
    dense, seconds = (sum(rows[key, m]["seconds"] for key in pairs) for m in ("dense", mode))
    return f"{dense / seconds:.2f}"


def _values(pairs: Sequence[str], mode: str, metrics: Rows, name: str) -> Values:
    empty: Row = {"values": {}}
    return [metrics.get((key, mode), empty)["values"].get(name, "not measured") for key in pairs]


def _cell(values: Values) -> str:
    """Return the mean of the figures; if some pictures have none, also how many and why."""
    figures = [value for value in values if not isinstance(value, str)]
    reasons = Counter(value for value in values if isinstance(value, str))
    if not figures:
        return ", ".join(reasons)
    mean = f"{fmean(figures):.4g}"
    missing = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{mean} (n = {len(figures)}; {missing})" if reasons else mean


def _notes(
    data: DataSet, edits: Sequence[Row], pairs: Sequence[str], absent: Mapping[str, str]
) -> list[str]:
    notes = [
        f"{len(data.items)} pictures to edit, {len(pairs)} with both edits; {len(data.problems)} "
        f"rows of the data set skipped, {sum('problem' in row for row in edits)} edits refused",
        "quality is measured against the source, at its size; `_part` as in PIE-Bench",
    ]
    mask_problems = Counter(item.mask_problem for item in data.items)
    notes += [
        f"{problem}, {count} times: the empty part is not measured"
        for problem, count in mask_problems.items()
        if problem not in (None, NO_MASK)
    ]
    moved = Counter(row["moved"] for row in edits if row.get("moved"))
    notes += [
        f"whole-frame {kind}, {count} times: no token could be reused"
        for kind, count in moved.items()
    ]
    notes += [f"not measured: {name} ({reason})" for name, reason in absent.items()]
    return notes


def _listed(problems: Sequence[str]) -> list[str]:
    hidden = len(problems) - _SHOWN_PROBLEMS
    lines = [f"- problem: {problem}" for problem in problems[:_SHOWN_PROBLEMS]]
    return [*lines, f"- and {hidden} more problems"] if hidden > 0 else lines


def _markdown(cells: Sequence[Sequence[str]]) -> list[str]:
    rows = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return [f"| {' | '.join(row)} |" for row in rows]
