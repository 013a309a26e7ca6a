"""Write docs/interoperability.md, which says what works beside an enabled pipeline.

``python -m bench.interoperability`` runs the tests that stand for a row of the table, slow ones
too, and reads their outcomes. It needs the extras `test` and `interop`; the row of a package that
is not installed says so.
"""

import sys

from .junit import WORST, Case, cases, write
from .rows import table

TESTS = tuple(
    f"tests/engine/test_{name}.py" for name in ("interoperability", "shared_weights", "copies")
)
HEADER = """# What works beside spotedit, and what does not

This table is written from the outcomes of tests, which run small FLUX.1-Kontext pipelines with
random weights on a CPU. Each library or feature is applied before `enable` and, in another test,
after it.

- *works*: with all tokens active, the picture equals that of the stock pipeline with the same
  addition, within 1e-4. An edit of a part of the picture reuses the rest, and `disable` brings the
  stock picture back.
- *dense*: nothing is skipped, so the picture is the stock pipeline's. `handle.report.reason` says
  why.
- *refused*: `enable` or the call raises a `ValueError` that names the cause and what to do instead.

[support.md](support.md) says what each pipeline class is tested with (LoRA, offloading, schedulers,
batches).
"""
COLUMNS = ("with what", "how", "outcome", "what to do instead", "test")


def rows(junit: str) -> list[list[str]]:
    """Make a row for each pair of the properties `what` and `how`, in the order of the tests."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases(junit):
        if "what" in case.properties:
            key = case.properties["what"], case.properties["how"]
            groups.setdefault(key, []).append(case)
    return [
        [what, how, _outcome(group), group[0].properties["instead"], _tests(group)]
        for (what, how), group in groups.items()
    ]


def _outcome(group: list[Case]) -> str:
    worst = max((case.result for case in group), key=WORST.index)
    if worst == "fails":
        return "fails"
    if worst == "skipped":
        reason = next(case.message for case in group if case.result == "skipped")
        return f"not run here: {reason}"
    return "; ".join(dict.fromkeys(case.properties.get("outcome", "works") for case in group))


def _tests(group: list[Case]) -> str:
    return ", ".join(dict.fromkeys(f"`{case.module}.py::{case.test}`" for case in group))


def document(junit: str) -> str:
    """Return the document's text, without its last line."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows(junit)]
    return f"{HEADER}\n{table(COLUMNS, lines)}\n"


def main(argv: list[str] | None = None) -> int:
    out, marked = "docs/interoperability.md", "row and not gpu"
    return write("interoperability", TESTS, out, document, argv, marked)


if __name__ == "__main__":
    sys.exit(main())
