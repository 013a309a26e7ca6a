"""Decode latents as a pipeline itself does at the end of its call."""

from typing import Any

from torch import Tensor


def vae_of(pipe: Any) -> Any:
    """Return the pipeline's VAE.

    Raises:
        ValueError: it has none.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None:
        raise ValueError(
            f"{type(pipe).__name__} has no VAE, which its pictures are decoded with; expected one: "
            "load the pipeline with its VAE"
        )
    return vae


def decode_with_vae(pipe: Any, latents: Tensor) -> Tensor:
    """Decode latents [B, c, h, w] with the pipeline's VAE, in the VAE's dtype and with its hooks.

    Returns:
        Pictures [B, 3, H, W] in -1..1.

    Raises:
        ValueError: the pipeline has no VAE.
    """
    # imported here so that `import spotedit` stays fast
    from diffusers.utils.torch_utils import get_module_execution_device

    vae = vae_of(pipe)
    latents = latents.to(get_module_execution_device(vae), vae.dtype)
    return vae.decode(latents, return_dict=False)[0]
