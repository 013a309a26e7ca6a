"""Modular pipelines, whose blocks name the arguments of a call."""

from diffusers.modular_pipelines import PipelineState
from families import FAMILIES

from spotedit.engine import patch


def test_arguments_come_from_the_call_then_the_state_then_the_blocks():
    pipe = FAMILIES["FluxKontextModularPipeline"].make(0)
    state = PipelineState()
    state.set("image", "picture")
    state.set("width", 64)
    call = {"state": state, "width": 48, "output": "images"}
    called, arguments = patch.bind(type(pipe), pipe, (), call)
    assert called == call
    assert (arguments["image"], arguments["width"]) == ("picture", 48)
    assert arguments["height"] is None
    assert arguments["_auto_resize"] is True
