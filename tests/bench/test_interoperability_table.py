"""Test the table of docs/interoperability.md, made from a small pytest report."""

from pathlib import Path

from bench import interoperability

ROOT = Path(__file__).parents[2]


def case(test, what, how, rest="", **properties):
    """Write the XML of a test; `rest` is its outcome."""
    properties |= {"what": what, "how": how, "instead": "remove it"}
    items = "".join(f'<property name="{n}" value="{v}"/>' for n, v in properties.items())
    head = f'<testcase classname="tests.test_x" name="{test}">'
    return f"{head}<properties>{items}</properties>{rest}</testcase>"


CASES = [
    case("test_a[1]", "A", "one way"),
    case("test_a[2]", "A", "one way", outcome="dense: a reason"),
    case("test_b", "B", "one | two", "<failure message='boom'/>", outcome="works"),
    case("test_c", "C", "there", "<skipped message='C is not installed'/>"),
    '<testcase classname="tests.test_x" name="test_without_a_row"/>',
]


def test_tests_are_grouped_into_rows_and_the_worst_outcome_counts(tmp_path):
    (tmp_path / "report.xml").write_text(f"<testsuite>{''.join(CASES)}</testsuite>")
    out = tmp_path / "table.md"
    arguments = ["--junit", str(tmp_path / "report.xml"), "--out", str(out)]
    assert interoperability.main(arguments) == 0
    lines = [line for line in out.read_text().splitlines() if line.startswith("|")]
    assert lines[2:] == [
        "| A | one way | works; dense: a reason | remove it | `test_x.py::test_a` |",
        "| B | one \\| two | fails | remove it | `test_x.py::test_b` |",
        "| C | there | not run here: C is not installed | remove it | `test_x.py::test_c` |",
    ]


def test_the_committed_table_is_complete():
    text = (ROOT / "docs" / "interoperability.md").read_text()
    for words in ("torchao", "bitsandbytes", "threads", "FastAPI", "| refused |"):
        assert words in text
    assert "not run here" not in text
    assert "| fails |" not in text
