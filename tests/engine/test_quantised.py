"""Quantisers replace `nn.Linear` by other modules. Editing works with any module in its place."""

import pytest
import torch
import torch.nn.functional as F
from compare import relative_error
from families import FAMILIES, each_family
from small_kontext import enable_all_active

import spotedit


class Int8Linear(torch.nn.Module):
    """A linear layer in int8 with one scale per row, and without a `weight`."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("data", (weight / self.scale).round().to(torch.int8))
        self.register_buffer("offset", None if linear.bias is None else linear.bias.detach())

    def rounded_weight(self) -> torch.Tensor:
        return self.data * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.rounded_weight(), self.offset)


def quantise(module: torch.nn.Module) -> int:
    """Replace every linear layer below `module`, and return their number."""
    num_replaced = 0
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear):
            setattr(module, name, Int8Linear(child))
            num_replaced += 1
        else:
            num_replaced += quantise(child)
    return num_replaced


def linear_layers(module: torch.nn.Module) -> list[torch.nn.Linear]:
    return [child for child in module.modules() if isinstance(child, torch.nn.Linear)]


@each_family
def test_all_tokens_active_equals_the_same_quantised_pipeline(name):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    exact = pipe(**family.arguments(**family.stock)).images
    assert quantise(pipe.transformer) > 20
    assert not linear_layers(pipe.transformer)
    stock = pipe(**family.arguments(**family.stock)).images
    assert 1e-4 < relative_error(stock, exact) < 0.1, "quantisation changes the picture a little"
    with enable_all_active(pipe, family.grid) as handle:
        spot = pipe(**family.arguments()).images
        assert [step["kind"] for step in handle.report.steps].count("spot") == 5
    assert relative_error(spot, stock) <= 1e-4
    assert torch.equal(pipe(**family.arguments(**family.stock)).images, stock)


@each_family
def test_a_part_is_edited_as_with_rounded_weights(name):
    family = FAMILIES[name]
    rows, cols = family.grid
    left_half = (torch.arange(cols) < cols // 2).expand(rows, cols)

    def edit_left_half(pipe):
        handle = spotedit.enable(pipe)
        handle.set_mask(left_half, mode="replace")
        images = pipe(**family.arguments()).images
        assert handle.report.mean_ratio == pytest.approx(left_half.float().mean().item())
        return images

    quantised, rounded = family.make(0), family.make(0)
    quantise(quantised.transformer)
    for linear in linear_layers(rounded.transformer):
        linear.weight.data = Int8Linear(linear).rounded_weight()
    assert torch.equal(edit_left_half(quantised), edit_left_half(rounded))
