"""Bad input raises an error that says what was expected; it never gives a wrong picture."""

import numpy as np
import pytest
import torch
from small_kontext import (
    LATENT_CHANNELS,
    NUM_TOKENS,
    STOCK_SIZE,
    TOKEN_CHANNELS,
    call_arguments,
)

import spotedit


def test_the_error_for_an_unsupported_pipeline_lists_the_supported_ones():
    with pytest.raises(
        ValueError, match=r"dict is not supported; expected one of .*FluxKontextPipeline"
    ):
        spotedit.enable({})
    assert "FluxKontextPipeline" in spotedit.supported_pipelines()


def test_a_cache_on_the_transformer_is_refused_before_and_after_enable(pipe):
    from diffusers import FirstBlockCacheConfig

    spotedit.enable(pipe)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="disable_cache"):
        pipe(**call_arguments())
    spotedit.disable(pipe)
    with pytest.raises(ValueError, match="disable_cache"):
        spotedit.enable(pipe)
    assert type(pipe).__call__ is type(pipe).__mro__[0].__call__
    assert not hasattr(pipe, "_spotedit")


def test_context_parallelism_is_refused(pipe):
    for processor in pipe.transformer.attn_processors.values():
        processor._parallel_config = object()
    with pytest.raises(ValueError, match="context parallelism"):
        spotedit.enable(pipe)


def test_an_ip_adapter_is_refused(pipe):
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    pipe.transformer.transformer_blocks[0].attn.set_processor(FluxIPAdapterAttnProcessor(32, 12))
    with pytest.raises(ValueError, match="unload_ip_adapter"):
        spotedit.enable(pipe)


def test_a_mask_of_the_wrong_size_fails_before_the_first_step(pipe):
    steps = []

    def count_step(pipe, step, timestep, tensors):
        steps.append(step)
        return {}

    handle = spotedit.enable(pipe)
    handle.set_mask(np.ones((40, 64)))
    with pytest.raises(ValueError, match=r"mask is 40 x 64 .*expected .*48 x 64, 6 x 8"):
        pipe(**call_arguments(callback_on_step_end=count_step))
    assert not steps


def test_an_unknown_mask_mode_is_refused(pipe):
    with pytest.raises(ValueError, match="expected one of intersect, union, replace"):
        spotedit.enable(pipe).set_mask(np.ones((48, 64)), mode="only")


@pytest.mark.parametrize("mode", [None, "replace"])
def test_latents_that_are_not_finite_are_refused(pipe, mode):
    handle = spotedit.enable(pipe)
    if mode:
        handle.set_mask(np.ones((48, 64)), mode=mode)
    with pytest.raises(ValueError, match="step 0: the model's output is not finite"):
        pipe(**call_arguments(latents=torch.full((1, NUM_TOKENS, TOKEN_CHANNELS), torch.nan)))
    assert torch.isfinite(pipe(**call_arguments()).images).all()


def test_no_other_implementation_stands_in_for_triton(pipe, monkeypatch):
    monkeypatch.setattr("spotedit_kernels.impl.HAS_TRITON", False)
    spotedit.enable(pipe, impl="triton")
    with pytest.raises(RuntimeError, match="impl='triton' was asked for, but Triton is not"):
        pipe(**call_arguments())


def test_the_error_for_an_unknown_argument_names_it(pipe):
    spotedit.enable(pipe)
    with pytest.raises(TypeError, match="promt_embeds"):
        pipe(promt_embeds=None)


def test_a_modular_pipeline_whose_components_are_not_loaded_is_refused():
    from diffusers import FluxKontextModularPipeline

    with pytest.raises(ValueError, match="load_components"):
        spotedit.enable(FluxKontextModularPipeline())


def test_a_pipeline_without_a_vae_needs_a_judge_that_uses_none(pipe):
    latents = torch.randn(1, LATENT_CHANNELS, 12, 16)  # 6 x 8 tokens of 2 x 2 latent positions
    arguments = call_arguments(image=latents, **STOCK_SIZE)
    pipe.vae = None
    pipe(**arguments)
    with pytest.raises(ValueError, match=r'no VAE.*judge="cosine"'), spotedit.enable(pipe):
        pipe(**arguments)
    with spotedit.enable(pipe, judge="cosine") as handle:
        pipe(**arguments)
    assert any(step["kind"] == "spot" for step in handle.report.steps)
