"""Linear layers may be anything that can be called: quantisers replace `nn.Linear`."""

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, each_family

import spotedit


class Int8Linear(torch.nn.Module):
    """A linear layer in int8, one scale a row, that has no `weight` to look at."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("data", (weight / self.scale).round().to(torch.int8))
        self.register_buffer("offset", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.data * self.scale, self.offset)


def quantise(module: torch.nn.Module) -> int:
    """Replace every linear layer below `module`; returns their number."""
    count = 0
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear):
            setattr(module, name, Int8Linear(child))
            count += 1
        else:
            count += quantise(child)
    return count


@each_family
def test_all_tokens_active_equals_the_same_quantised_pipeline(name):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    exact = pipe(**family.arguments(**family.stock)).images
    assert quantise(pipe.transformer) > 20
    assert not [m for m in pipe.transformer.modules() if isinstance(m, torch.nn.Linear)]
    dense = pipe(**family.arguments(**family.stock)).images
    assert 1e-4 < (dense - exact).norm() / exact.norm() < 0.1
    with spotedit.enable(pipe, condition_cache=False) as handle:
        handle.set_mask(torch.ones(family.grid), mode="replace")
        spot = pipe(**family.arguments()).images
        assert [s["kind"] for s in handle.report.steps].count("spot") == 5
    assert (spot - dense).norm() <= 1e-4 * dense.norm()
    assert torch.equal(pipe(**family.arguments(**family.stock)).images, dense)


@each_family
def test_a_part_of_a_quantised_pipeline(name):
    """Spot steps, with everything that they cache and blend, are those of the rounded weights."""
    family = FAMILIES[name]
    half = (torch.arange(family.grid[1]) < family.grid[1] // 2).float().expand(family.grid)
    pictures = []
    for rounded_in_place in (False, True):
        pipe = family.make(0)
        if rounded_in_place:
            for linear in pipe.transformer.modules():
                if isinstance(linear, torch.nn.Linear):
                    int8 = Int8Linear(linear)
                    linear.weight.data = int8.data * int8.scale
        else:
            quantise(pipe.transformer)
        handle = spotedit.enable(pipe)
        handle.set_mask(half, mode="replace")
        pictures.append(pipe(**family.arguments()).images)
        assert handle.report.mean_ratio == pytest.approx(half.mean().item())
    assert torch.equal(*pictures)
