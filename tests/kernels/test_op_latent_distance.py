"""Test latent_distance against a channel-by-channel fp64 oracle."""

import math

import kernel_oracle as oracle
import pytest
import torch
from kernel_oracle import (
    EACH_IMPL,
    HALVES_AND_FP32,
    NoSync,
    assert_bounded,
    each_impl_in,
    seeded,
)
from spotedit_kernels import latent_distance

from bench.shapes import LATENT_CHANNELS, ODD_LATENTS

SIGMA = 0.375  # exact in every dtype


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill uninitialised memory with NaN, which shows where an output was not written."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(batch=2, tokens=35, channels=7, dtype=torch.float32, seed=0):
    """Return random x, y and velocity."""
    g = seeded(seed)
    return [torch.randn(batch, tokens, channels, generator=g).to(dtype) for _ in range(3)]


def eager(x, y, velocity=None, sigma=0.0):
    """Compute the plain composition in the latents' dtype."""
    clean = x if velocity is None else x - sigma * velocity
    return (clean - y).square().mean(-1)


def check(x, y, impl, velocity=None, **sigma):
    """Hold the result to the error bound, and return it."""
    result = latent_distance(x, y, velocity=velocity, impl=impl, **sigma)
    assert result.dtype == torch.float32
    want = oracle.latent_distance(x, y, velocity, **sigma)
    wide_velocity = None if velocity is None else velocity.float()
    plain = eager(x.float(), y.float(), wide_velocity, **sigma)
    assert_bounded(result, want, plain, torch.float32)
    return result


@each_impl_in([*HALVES_AND_FP32, torch.float64])
@pytest.mark.parametrize(("batch", "tokens", "channels"), ODD_LATENTS)
def test_against_the_oracle(dtype, batch, tokens, channels, impl):
    x, y, velocity = draw(batch, tokens, channels, dtype)
    result = check(x, y, impl, velocity=velocity, sigma=SIGMA)
    assert result.shape == (batch, tokens)
    assert result.is_contiguous()
    check(x, y, impl)
    check(x, y[:1], impl, velocity=velocity, sigma=SIGMA)


@EACH_IMPL
@pytest.mark.parametrize("dtypes", [
    (torch.float16, torch.float32, torch.float32),
    (torch.float32, torch.float16, torch.float32),
    (torch.float32, torch.float32, torch.float16),
])  # fmt: skip
def test_the_dtypes_may_differ(dtypes, impl):
    x, y, velocity = (each.to(dtype) for each, dtype in zip(draw(), dtypes, strict=True))
    check(x, y, impl, velocity=velocity, sigma=SIGMA)
    check(x, y, impl)


@pytest.mark.parametrize("which", range(3))
def test_one_fp64_tensor_makes_the_arithmetic_fp64(which):
    latents = [each.bfloat16() for each in draw()]
    latents[which] = latents[which].double() + 1e-12
    x, y, velocity = latents
    settings = {"velocity": velocity, "sigma": 0.3}
    want = oracle.latent_distance(x, y, **settings)
    torch.testing.assert_close(latent_distance(x, y, **settings), want.float(), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=r"impl='triton' was asked for.*in fp64"):
        latent_distance(x, y, **settings, impl="triton")


@EACH_IMPL
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_sigma_may_be_a_number_or_a_tensor(dtype, impl):
    x, y, velocity = draw()
    results = [
        check(x, y, impl, velocity=velocity, sigma=sigma)
        for sigma in (SIGMA, torch.tensor(SIGMA, dtype=dtype))
    ]
    assert torch.equal(*results)
    for sigma in (0, torch.tensor(0.0, dtype=dtype)):
        still = latent_distance(x, y, velocity=velocity, sigma=sigma, impl=impl)
        assert torch.equal(still, latent_distance(x, y, impl=impl))
    check(x, y, impl, velocity=velocity, sigma=1)


def inside_nan(latents, view):
    """Return a view of the same values in memory that is NaN elsewhere."""
    batch, tokens, channels = latents.shape
    if view == "joint":  # the noise part of [prompt, noise, condition]
        result = latents.new_full((batch, 5 + 2 * tokens, channels), math.nan)[:, 5 : 5 + tokens]
    elif view == "every other channel":
        result = latents.new_full((batch, tokens, 2 * channels + 1), math.nan)[..., 1::2]
    elif view == "channels first":
        result = latents.new_full((batch, channels + 3, tokens + 2), math.nan)[:, 2:-1, 1:-1].mT
    else:  # "batch last"
        result = latents.new_full((tokens, channels, batch + 1), math.nan)[..., 1:].movedim(-1, 0)
    return result.copy_(latents)


@EACH_IMPL
@pytest.mark.parametrize("view", ["joint", "every other channel", "channels first", "batch last"])
def test_views_with_nan_around_them(view, impl):
    latents = draw(batch=2, tokens=19, channels=67)
    x, y, velocity = (inside_nan(each, view) for each in latents)
    assert not x.is_contiguous()
    result = check(x, y, impl, velocity=velocity, sigma=SIGMA)
    dense = latent_distance(*latents[:2], velocity=latents[2], sigma=SIGMA, impl=impl)
    torch.testing.assert_close(result, dense)
    check(x, inside_nan(latents[1][:1], view), impl)
    x, y, velocity = (each[:1, :1].expand(2, 19, -1) for each in (x, y, velocity))  # stride 0
    check(x, y, impl, velocity=velocity, sigma=SIGMA)


