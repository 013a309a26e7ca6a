"""Write the README's table and docs/quality.md from the committed rows."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from . import paper
from .gate import PREFIX
from .measures import MEASURES
from .report import DIFFERENCE, FAILED, RATIO, WORK
from .results import Results, cell, read, table
from .variants import DEFAULT, HARD, MAIN, SWEEPS

# suffix of a run's name -> what its sections' titles say about the editor
EDITOR_TITLES = {"": "", "-qwen": ", tiny Qwen", "-world": ", tiny drawn"}
OTHER_EDITORS = {
    f"quality{split}{suffix}": title + editor
    for suffix, editor in EDITOR_TITLES.items()
    for split, title in (("", "Easy scenes"), ("-hard", "Hard scenes"))
    if suffix
}
BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"
COLUMNS = {  # title -> (row, number of digits, whether to show the interval)
    "edited region, difference to dense, dB": (MEASURES["edit_db"].name + DIFFERENCE, 2, True),
    "edited region against dense, dB": (MEASURES["same_db"].name, 1, False),
    "outside the edit, difference to dense, dB": (MEASURES["still_db"].name + DIFFERENCE, 2, False),
    "seam, above dense's, /255": (MEASURES["seam_excess"].name, 2, True),
    "left undone": (MEASURES["undone"].name, 3, False),
    "recall": (MEASURES["recall"].name, 3, False),
    "recall, 5th percentile": (MEASURES["recall"].name + ", 5th percentile", 2, False),
    "r": (RATIO, 2, False),
    "work saved": (WORK, 2, False),
}


def methods_table(results: Results, methods: Iterable[str]) -> list[str]:
    """Return a table with one line for each method that was measured."""
    lines = []
    for method in methods:
        cells = [
            cell(results.row(name, method), digits, interval)
            for name, digits, interval in COLUMNS.values()
        ]
        if any(cells):
            scenes = max(
                r["samples"] for r in results.rows if r["parameters"] == {"method": method}
            )
            lines.append([method, str(scenes), *cells])
    return table(["method", "scenes", *COLUMNS], lines)


def failures(results: Results) -> list[str]:
    """Return a list of the methods that failed, with their errors."""
    failed = [(row["parameters"], row["samples"]) for row in results.rows if row["name"] == FAILED]
    return [f"- {p['method']} does not run ({n} edits): `{p['error']}`" for p, n in failed]


def targets(results: Results) -> list[str]:
    """Return a table of the default's targets, or nothing if the run has none."""
    lines = []
    for row in results.rows:
        if row["met"] is None or row["parameters"].get("method") != DEFAULT:
            continue
        at_least, at_most = row["at_least"], row["at_most"]
        bound = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}"
        met = "met" if row["met"] else "**missed**"
        lines.append([row["name"], f"{cell(row, 3)} {row['unit']}", bound, met])
    return table(["default settings", "value", "target", ""], lines) if lines else []


def verdicts(results: Results) -> list[str]:
    """Return a list of what the known-bad edits showed."""
    old = "decides nothing"  # how a verdict ended in rows made before its wording changed
    return [f"- {note}" for note in results.notes if note.startswith(PREFIX) or old in note]


def origin(results: Results) -> str:
    """Return how, where and with which settings the rows were made."""
    e = results.environment
    return (
        f"`{e['command']}`, {e['scenes']} scenes, {e['steps']} steps; default: "
        f"{e['default']}; commit {e['commit']}, {e['cpu']}, weights {e['weights']} "
        f"([rows](../bench/results/{results.name}.md))"
    )


def readme(main: Results, hard: Results) -> str:
    """Return the README's table with the markers around it."""
    columns = {  # title -> (row, number of digits, factor)
        "edits left undone": (MEASURES["undone"].name, 1, 100),
        "changed tokens recomputed": (MEASURES["recall"].name, 1, 100),
        "PSNR of the edited region, minus stock's": (MEASURES["edit_db"].name + DIFFERENCE, 2, 1),
        "r": (RATIO, 0, 100),
        "work saved": (WORK, 0, 100),
    }
    lines = []
    for scenes, results, method in (
        ("easy", main, DEFAULT), ("hard", hard, DEFAULT), ("hard", hard, "paper")
    ):  # fmt: skip
        settings = "the paper's" if method == "paper" else method
        line = [f"{results.environment['scenes']} {scenes}", settings]
        for name, digits, factor in columns.values():
            row = results.row(name, method)
            assert row is not None, f"{results.name} has no {name!r} of {method}"
            number = f"{factor * row['value']:{'+' if factor == 1 else ''}.{digits}f}"
            line.append(number + (" dB" if factor == 1 else "%"))
        lines.append(line)
    return "\n".join([BEGIN, *table(["scenes", "settings", *columns], lines), END])


