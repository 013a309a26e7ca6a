"""Show the figures of a run as markdown, with the columns of the paper's Table 1."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from .data import NO_MASK, DataSet
from .edits import DENSE, SPOT
from .fair import check_fair
from .metrics import NAMES
from .score import Rows
from .store import Row
from .variants import described

_COLUMNS = {"CLIP": "clip", "SSIM": "ssim", "PSNR": "psnr", "DISTS": "dists"}
_DETAILS = tuple(name for name in NAMES if name not in _COLUMNS.values())
_NO_SCORES = "no scores"
_SHOWN_PROBLEMS = 10
_FEW = 10  # pictures; with fewer, the normal approximation of an interval is too narrow
_NORMAL_95 = 1.96  # standard errors to each side of a mean
Values = Sequence[float | str]


def modes_of(rows: Rows) -> list[str]:
    """Return the modes that rows have, "dense" first and the others by the time of their rows."""
    return list(dict.fromkeys([DENSE, *(mode for _, mode in rows)]))


def table(
    data: DataSet,
    rows: Rows,
    metrics: Rows,
    scores: Mapping[tuple[str, str], float],
    absent: Mapping[str, str],
    modes: Sequence[str],
    more_problems: Sequence[str] = (),
) -> str:
    """Return the means over the pictures that have an edit in every mode.

    A mode without any edit is left out.

    Args:
        rows, metrics, scores: rows and scores by (key, mode), see `run` and `score`.
        absent: for each metric that this machine cannot measure, the reason.
        modes: the modes to compare, "dense" first.
        more_problems: further lines for the list of problems.

    Raises:
        Unfair: the rows were not made the same way.
    """
    keys = [item.key for item in data.items]
    edits = [rows[key, mode] for key in keys for mode in modes if (key, mode) in rows]
    check_fair(edits)
    finished = {(row["key"], row["mode"]) for row in edits if "problem" not in row}
    empty = [mode for mode in modes if not any((key, mode) in finished for key in keys)]
    modes = [mode for mode in modes if mode not in empty]
    can_compare = modes[:1] == [DENSE] and len(modes) > 1
    complete = [key for key in keys if all((key, mode) in finished for mode in modes)]
    complete = complete if can_compare else []
    figures = Figures(complete, modes, rows, metrics, scores)
    lines = [f"# {data.name}", "", *(_tables(figures) if complete else [])]
    lines += [f"- {note}" for note in _notes(data, edits, complete, absent)]
    lines += [f"- {mode}: no picture is finished" for mode in empty]
    problems = [f"{key}: {problem}" for key, problem in data.problems]
    refused = [row for row in edits if "problem" in row]
    problems += [f"{row['key']}, {row['mode']}: {row['problem']}" for row in refused]
    return "\n".join([*lines, *_listed([*problems, *more_problems]), ""])


@dataclass(frozen=True)
class Figures:
    """The figures of some pictures, each of which has an edit in every mode.

    Attributes:
        keys: the pictures.
        modes: the modes, "dense" first.
        rows, metrics, scores: rows and scores by (key, mode).
    """

    keys: Sequence[str]
    modes: Sequence[str]
    rows: Rows
    metrics: Rows
    scores: Mapping[tuple[str, str], float]

    def of_edits(self, mode: str, name: str) -> list[Any]:
        """Return a field of the edits' rows; None where a row is older than the field."""
        return [self.rows[key, mode].get(name) for key in self.keys]

    def measured(self, mode: str, name: str) -> Values:
        """Return a metric, with the reason in place of a missing figure."""
        empty: Row = {"values": {}}
        values = [self.metrics.get((key, mode), empty)["values"] for key in self.keys]
        return [found.get(name, "not measured") for found in values]

    def differences(self, mode: str, name: str) -> list[float]:
        """Return a metric minus that of the dense edit, for the pictures that have both."""
        pairs = zip(self.measured(mode, name), self.measured(DENSE, name), strict=True)
        return [a - b for a, b in pairs if not isinstance(a, str) and not isinstance(b, str)]

    def judged(self, mode: str) -> Values:
        """Return the scores of the external rater."""
        return [self.scores.get((key, mode), _NO_SCORES) for key in self.keys]

    def speedup(self, mode: str) -> str:
        """Return how often the seconds of this mode fit into those of the dense edits."""
        dense, seconds = (sum(self.of_edits(each, "seconds")) for each in (DENSE, mode))
        return f"{dense / seconds:.2f}"

    def share(self, mode: str, name: str) -> str:
        """Return the mean of a field that is a share; "-" for dense and for older rows."""
        shares = self.of_edits(mode, name)
        return "-" if None in shares else f"{fmean(shares):.1%}"


