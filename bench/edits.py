"""Make edits with the tiny editor, and record the latents that they go through."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

import spotedit.tiny
from spotedit.tiny.scenes import KINDS, Scene, make_scene

FIRST_SEED = 0  # first scene of reported figures; choose settings on other scenes
AREAS = (0.02, 0.6)  # smallest and largest share of the picture that an edited object covers
WEIGHTS = Path(str(files("spotedit.tiny")))


def load(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Load the tiny editor, without its progress bar."""
    pipe = spotedit.tiny.load(dtype, device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def heldout(seed: int, size: int = 128) -> Scene:
    """Make a scene on a photograph that the editor has not seen; its kind follows the seed."""
    return make_scene(seed, kind=KINDS[seed % len(KINDS)], size=size, split="heldout")


def varied(seed: int, size: int = 128) -> Scene:
    """Make such a scene with an edited object of any size, log-uniform over `AREAS`.

    An object that is added has the size that the instruction names.
    """
    kind = KINDS[seed % len(KINDS)]
    area = None
    if kind != "add":
        area = float(np.exp(np.random.default_rng([5, seed]).uniform(*np.log(AREAS))))
    return make_scene(seed, kind=kind, size=size, split="heldout", area=area)


def arguments(scene: Scene, seed: int, steps: int, guidance: float = 1.0) -> dict[str, Any]:
    """Return keyword arguments of the pipeline's call, with a new generator of that seed.

    With a `guidance` above 1 the transformer also runs with an empty prompt.
    """
    height, width = scene.mask.shape
    guided = {"true_cfg_scale": guidance, "negative_prompt": ""} if guidance > 1 else {}
    return {
        "image": scene.source_image,
        "prompt": scene.instruction,
        "height": height,
        "width": width,
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(seed),
        **guided,
    }


def round_trip(pipe: Any, picture: np.ndarray) -> np.ndarray:
    """Pass a picture, uint8 [H, W, 3], through the VAE and back.

    A reused token cannot look better than this.
    """
    with torch.no_grad():
        latents = pipe.vae.encode(_pixels(pipe, picture)).latent_dist.mode()
        decoded = pipe.vae.decode(latents).sample
    if decoded.ndim == 5:  # a video VAE: its only frame
        decoded = decoded[:, :, 0]
    return np.asarray(pipe.image_processor.postprocess(decoded)[0])


def _pixels(pipe: Any, picture: np.ndarray) -> Tensor:
    """Return a picture, uint8 [H, W, 3], as [1, 3, H, W], or [1, 3, 1, H, W] for a video VAE."""
    pixels = pipe.image_processor.preprocess(picture[None] / np.float32(255))
    if isinstance(pipe.vae, AutoencoderKLQwenImage):
        pixels = pixels[:, :, None]
    return pixels.to(pipe.device, pipe.vae.dtype)


def encode(pipe: Any, picture: np.ndarray) -> Tensor:
    """Encode a picture, uint8 [H, W, 3], as the pipeline's condition tokens, [1, N, C]."""
    with torch.no_grad():
        latents = pipe._encode_vae_image(_pixels(pipe, picture), None)
    return pipe._pack_latents(latents, 1, latents.shape[1], *latents.shape[-2:])


def decode(pipe: Any, tokens: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Decode packed tokens [1, N, C] to a picture, uint8 [H, W, 3]; `size` is (height, width)."""
    latents = pipe._unpack_latents(tokens, *size, pipe.vae_scale_factor)
    latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    with torch.no_grad():
        decoded = pipe.vae.decode(latents.to(pipe.vae.dtype)).sample
    return np.asarray(pipe.image_processor.postprocess(decoded)[0])


class Trace:
    """Holds the latents that one call went through.

    Attributes:
        source: packed condition tokens y [B, N, C].
        states: x_t [B, N, C] at the start of every step, and the result of the last step.
        sigmas: sigma of each state, from 1 (noise) to 0 (image).
    """

    def __init__(self) -> None:
        self.source = torch.empty(0)
        self.states: list[Tensor] = []
        self.sigmas: list[float] = []

    def estimates(self) -> list[Tensor]:
        """Return the clean estimate x_t - sigma v of every step.

        The velocity v comes from Euler's step, x_next = x_t - (sigma - sigma_next) v.
        """
        states, sigmas = pairwise(self.states), pairwise(self.sigmas)
        return [
            x - sigma * (x - x_next) / (sigma - sigma_next)
            for (x, x_next), (sigma, sigma_next) in zip(states, sigmas, strict=False)
        ]


@contextmanager
def traced(pipe: Any) -> Iterator[tuple[Trace, dict[str, Any]]]:
    """Record one call inside the block; pass it the keyword arguments in the dict."""
    trace = Trace()

    def before(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if not trace.states:
            # noise and condition have grids of equal size
            noise, trace.source = kwargs["hidden_states"].chunk(2, dim=1)
            trace.states.append(noise)
            trace.sigmas = pipe.scheduler.sigmas.tolist()

    def after(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict:
        trace.states.append(tensors["latents"])
        return {}

    hook = pipe.transformer.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield trace, {"callback_on_step_end": after}
    finally:
        hook.remove()