@EACH_IMPL
def test_the_same_latents_have_no_distance(impl):
    x, _, velocity = draw(channels=LATENT_CHANNELS)
    assert (latent_distance(x, x, impl=impl) == 0).all()
    large = torch.full((1, 17, 5), 6e4, dtype=torch.float16)
    assert (latent_distance(large, large, impl=impl) == 0).all()
    settings = {"velocity": velocity, "sigma": 0.0}
    assert (latent_distance(x, x.clone(), **settings, impl=impl) == 0).all()
    whole = x.mul(8).round()  # x - velocity / 2 is exact
    move = velocity.mul(8).round()
    settings = {"velocity": move, "sigma": 0.5}
    assert (latent_distance(whole, whole - 0.5 * move, **settings, impl=impl) == 0).all()


@EACH_IMPL
def test_close_latents_keep_relative_accuracy(impl):
    x, noise, _ = draw(channels=LATENT_CHANNELS)
    y = x + 1e-4 * noise
    want = oracle.latent_distance(x, y)
    assert want.max() < 1e-7
    result = latent_distance(x, y, impl=impl)
    torch.testing.assert_close(result.double(), want, rtol=1e-5, atol=0)


@EACH_IMPL
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_token(value, impl):
    for which, sigma in ((0, SIGMA), (1, SIGMA), (2, SIGMA), (0, 0.0), (1, 0.0)):
        latents = draw(tokens=37, channels=11)
        latents[which][1, 20, 3] = value
        x, y, velocity = latents
        result = latent_distance(x, y, velocity=velocity, sigma=sigma, impl=impl)
        wrong = (~result.isfinite()).nonzero()
        assert wrong.tolist() == [[1, 20]]
    x[1, 20, 3] = y[1, 20, 3] = value  # inf - inf
    assert (~latent_distance(x, y, impl=impl).isfinite()).nonzero().tolist() == [[1, 20]]


def test_no_synchronisation_and_one_graph():
    x, y, velocity = draw()
    compiled = torch.compile(latent_distance, fullgraph=True, backend="eager")
    for settings in (
        {},
        {"velocity": velocity, "sigma": 0.3},
        {"velocity": velocity, "sigma": 0.7},
        {"velocity": velocity, "sigma": torch.tensor(0.3)},
    ):
        with NoSync():
            want = latent_distance(x, y[:1], **settings)
        torch.testing.assert_close(compiled(x, y[:1], **settings), want)


def test_errors_say_what_and_how():
    x, y, velocity = draw()
    both = {"velocity": velocity, "sigma": 0.3}
    cases = [
        (TypeError, "x must be a torch.Tensor, got list", ([1.0], y), {}),
        (TypeError, "y must be a torch.Tensor, got NoneType", (x, None), {}),
        (TypeError, "velocity must be a torch.Tensor, got float", (x, y),
         {"velocity": 0.1, "sigma": 0.3}),
        (ValueError, r"x must have shape \[B, N, C\] \(3 dimensions\), got \(35, 7\)",
         (x[0], y), {}),
        (ValueError, r"y must have shape \[B, N, C\] \(3 dim", (x, y[0]), {}),
        (ValueError, r"y must have shape .* = \(2, 35, 7\), got \(2, 34, 7\); .*batch may be 1",
         (x, y[:, 1:]), {}),
        (ValueError, r"y must have shape .* = \(1, 35, 7\), got \(1, 35, 6\)",
         (x, y[:1, :, 1:]), {}),
        (ValueError, r"velocity must have shape .* = \(2, 35, 7\), got \(1, 35, 7\); .*have x's",
         (x, y), {"velocity": velocity[:1], "sigma": 0.3}),
        (TypeError, r"x must be of dtype .*, got int64; convert it with \.float\(\)",
         (x.long(), y), {}),
        (TypeError, "velocity must be of dtype .*, got bool", (x, y),
         {"velocity": velocity > 0, "sigma": 0.3}),
        (ValueError, "y must be on cpu like", (x, y.to("meta")), {}),
        (ValueError, "velocity must be on cpu like", (x, y),
         {"velocity": velocity.to("meta"), "sigma": 0.3}),
        *((ValueError, "x must have at least one image, token and channel, got .*skip the call",
           (empty, empty), {}) for empty in (x[:0], x[:, :0], x[..., :0])),
        (ValueError, "must be given together, got only velocity; .*pass both", (x, y),
         {"velocity": velocity}),
        (ValueError, "must be given together, got only sigma", (x, y), {"sigma": 0.3}),
        (ValueError, "sigma must be finite, got nan", (x, y), both | {"sigma": math.nan}),
        (ValueError, "sigma must be finite, got inf", (x, y), both | {"sigma": math.inf}),
        (TypeError, "sigma must be a float or a tensor, got bool", (x, y), both | {"sigma": True}),
        (TypeError, "sigma must be a float or a tensor, got str", (x, y), both | {"sigma": "1"}),
        (ValueError, r"sigma must have shape \[\] = \(\), got \(2,\)", (x, y),
         both | {"sigma": torch.zeros(2)}),
        (TypeError, "sigma must be of dtype .* got int64", (x, y),
         both | {"sigma": torch.tensor(1)}),
        (ValueError, "sigma must be on cpu like", (x, y),
         both | {"sigma": torch.zeros((), device="meta")}),
        (ValueError, "impl must be one of", (x, y), {"impl": "cuda"}),
    ]  # fmt: skip
    for error, message, args, kwargs in cases:
        with pytest.raises(error, match=message):
            latent_distance(*args, **kwargs)
