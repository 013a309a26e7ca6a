"""Pipelines that users describe. The code of docs/new_pipeline.md is run as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import spotedit

DOCUMENT = Path(__file__).parents[2] / "docs" / "new_pipeline.md"


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    from spotedit.models import spec

    monkeypatch.setattr(spec, "_REGISTRY", dict(spec._REGISTRY))


def test_the_documents_example(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    scope = {"__name__": "new_pipeline"}
    for block in blocks[:-2]:
        exec(compile(block, str(DOCUMENT), "exec"), scope)
    assert "PatchEditPipeline" in spotedit.supported_pipelines()
    for block in blocks[-2:]:  # the identity test and the mask test, which make assertions
        exec(compile(block, str(DOCUMENT), "exec"), scope)
    assert "r = 13.3% of the tokens" in capsys.readouterr().out
    judged = spotedit.enable(scope["pipe"], judge="l2", threshold=1.0, dilation=0)
    assert torch.isfinite(scope["edit"]()).all()
    assert 0 < judged.report.mean_ratio < 1
    pictures = []
    with judged.call(on_step=lambda step: pictures.append(step.image)):
        edited = scope["edit"]()
    last = torch.from_numpy(np.array(pictures[-1])).movedim(-1, 0) / 255
    assert torch.allclose(last, edited[0].clamp(0, 1), atol=0.003)


def test_the_error_for_an_unknown_pipeline_lists_the_known_ones_and_how_to_add_one():
    with pytest.raises(ValueError, match=r"FluxKontextPipeline.*register.*docs/new_pipeline\.md"):
        spotedit.enable(torch.nn.Identity())
    assert DOCUMENT.is_file()


def test_what_the_package_exports():
    assert sorted(spotedit.__all__) == [
        "EditReport",
        "Handle",
        "Overrides",
        "Preview",
        "Spec",
        "SpotEditConfig",
        "Step",
        "StepProgress",
        "TaylorSeer",
        "TeaCache",
        "disable",
        "enable",
        "estimate",
        "load_config",
        "register",
        "supported_pipelines",
    ]
    assert all(getattr(spotedit, name).__name__ == name for name in spotedit.__all__)
