"""Test that torch.compile makes few graphs for many different numbers of rows."""

import pytest
import torch
from spotedit_kernels import (
    gathered_attention,
    kv_blend,
    latent_distance,
    qk_norm_rope,
    select_tokens,
    token_distance,
)

S, H, D = 400, 2, 16
COUNTS = [37, 301, 52, 198, 77, 130]


def rows(count):
    """Return random rows ``[1, count, H, D]``."""
    return torch.randn(1, count, H, D)


def index(count, pad_to):
    """List the first `count` rows, padded to a multiple of `pad_to`."""
    length = -(-count // pad_to) * pad_to
    return torch.cat([torch.arange(count), torch.full((length - count,), -1)])


def attend(call, slots):
    return call(rows(len(slots)), rows(S), rows(S))


def attend_in_place(call, slots):
    joint = rows(S)
    return call(joint, rows(S), rows(S), index=slots, out=joint)


def blend(call, slots):
    tensors = [rows(S) for _ in range(6)]
    call(*tensors, slots, t=0.3)
    return tensors[:2]


def prepare(call, slots):
    fresh, caches = (rows(len(slots)) for _ in range(3)), (rows(S), rows(S))
    tables = torch.rand(2, 1, len(slots), D)
    settings = dict.fromkeys(("q_weight", "k_weight", "text_q_weight", "text_k_weight"))
    settings |= {"text_len": 5, "eps": 1e-6, "interleaved": True}
    return call(*fresh, *caches, slots, *tables, **settings), *caches


def select(call, slots):
    grid = (len(slots), 3)
    settings = {"threshold": 0.5, "dilation": 1, "hysteresis": 0.8, "pad_to": 64}
    return call(torch.rand(1, 3 * len(slots)), grid, **settings)


def judge(call, slots):
    maps = [torch.randn(1, 4, len(slots), 6) for _ in range(2)]
    return call(maps[:1], maps[1:], (len(slots), 3))


def compare(call, slots):
    x, y, velocity = (torch.randn(1, len(slots), 5) for _ in range(3))
    return call(x, y, velocity=velocity, sigma=0.3)


CALLS = [
    (gathered_attention, attend),
    (gathered_attention, attend_in_place),
    (kv_blend, blend),
    (latent_distance, compare),
    (qk_norm_rope, prepare),
    (select_tokens, select),
    (token_distance, judge),
]


@pytest.mark.parametrize("pad_to", [1, 64, 128])
@pytest.mark.parametrize(("op", "use"), CALLS, ids=[use.__name__ for _, use in CALLS])
def test_graphs_do_not_grow_with_the_numbers_of_rows(op, use, pad_to):
    """There is one graph for the first number of rows, and one for all others."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(op, backend=count, fullgraph=True)
    for m in COUNTS:
        slots, results = index(m, pad_to), []
        for call in (compiled, op):
            torch.manual_seed(m)
            results.append(use(call, slots))
        torch.testing.assert_close(*results)
    assert len(graphs) <= 2
