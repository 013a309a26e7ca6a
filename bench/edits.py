"""Edits with the tiny editor, and what can be seen of them from outside."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

import spotedit.tiny
from spotedit.tiny.scenes import KINDS, Scene, make_scene

FIRST_SEED = 0  # of the scenes reported; settings are to be chosen on others
AREAS = (0.02, 0.6)  # of the picture, that edited objects take
WEIGHTS = Path(str(files("spotedit.tiny")))


def load(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """The tiny editor, silent."""
    pipe = spotedit.tiny.load(dtype, device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def heldout(seed: int, size: int = 128) -> Scene:
    """A scene on a photograph that the editor was not trained on; its kind follows the seed."""
    return make_scene(seed, kind=KINDS[seed % len(KINDS)], size=size, split="heldout")


def varied(seed: int, size: int = 128) -> Scene:
    """The same with an edited object of any size, log-uniform over `AREAS`.

    What "add" adds keeps the size that its instruction names.
    """
    kind = KINDS[seed % len(KINDS)]
    low, high = np.log(AREAS)
    area = float(np.exp(np.random.default_rng([5, seed]).uniform(low, high)))
    own = None if kind == "add" else area
    return make_scene(seed, kind=kind, size=size, split="heldout", area=own)


def arguments(scene: Scene, seed: int, steps: int, guidance: float = 1.0) -> dict[str, Any]:
    """Keyword arguments of the pipeline's call; the generator is new, its noise the seed's.

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
    """uint8 [H, W, 3] through the VAE and back: the best that a reused token can look."""
    with torch.no_grad():
        latents = pipe.vae.encode(_pixels(pipe, picture)).latent_dist.mode()
        decoded = pipe.vae.decode(latents).sample
    still = decoded[:, :, 0] if decoded.ndim == 5 else decoded
    return np.asarray(pipe.image_processor.postprocess(still)[0])


def _pixels(pipe: Any, picture: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] as the VAE takes it, [1, 3, H, W], or [1, 3, 1, H, W] for a video VAE."""
    pixels = pipe.image_processor.preprocess(picture[None] / np.float32(255))
    pixels = pixels[:, :, None] if isinstance(pipe.vae, AutoencoderKLQwenImage) else pixels
    return pixels.to(pipe.device, pipe.vae.dtype)


def encode(pipe: Any, picture: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] as the pipeline's condition tokens, [1, N, C]."""
    with torch.no_grad():
        latents = pipe._encode_vae_image(_pixels(pipe, picture), None)
    return pipe._pack_latents(latents, 1, latents.shape[1], *latents.shape[-2:])


def decode(pipe: Any, tokens: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Packed tokens [1, N, C] as a picture, uint8 [H, W, 3]; `size` is (height, width)."""
    latents = pipe._unpack_latents(tokens, *size, pipe.vae_scale_factor)
    latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    with torch.no_grad():
        decoded = pipe.vae.decode(latents.to(pipe.vae.dtype)).sample
    return np.asarray(pipe.image_processor.postprocess(decoded)[0])


class Trace:
    """The latents that one call went through.

    Attributes:
        source: packed condition tokens y [B, N, C].
        states: x_t [B, N, C] at the start of every step, and the result of the last.
        sigmas: of the states, 1 (noise) to 0 (image).
    """

    def __init__(self) -> None:
        self.source = torch.empty(0)
        self.states: list[Tensor] = []
        self.sigmas: list[float] = []

    def estimates(self) -> list[Tensor]:
        """X0-hat = x_t - sigma v of every step, with the velocity that Euler's step was made of."""
        steps = zip(self.states, self.states[1:], self.sigmas, self.sigmas[1:], strict=False)
        return [x - sigma * (x - after) / (sigma - low) for x, after, sigma, low in steps]


@contextmanager
def traced(pipe: Any) -> Iterator[tuple[Trace, dict[str, Any]]]:
    """Record one call inside the block; it must be given the arguments in the dict."""
    trace = Trace()

    def before(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if not trace.states:
            noise, trace.source = kwargs["hidden_states"].chunk(2, dim=1)  # their grids are equal
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
