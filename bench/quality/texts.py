"""From committed rows to the README's table and docs/quality.md."""

from collections.abc import Iterable, Sequence
from typing import Any

from . import paper
from .gate import VARIANTS as BAD
from .measures import MEASURES
from .report import DIFFERENCE, FAILED, RATIO, WORK
from .results import Results, cell, table
from .variants import DEFAULT, MAIN, SWEEPS

BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"
COLUMNS = {  # title -> (row, digits, with its interval)
    "edited region, difference to dense, dB": (MEASURES["edit_db"].name + DIFFERENCE, 2, True),
    "edited region against dense, dB": (MEASURES["same_db"].name, 1, False),
    "outside the edit, difference to dense, dB": (MEASURES["still_db"].name + DIFFERENCE, 2, False),
    "seam, above dense's, /255": (MEASURES["seam_excess"].name, 2, True),
    "recall": (MEASURES["recall"].name, 3, False),
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


def readme(results: Results) -> str:
    """The block between the markers, which are part of it."""
    rivals = [name for name in MAIN if name not in BAD]
    lines = [
        BEGIN,
        *targets(results),
        "",
        *methods_table(results, rivals),
        *_spaced(failures(results)),
        "",
        "Edits that are known to be bad:",
        "",
        *verdicts(results),
        "",
        "Means over held-out scenes with bootstrap 95% intervals, paired with dense",
        "([rows](bench/results/quality.md), [all variants, and the paper's ablations]"
        "(docs/quality.md)).",
        END,
    ]
    return "\n".join(lines)


def inserted(text: str, block: str) -> str:
    """`text` with `block` in place of what stands between the markers.

    Raises:
        ValueError: the text has no markers.
    """
    start, end = text.find(BEGIN), text.find(END)
    if not 0 <= start < end:
        raise ValueError(f"the text has no {BEGIN} ... {END}; insert these lines where it shall be")
    return text[:start] + block + text[end + len(END) :]


def document(main: Results, sweeps: Sequence[Results]) -> str:
    """docs/quality.md."""
    lines = [
        "# Quality on scenes with a known truth",
        "",
        "Made by `python -m bench.quality --readme` from the rows of `bench/results`. What the",
        "figures mean stands in [quality.md](../bench/results/quality.md). Intervals are of 95%.",
        "",
        "![edited region and seam against work](quality.png)",
        "",
        "## Default settings, rivals, and edits that are known to be bad",
        "",
        _linked(main),
        "",
        *targets(main),
        "",
        *methods_table(main, MAIN),
        *_spaced(failures(main)),
        "",
        *verdicts(main),
        "",
        "## The paper's ablations",
        "",
        *paper.sentences({results.name: results for results in (main, *sweeps)}),
    ]
    for results in sweeps:
        sweep = results.name.removeprefix("quality-")
        lines += ["", f"## {sweep.capitalize()}", "", _linked(results), ""]
        lines += [*methods_table(results, (DEFAULT, *SWEEPS[sweep])), *_spaced(failures(results))]
    return "\n".join(lines) + "\n"


def _linked(results: Results) -> str:
    return origin(results).replace("RESULTS", "../bench/results")


def _spaced(lines: Sequence[str]) -> list[str]:
    return ["", *lines] if lines else []
