"""torch.compile: one graph for all of a block or the transformer, and none made mid-way."""

import pytest
import torch
from families import qwen
from peft import LoraConfig
from small_kontext import call_arguments, random_kontext

import spotedit

SIZE = (96, 128)  # 12 x 16 tokens
COUNTS = (40, 100, 150, 129)  # active tokens; padded to 64, 128, 192


class Counter:
    """A backend of torch.compile that counts the graphs it is given, and runs them as they are."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
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
    """The negative prompt is shorter."""
    return pipe(**qwen.call(num_inference_steps=4, **qwen.GUIDED)).images


def kontext_with_lora():
    pipe = random_kontext()
    targets = ["to_q", "add_k_proj", "proj_out", "ff.net.2"]
    pipe.transformer.add_adapter(LoraConfig(target_modules=targets, init_lora_weights=False))
    return pipe


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


KONTEXT, LORA, QWEN = (
    (random_kontext, edit),
    (kontext_with_lora, edit),
    (qwen.random_qwen, guided_edit),
)


@pytest.mark.parametrize(
    ("pipeline", "compiled"),
    [
        pytest.param(KONTEXT, compile_blocks, id="blocks"),
        pytest.param(KONTEXT, compile_transformer, id="transformer"),
        pytest.param(KONTEXT, wrap_transformer, id="wrapped", marks=pytest.mark.full),
        pytest.param(LORA, compile_blocks, id="LoRA-blocks", marks=pytest.mark.full),
        pytest.param(LORA, compile_transformer, id="LoRA-transformer", marks=pytest.mark.full),
        pytest.param(QWEN, compile_blocks, id="Qwen-CFG-blocks"),
        pytest.param(QWEN, compile_transformer, id="Qwen-CFG-transformer", marks=pytest.mark.full),
    ],
)
def test_compiled_equals_eager_and_compiles_no_more_after_warming_up(
    pipeline, compiled, monkeypatch
):
    monkeypatch.setattr(qwen, "AREA", SIZE[0] * SIZE[1])
    (make, edit), backend = pipeline, Counter()
    pipe = make()
    masks = [(torch.arange(192) < count).view(12, 16) for count in COUNTS]
    handle = spotedit.enable(pipe, reset_every=2)

    def edits():
        for mask in masks:
            handle.set_mask(mask, mode="replace")
            yield edit(pipe)

    eager = list(edits())
    compiled(pipe, backend)
    for warm in edits():
        assert torch.isfinite(warm).all()
        first = backend.graphs
    assert 0 < first < 20
    for ours, expected in zip(edits(), eager, strict=True):
        assert relative(ours, expected) <= 1e-5
    assert backend.graphs == first
    active = {step["active"] for step in handle.report.steps if step["kind"] == "spot"}
    assert active == {COUNTS[-1]}  # padding is not counted


def test_identity_and_inverse_of_a_compiled_pipeline():
    pipe = random_kontext()
    stock = {"height": SIZE[0], "width": SIZE[1], "max_area": SIZE[0] * SIZE[1]}
    compile_blocks(pipe, "eager")
    dense = edit(pipe, **stock)
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(torch.ones(12, 16), mode="replace")
    assert relative(edit(pipe), dense) <= 1e-4
    handle.disable()
    assert torch.equal(edit(pipe, **stock), dense)