def _tables(figures: Figures) -> list[str]:
    first = figures.keys[0]
    settings = figures.rows[first, DENSE]["settings"]
    configs = {mode: figures.rows[first, mode]["config"] for mode in figures.modes[1:]}
    lines = [_settings(settings), "", *_overview(figures, settings["pipeline"]), ""]
    lines += [f"- {mode}: {described(config)}" for mode, config in configs.items()]
    lines += ["", *_differences(figures), "", *_details(figures), "", *_categories(figures), ""]
    return lines


def _settings(settings: Mapping[str, object]) -> str:
    left_out = ("data", "versions")
    shown = [
        f"{name} {value}"
        for name, value in settings.items()
        if name not in left_out and value is not None
    ]
    return f"Same loop in all rows: {', '.join(shown)}."


def _overview(figures: Figures, pipeline: str) -> list[str]:
    cells = [["method", "speed-up", *_COLUMNS, "VL score", "r", "work saved"]]
    for mode in figures.modes:
        names = {DENSE: f"{pipeline}, dense", SPOT: "SpotEdit (spotedit)"}
        qualities = [_cell(figures.measured(mode, name)) for name in _COLUMNS.values()]
        work = [figures.share(mode, name) for name in ("r", "flops_saved")]
        name = names.get(mode, f"SpotEdit (spotedit), {mode}")
        cells.append([name, figures.speedup(mode), *qualities, _cell(figures.judged(mode)), *work])
    note = (
        f"{len(figures.keys)} pictures. r: share of the tokens in a spot step (mean). Work saved: "
        "share of the transformer's operations. The settings beside the defaults:"
    )
    return [*_markdown(cells), "", note]


def _differences(figures: Figures) -> list[str]:
    """Return the differences to dense, taken picture by picture."""
    cells = [["minus dense, mean and 95% interval", *_COLUMNS]]
    for mode in figures.modes[1:]:
        found = (figures.differences(mode, name) for name in _COLUMNS.values())
        cells.append([mode, *map(_interval, found)])
    return _markdown(cells)


def _interval(differences: Sequence[float]) -> str:
    """Return the mean with its 95% interval, for which a few pictures are too few."""
    if not differences:
        return "-"
    mean = fmean(differences)
    if len(differences) < _FEW:
        return f"{mean:+.3g}"
    error = stdev(differences) / len(differences) ** 0.5
    low, high = mean - _NORMAL_95 * error, mean + _NORMAL_95 * error
    return f"{mean:+.3g} [{low:+.3g}, {high:+.3g}]"


def _details(figures: Figures) -> list[str]:
    cells = [["metric", *figures.modes]]
    for name in _DETAILS:
        cells.append([name, *(_cell(figures.measured(mode, name)) for mode in figures.modes)])
    return _markdown(cells)


def _categories(figures: Figures) -> list[str]:
    """Return a line for each of the benchmark's kinds of edit and each mode."""
    cells = [["category", "mode", "pictures", "speed-up", "r", "PSNR", "VL score"]]
    categories = dict(zip(figures.keys, figures.of_edits(DENSE, "category"), strict=True))
    for category in sorted(set(categories.values())):
        part = replace(figures, keys=[key for key in figures.keys if categories[key] == category])
        for mode in figures.modes:
            line = [part.speedup(mode), part.share(mode, "r"), _cell(part.measured(mode, "psnr"))]
            cells.append([category, mode, str(len(part.keys)), *line, _cell(part.judged(mode))])
    return _markdown(cells)


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
        f"{len(data.items)} pictures to edit, {len(pairs)} with all edits; {len(data.problems)} "
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
