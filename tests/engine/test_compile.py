"""torch.compile: edits of a compiled pipeline are right, and soon need no new graph."""

import pytest
import torch
from compare import relative_error
from families import qwen
from peft import LoraConfig
from small_kontext import call_arguments, enable_all_active, random_kontext

import spotedit

SIZE = HEIGHT, WIDTH = 96, 128
GRID = (12, 16)
NUM_TOKENS = 12 * 16
ACTIVE_COUNTS = (40, 100, 150, 129)  # padded to 64, 128, 192 and 192


class CountGraphs:
    """A backend of torch.compile that counts the graphs and runs them as they are."""

    def __init__(self):
        self.num_graphs = 0

    def __call__(self, graph, inputs):
        self.num_graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compile_blocks(pipe, backend):
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=backend)


def compile_transformer(pipe, backend):
    pipe.transformer.compile(fullgraph=True, backend=backend)


def wrap_transformer(pipe, backend):
    pipe.transformer = torch.compile(pipe.transformer, fullgraph=True, backend=backend)


def edit(pipe, **extra):
    return pipe(**call_arguments(size=SIZE, num_inference_steps=4, **extra)).images


def guided_edit(pipe):
    """Edit with guidance, whose negative prompt is shorter than the prompt."""
    return pipe(**qwen.call(num_inference_steps=4, **qwen.GUIDED)).images


def kontext_with_lora():
    pipe = random_kontext()
    targets = ["to_q", "add_k_proj", "proj_out", "ff.net.2"]
    pipe.transformer.add_adapter(LoraConfig(target_modules=targets, init_lora_weights=False))
    return pipe


KONTEXT = (random_kontext, edit)
LORA = (kontext_with_lora, edit)
QWEN = (qwen.random_qwen, guided_edit)


@pytest.mark.full
@pytest.mark.parametrize(
    ("pipeline", "compile_pipeline"),
    [
        pytest.param(KONTEXT, compile_blocks, id="blocks"),
        pytest.param(KONTEXT, compile_transformer, id="transformer"),
        pytest.param(KONTEXT, wrap_transformer, id="wrapped"),
        pytest.param(LORA, compile_blocks, id="LoRA-blocks"),
        pytest.param(LORA, compile_transformer, id="LoRA-transformer"),
        pytest.param(QWEN, compile_blocks, id="Qwen-CFG-blocks"),
        pytest.param(QWEN, compile_transformer, id="Qwen-CFG-transformer"),
    ],
)
def test_compiled_equals_eager_and_compiles_no_more_after_warming_up(
    pipeline, compile_pipeline, monkeypatch
):
    monkeypatch.setattr(qwen, "AREA", HEIGHT * WIDTH)
    make_pipe, edit = pipeline
    pipe, backend = make_pipe(), CountGraphs()
    handle = spotedit.enable(pipe, reset_every=2)

    def edit_with_each_mask():
        results = []
        for num_active in ACTIVE_COUNTS:
            mask = (torch.arange(NUM_TOKENS) < num_active).view(GRID)
            handle.set_mask(mask, mode="replace")
            results.append(edit(pipe))
        return results

    eager = edit_with_each_mask()
    compile_pipeline(pipe, backend)
    for latents in edit_with_each_mask():
        assert torch.isfinite(latents).all()
    num_graphs = backend.num_graphs
    assert 0 < num_graphs < 20
    for latents, expected in zip(edit_with_each_mask(), eager, strict=True):
        assert relative_error(latents, expected) <= 1e-5
    assert backend.num_graphs == num_graphs
    active = {step["active"] for step in handle.report.steps if step["kind"] == "spot"}
    assert active == {ACTIVE_COUNTS[-1]}  # padding is not counted


def test_a_compiled_pipeline_equals_stock_and_is_stock_after_disable():
    pipe = random_kontext()
    stock_size = {"height": HEIGHT, "width": WIDTH, "max_area": HEIGHT * WIDTH}
    compile_blocks(pipe, "eager")
    stock = edit(pipe, **stock_size)
    handle = enable_all_active(pipe, GRID)
    assert relative_error(edit(pipe), stock) <= 1e-4
    handle.disable()
    assert torch.equal(edit(pipe, **stock_size), stock)
