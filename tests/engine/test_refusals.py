"""Bad input: a clear error that says what was expected and how to get it, never a wrong picture."""

import numpy as np
import pytest
import torch
from small_kontext import call_arguments

import spotedit


def test_unsupported_pipeline_lists_the_supported():
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


def test_ip_adapter_is_refused(pipe):
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    pipe.transformer.transformer_blocks[0].attn.set_processor(FluxIPAdapterAttnProcessor(32, 12))
    with pytest.raises(ValueError, match="unload_ip_adapter"):
        spotedit.enable(pipe)


def test_a_mask_of_the_wrong_size_fails_before_the_first_step(pipe):
    steps = []
    handle = spotedit.enable(pipe)
    handle.set_mask(np.ones((40, 64)))
    with pytest.raises(ValueError, match=r"mask is 40 x 64 .*expected .*48 x 64, 6 x 8"):
        pipe(**call_arguments(callback_on_step_end=lambda *a: steps.append(1) or {}))
    assert not steps


def test_an_unknown_mask_mode(pipe):
    with pytest.raises(ValueError, match="expected one of intersect, union, replace"):
        spotedit.enable(pipe).set_mask(np.ones((48, 64)), mode="only")


@pytest.mark.parametrize("mode", [None, "replace"])
def test_latents_that_are_not_finite(pipe, mode):
    handle = spotedit.enable(pipe)
    if mode:
        handle.set_mask(np.ones((48, 64)), mode=mode)
    with pytest.raises(ValueError, match="step 0: the latents are not finite"):
        pipe(**call_arguments(latents=torch.full((1, 48, 16), torch.nan)))
    assert torch.isfinite(pipe(**call_arguments()).images).all()


def test_triton_is_not_silently_replaced(pipe, monkeypatch):
    monkeypatch.setattr("spotedit_kernels.impl.HAS_TRITON", False)
    spotedit.enable(pipe, impl="triton")
    with pytest.raises(RuntimeError, match="impl='triton' was asked for, but Triton is not"):
        pipe(**call_arguments())


def test_a_wrong_argument_of_the_call_names_it(pipe):
    spotedit.enable(pipe)
    with pytest.raises(TypeError, match="promt_embeds"):
        pipe(promt_embeds=None)


def test_a_modular_pipeline_before_its_components_are_loaded():
    from diffusers import FluxKontextModularPipeline

    with pytest.raises(ValueError, match="load_components"):
        spotedit.enable(FluxKontextModularPipeline())


def test_a_pipeline_without_a_vae_has_the_other_judges(pipe):
    size = {"height": 48, "width": 64, "max_area": 48 * 64}
    given = call_arguments(image=torch.randn(1, 4, 12, 16), **size)
    pipe.vae = None
    pipe(**given)
    with pytest.raises(ValueError, match=r'no VAE.*judge="cosine"'), spotedit.enable(pipe):
        pipe(**given)
    with spotedit.enable(pipe, judge="cosine") as handle:
        pipe(**given)
    assert any(step["kind"] == "spot" for step in handle.report.steps)
