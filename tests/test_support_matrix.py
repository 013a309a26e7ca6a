"""The table of docs/support.md, from a small pytest report."""

from pathlib import Path

from bench import support_matrix

ROOT = Path(__file__).parents[1]

CASES = """<testsuites><testsuite>
<testcase name="test_combination[APipeline-LoRA]"/>
<testcase name="test_combination[APipeline-UniPC, flow sigmas]"/>
<testcase name="test_reused_tokens_end_at_the_source_with[APipeline-UniPC, flow sigmas]">
<failure/></testcase>
<testcase name="test_combination[BPipeline-LoRA]"><skipped/></testcase>
<testcase name="test_all_tokens_active_equals_stock[BPipeline-CFG]"/>
<testcase name="test_siblings_stay_stock[BPipeline]"/>
<testcase name="test_every_supported_pipeline_is_tested"/>
<testcase name="test_it_is_in_force[LoRA]"/>
</testsuite></testsuites>"""


def test_cells_are_the_worst_outcome_and_gaps_are_named(tmp_path):
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
    ]


def test_the_rows_name_tests_that_exist():
    sources = "".join((ROOT / path).read_text() for path in support_matrix.TESTS)
    assert all(f"def {test}(" in sources for test in support_matrix.ROWS)