def inserted(text: str, block: str) -> str:
    """Return the text with `block` in place of the markers and everything between them.

    Raises:
        ValueError: the text has no markers.
    """
    start, end = text.find(BEGIN), text.find(END)
    if not 0 <= start < end:
        raise ValueError(f"the text has no {BEGIN} ... {END}; add both where the table shall stand")
    return text[:start] + block + text[end + len(END) :]


def document(runs: Mapping[str, Results]) -> str:
    """Return docs/quality.md for the runs by name."""
    main, hard = runs["quality"], runs["quality-hard"]
    lines = [
        "# Quality on scenes with a known truth",
        "",
        "Three small editors with real architectures edit scenes whose right answer is known. Two",
        "of them edit shapes on photographs: tiny Kontext, which ships with the package, and tiny",
        "Qwen. The third, tiny drawn, edits drawn pictures and is still in training. *Dense* is",
        "the rows' word for the stock pipeline, which computes all tokens in every step. Every",
        "method starts from the same noise as dense, and differences are paired by scene.",
        "Intervals are 95% intervals. The figures are defined in",
        "[bench/results/quality.md](../bench/results/quality.md).",
        "`python -m bench.quality --readme` writes this page from the rows.",
        "",
        "- **Easy scenes** edit objects of 2 to 60% of the picture, in clearly different colours.",
        "- **Hard scenes** mislead a judge: the object has the colour of what it covers, or is one",
        "  or two tokens large, or only its shade or texture changes.",
        "- **Left undone**: the share of dense's edits of which this method makes less than half.",
        "- **Recall**: the share of the truly changed tokens that the last spot step recomputes.",
        "- **r**: the share of the picture's tokens that a spot step recomputes.",
        "",
        "![edited region and seam against work](quality.png)",
        "",
        "## Easy scenes: the default, rivals, and edits that are known to be bad",
        "",
        *_section(main, MAIN),
        "",
        *verdicts(main),
        "",
        "## Hard scenes",
        "",
        *_section(hard, HARD),
        "",
        "The ten scenes in which the default misses the most of the changed tokens. From left to",
        "right: the source, the dense edit, the edit with `spotedit`, and the same with the",
        "recomputed region outlined.",
        "",
        "![the ten worst scenes](quality-worst.png)",
    ]
    for name, title in OTHER_EDITORS.items():
        if name in runs:
            lines += ["", f"## {title}", "", *_section(runs[name], (*MAIN, *HARD))]
    lines += ["", "## The paper's ablations", "", *paper.sentences(runs)]
    for sweep, variants in SWEEPS.items():
        for suffix, editor in EDITOR_TITLES.items():
            results = runs.get(f"quality-{sweep}{suffix}")
            if results is not None:
                shown = _table(results, (DEFAULT, *variants))
                lines += ["", f"## {sweep.capitalize()}{editor}", "", origin(results), "", *shown]
    return "\n".join(lines) + "\n"


def runs(folder: Path) -> dict[str, Results]:
    """Return all runs whose rows are in the folder, by name."""
    names = ["quality", "quality-hard", *OTHER_EDITORS]
    names += [f"quality-{sweep}{suffix}" for sweep in SWEEPS for suffix in EDITOR_TITLES]
    results = {name: read(name, folder) for name in names}
    return {name: run for name, run in results.items() if run is not None}


def _section(results: Results, methods: Iterable[str]) -> list[str]:
    """Return a run's origin, targets and table."""
    lines = [origin(results), ""]
    if target_lines := targets(results):
        lines += [*target_lines, ""]
    return lines + _table(results, methods)


def _table(results: Results, methods: Iterable[str]) -> list[str]:
    """Return the table of a run, followed by the methods that failed."""
    lines = methods_table(results, dict.fromkeys(methods))
    if failed := failures(results):
        lines += ["", *failed]
    return lines
