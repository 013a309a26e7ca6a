"""Test that ``python -m bench.compiled`` writes its table and reports spills."""

import pytest
from spotedit_kernels.impl import HAS_TRITON

if HAS_TRITON:
    from spotedit_kernels.schedules import schedules

    from bench import compiled

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


def test_the_table_is_written_to_a_folder_and_a_spill_is_an_error(tmp_path, monkeypatch):
    usage = compiled.Usage(registers=255, spilled=8, shared=0, wgmma=True)
    monkeypatch.setattr(
        compiled, "usages", lambda targets, name: [(schedules("sm_90")[0], "sm_90", usage)]
    )
    with pytest.raises(SystemExit, match="on sm_90 spills 8 bytes"):
        compiled.main(["--out", str(tmp_path / "new")])
    (table,) = (tmp_path / "new").iterdir()
    assert table.name.startswith("compiled-triton-")
    assert "| sm_90 | 255 | 8 | 0 | yes |" in table.read_text()
