"""A pipeline's VAE: decode with it, and tell whether it is still the same."""

from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdRef


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


def state_of_vae(pipe: Any) -> tuple[Any, ...]:
    """Return what differs after the VAE was replaced, cast, told to tile, or given other weights.

    Weights that were written through `.data`, which PyTorch does not count, are not noticed.
    """
    # not the view that a running call may see
    vae = vars(pipe).get("vae", getattr(pipe, "vae", None))
    vae = getattr(vae, "_orig_mod", vae)  # what was compiled
    if not isinstance(vae, nn.Module):
        return (vae,)
    options = tuple(
        (name, value)
        for name, value in sorted(vars(vae).items())
        if isinstance(value, bool | int | float) and not name.startswith("_")
    )
    weights = [*vae.parameters(), *vae.buffers()]
    # Offloading replaces buffers, and the parameters that it moves to the meta device.
    parameters = tuple(WeakIdRef(weight) for weight in vae.parameters() if not weight.is_meta)
    num_writes = sum(weight._version for weight in weights if not weight.is_inference())
    return vae, options, parameters, num_writes, getattr(vae, "dtype", None)
