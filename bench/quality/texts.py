"""From committed rows to the README's table and docs/quality.md."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import paper
from .measures import MEASURES
from .report import DIFFERENCE, FAILED, RATIO, WORK
from .results import Results, cell, read, table
from .variants import DEFAULT, HARD, MAIN, SWEEPS

_HEAD = 2  # lines of a table without content
OF_EDITOR = {"": "", "-qwen": ", the Qwen editor", "-world": ", the drawn world's editor"}  # suffix
TRANSFER = {
    f"quality{split}{suffix}": title + editor
    for suffix, editor in OF_EDITOR.items()
    for split, title in (("", "Easy scenes"), ("-hard", "Hard scenes"))
    if suffix
}
BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"
COLUMNS = {  # title -> (row, digits, with its interval)
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
    """A line for every method that was measured."""
    lines = []
    for method in methods:
        cells = [cell(results.row(name, method), d, i) for name, d, i in COLUMNS.values()]
        if any(cells):
            scenes = max(
                r["samples"] for r in results.rows if r["parameters"] == {"method": method}
            )
            lines.append([method, str(scenes), *cells])
    return table(["method", "scenes", *COLUMNS], lines)


def failures(results: Results) -> list[str]:
    """What did not run, and its error."""
    failed = [r["parameters"] | {"n": r["samples"]} for r in results.rows if r["name"] == FAILED]
    return [f"- {f['method']} does not run ({f['n']} edits): `{f['error']}`" for f in failed]


def targets(results: Results) -> list[str]:
    rows = [r for r in results.rows if r["met"] is not None and _of_default(r)]
    lines = []
    for r in rows:
        bound = f">= {r['at_least']:g}" if r["at_least"] is not None else f"<= {r['at_most']:g}"
        met = "met" if r["met"] else "**missed**"
        lines.append([r["name"], f"{cell(r, 3)} {r['unit']}", bound, met])
    return table(["default settings", "value", "target", ""], lines)


def _of_default(row: dict[str, Any]) -> bool:
    return row["parameters"].get("method") == DEFAULT


def verdicts(results: Results) -> list[str]:
    """What the known-bad edits showed."""
    told = [n for n in results.notes if n.startswith("Known bad") or "decides nothing" in n]
    return [f"- {note}" for note in told]


def origin(results: Results) -> str:
    e = results.environment
    return (
        f"`{e['command']}`, {e['scenes']} scenes, {e['steps']} steps; default: "
        f"{e['default']}; commit {e['commit']}, "
        f"{e['cpu']}, weights {e['weights']} ([rows](RESULTS/{results.name}.md))"
    )


def readme(main: Results, hard: Results) -> str:
    """The block between the markers, which are part of it."""
    columns = {
        "edits left undone": (MEASURES["undone"].name, 1, 100),
        "changed tokens found": (MEASURES["recall"].name, 1, 100),
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
    """`text` with `block` in place of what stands between the markers.

    Raises:
        ValueError: the text has no markers.
    """
    start, end = text.find(BEGIN), text.find(END)
    if not 0 <= start < end:
        raise ValueError(f"the text has no {BEGIN} ... {END}; insert these lines where it shall be")
    return text[:start] + block + text[end + len(END) :]


def document(runs: Mapping[str, Results]) -> str:
    """docs/quality.md, of the runs by name."""
    main, hard = runs["quality"], runs["quality-hard"]
    lines = [
        "# Quality on scenes with a known truth",
        "",
        "Three small editors of real architectures edit scenes whose right answer is known: two",
        "edit shapes on photographs (`kontext`, which ships with the package, and `qwen`), one",
        "edits drawn pictures (`world`, still in training). Every method starts from the same",
        "noise as the stock pipeline, called dense here, and differences are paired by scene.",
        "Intervals are of 95%. [bench/results/quality.md](../bench/results/quality.md) defines",
        "the figures. `python -m bench.quality --readme` writes this page from the rows.",
        "",
        "- **Easy scenes** have objects of 2 to 60% of the picture, in colours far from theirs.",
        "- **Hard scenes** have what misleads a judge: an object in the colour of what it covers,",
        "  an object of one or two tokens, a change of the shade or texture alone.",
        "- **Left undone**: of the edits that dense makes, those of which less than half is made.",
        "- **Recall**: share of the truly changed tokens that are computed in the last spot step.",
        "- **r**: share of the tokens that a spot step computes.",
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
        "The ten scenes in which the default finds the smallest share of the changed tokens:",
        "source, dense, spot, and spot with the region outlined.",
        "",
        "![the ten worst scenes](quality-worst.png)",
    ]
    for name, title in TRANSFER.items():
        if name in runs:
            lines += ["", f"## {title}", "", *_section(runs[name], (*MAIN, *HARD))]
    lines += ["", "## The paper's ablations", "", *paper.sentences(runs)]
    for sweep, variants in SWEEPS.items():
        for suffix, editor in OF_EDITOR.items():
            results = runs.get(f"quality-{sweep}{suffix}")
            if results is not None:
                shown = _table(results, (DEFAULT, *variants))
                lines += ["", f"## {sweep.capitalize()}{editor}", "", _linked(results), "", *shown]
    return "\n".join(lines) + "\n"


def runs(folder: Path) -> dict[str, Results]:
    """All runs whose rows are in a folder, by name."""
    names = ["quality", "quality-hard", *TRANSFER]
    names += [f"quality-{sweep}{editor}" for sweep in SWEEPS for editor in OF_EDITOR]
    found = {name: read(name, folder) for name in names}
    return {name: results for name, results in found.items() if results is not None}


def _section(results: Results, methods: Iterable[str]) -> list[str]:
    """Origin, targets and table of a run."""
    goals = targets(results)
    goals = [*goals, ""] if len(goals) > _HEAD else []
    return [_linked(results), "", *goals, *_table(results, methods)]


def _table(results: Results, methods: Iterable[str]) -> list[str]:
    """Make the table of a run, and list what did not run."""
    return [*methods_table(results, dict.fromkeys(methods)), *_spaced(failures(results))]


def _linked(results: Results) -> str:
    return origin(results).replace("RESULTS", "../bench/results")


def _spaced(lines: Sequence[str]) -> list[str]:
    return ["", *lines] if lines else []
