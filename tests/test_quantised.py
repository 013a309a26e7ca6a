"""Linear layers may be anything that can be called: quantisers replace `nn.Linear`."""

import torch
import torch.nn.functional as F
from conftest import call_arguments, random_kontext

import spotedit

SIZE = {"height": 48, "width": 64, "max_area": 48 * 64}


class Int8Linear(torch.nn.Module):
    """A linear layer in int8, one scale a row, that has no `weight` to look at."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("data", (weight / self.scale).round().to(torch.int8))
        self.register_buffer("offset", linear.bias.detach())

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


def test_all_tokens_active_equals_the_same_quantised_pipeline():
    pipe = random_kontext()
    exact = pipe(**call_arguments(**SIZE)).images
    assert quantise(pipe.transformer) > 40
    assert not [m for m in pipe.transformer.modules() if isinstance(m, torch.nn.Linear)]
    dense = pipe(**call_arguments(**SIZE)).images
    assert 1e-4 < (dense - exact).norm() / exact.norm() < 0.1
    with spotedit.enable(pipe, condition_cache=False) as handle:
        handle.set_mask(torch.ones(48, 64), mode="replace")
        spot = pipe(**call_arguments()).images
        assert [s["kind"] for s in handle.report.steps].count("spot") == 5
    assert (spot - dense).norm() <= 1e-4 * dense.norm()
    assert torch.equal(pipe(**call_arguments(**SIZE)).images, dense)


def test_a_part_of_a_quantised_pipeline():
    """Spot steps, with everything that they cache and blend, are those of the rounded weights."""
    half = torch.arange(64).expand(48, 64) < 32
    pictures = []
    for rounded_in_place in (False, True):
        pipe = random_kontext()
        if rounded_in_place:
            for linear in pipe.transformer.modules():
                if isinstance(linear, torch.nn.Linear):
                    int8 = Int8Linear(linear)
                    linear.weight.data = int8.data * int8.scale
        else:
            quantise(pipe.transformer)
        handle = spotedit.enable(pipe)
        handle.set_mask(half, mode="replace")
        pictures.append(pipe(**call_arguments()).images)
        assert handle.report.mean_ratio == 0.5
    assert torch.equal(*pictures)
