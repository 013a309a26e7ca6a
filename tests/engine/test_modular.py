"""What is special about modular pipelines: their arguments are those that their blocks name."""

from diffusers.modular_pipelines import PipelineState
from families import FAMILIES

from spotedit.engine import patch


def test_arguments_come_from_the_call_the_state_and_the_blocks():
    pipe = FAMILIES["FluxKontextModularPipeline"].make(0)
    state = PipelineState()
    state.set("image", "picture")
    state.set("width", 64)
    given = {"state": state, "width": 48, "output": "images"}
    called, arguments = patch.bind(type(pipe), pipe, (), given)
    assert called == given
    assert (arguments["image"], arguments["width"]) == ("picture", 48)
    assert arguments["height"] is None
    assert arguments["_auto_resize"] is True
