"""Test the table of docs/support.md, made from a small pytest report."""

from pathlib import Path

from bench import support_matrix

ROOT = Path(__file__).parents[2]

CASES = """<testsuites><testsuite>
<testcase name="test_all_tokens_active_equals_stock_with[APipeline-LoRA]"/>
<testcase name="test_all_tokens_active_equals_stock_with[APipeline-UniPC, flow sigmas]"/>
<testcase name="test_reused_tokens_end_at_the_source_with[APipeline-UniPC, flow sigmas]">
<failure/></testcase>
<testcase name="test_all_tokens_active_equals_stock_with[BPipeline-LoRA]"><skipped/></testcase>
<testcase name="test_all_tokens_active_equals_stock[BPipeline-CFG]"/>
<testcase name="test_siblings_stay_stock[BPipeline]"/>
<testcase name="test_every_supported_pipeline_is_tested"/>
<testcase name="test_the_combination_changes_the_picture[LoRA]"/>
</testsuite></testsuites>"""


def test_cells_have_the_worst_outcome_and_gaps_have_reasons(tmp_path):
    (tmp_path / "report.xml").write_text(CASES)
    out = tmp_path / "support.md"
    arguments = ["--junit", str(tmp_path / "report.xml"), "--out", str(out)]
    assert support_matrix.main(arguments) == 0
    assert [line for line in out.read_text().splitlines() if line.startswith("|")] == [
        "|  | `APipeline` | `BPipeline` |",
        "| --- | --- | --- |",
        "| LoRA | yes | skipped |",
        "| UniPC, flow sigmas | fails | not tested |",
        "| classifier-free guidance | not tested | yes |",
        "| from_pipe siblings stay stock | not tested | yes |",
        "| sequential offload | not tested | not tested |",
        "| offload on a GPU, with streams | not tested | not tested |",
    ]
    reasons = [line for line in out.read_text().splitlines() if line.startswith("- *")]
    assert "- *from_pipe siblings stay stock*: modular pipelines have no `from_pipe`." in reasons
    assert len(reasons) == 5


def test_every_gap_of_the_committed_table_has_a_reason():
    text = (ROOT / "docs" / "support.md").read_text()
    assert "not tested |" in text
    assert "no reason is known" not in text
    assert "| fails" not in text


def test_the_rows_name_tests_that_exist():
    sources = "".join((ROOT / path).read_text() for path in support_matrix.TESTS)
    assert all(f"def {test}(" in sources for test in support_matrix.ROWS)
