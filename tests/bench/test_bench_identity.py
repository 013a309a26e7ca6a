"""Test the check that runs before any speed of a pipeline is measured."""

import re

import pytest
import torch
from spotedit_kernels.gathered_attention import reference

from bench import identity


def break_attention(monkeypatch, dtype, factor):
    """Multiply the scale of our attention in `dtype`; the stock pipeline's stays right."""
    attend = reference._attend

    def scaled(q, k, v, key_mask, scale):
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return attend(q, k, v, key_mask, scale * (factor if q.dtype == dtype else 1))

    monkeypatch.setattr(reference, "_attend", scaled)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_correct_edits_pass(dtype):
    assert identity.faults("cpu", dtype) == []


@pytest.mark.parametrize(
    ("dtype", "factor"), [(torch.float32, 0.99), (torch.bfloat16, 0.75), (torch.float16, 0.95)]
)
def test_an_error_beyond_the_precisions_own_is_found(monkeypatch, dtype, factor):
    break_attention(monkeypatch, dtype, factor)
    expected = f"all tokens active, {dtype}: relative error .* exceeds"
    assert any(re.match(expected, fault) for fault in identity.faults("cpu", dtype))
