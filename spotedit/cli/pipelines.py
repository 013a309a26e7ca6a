"""Load the pipeline that a command edits with, choose its device, and time its calls."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import spotedit

from ..pictures.files import OutputError
from ..pictures.images import load_image
from .errors import BadInput, Failure
from .options import MODELS

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def choose_device(name: str | None, offload: str) -> torch.device:
    """Return the named device, or the best one of this machine.

    Raises:
        BadInput: this machine has no such device, or nothing can be offloaded from it.
    """
    if name is None:
        name = _best_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise BadInput(f"--device {name}: {first}; expected one of this machine") from None
    if offload != "none" and device.type == "cpu":
        raise BadInput(f"--offload {offload} needs a GPU; on {device} leave it out")
    return device


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load(model: str, dtype: str | None, device: torch.device, offload: str) -> Any:
    """Load the pipeline `model` onto `device`, or offload it from there.

    Only safetensors weights are read, and no code is fetched with them.

    Raises:
        BadInput: `spotedit.enable` does not support the pipeline's class.
        Failure: the model cannot be found or read.
    """
    default_dtype = "float32" if device.type == "cpu" else "bfloat16"
    torch_dtype = DTYPES[dtype or default_dtype]
    if model == "tiny":
        from .. import tiny

        pipe = tiny.load(dtype=torch_dtype)
    else:
        pipe = _from_pretrained(model, torch_dtype)
    if offload == "none":
        pipe.to(device)
    elif offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "group":
        pipe.enable_group_offload(
            onload_device=device, offload_type="leaf_level", use_stream=device.type == "cuda"
        )
    else:
        pipe.enable_sequential_cpu_offload(device=device)
    return pipe


def _from_pretrained(model: str, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    if not Path(model).is_dir() and (Path(model).is_absolute() or model.count("/") != 1):
        raise BadInput(
            f"--model {model}: no such folder, and not the id of a hub; expected {MODELS}"
        )
    try:
        name = DiffusionPipeline.load_config(model)["_class_name"]
    except Exception as error:  # what libraries raise for a missing file or network varies
        raise _unreadable(model, error) from error
    if name not in spotedit.supported_pipelines():
        supported = ", ".join(spotedit.supported_pipelines())
        raise BadInput(f"--model {model} is a {name}; expected one of {supported}")
    try:
        return DiffusionPipeline.from_pretrained(model, dtype=dtype, use_safetensors=True)
    except Exception as error:
        raise _unreadable(model, error) from error


def _unreadable(model: str, error: Exception) -> Failure:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return Failure(
        f"--model {model} cannot be loaded: {first}\nExpected {MODELS}. A hub needs the network, "
        "and for some models an accepted licence and `hf auth login`."
    )


@contextmanager
def fit_threads(model: str, device: torch.device) -> Iterator[None]:
    """Run the tiny editor on a CPU with one PyTorch thread; other models keep all threads.

    The tiny editor's operations are so short that several threads would mostly wait for each
    other. If another process keeps a core busy, they wait many times as long as they work.
    """
    if model != "tiny" or device.type != "cpu":
        yield
        return
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


@contextmanager
def explain_errors(device: torch.device) -> Iterator[None]:
    """Turn what a model raises about its input or its memory into the command's errors.

    A file that cannot be written is a `Failure` here, because the work has begun.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Failure(
            f"out of memory on {device}; use --offload model, or group for the least memory"
        ) from error
    except OutputError as error:
        raise Failure(str(error)) from error
    except ValueError as error:
        raise BadInput(str(error)) from error


def prepared(pipe: Any, model: str, image: Image.Image) -> Image.Image:
    """Return `image` at the size to edit: the tiny editor has one area, other models take any."""
    return native(pipe, image) if model == "tiny" else image


def native(pipe: Any, image: Image.Image) -> Image.Image:
    """Return `image` with the area that the tiny editor was trained on, in whole tokens."""
    from ..tiny.pipeline import NATIVE_SIZE

    token = 2 * pipe.vae_scale_factor  # side of a token in pixels
    scale = NATIVE_SIZE / (image.width * image.height) ** 0.5
    width, height = (max(1, round(side * scale / token)) * token for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def load_pairs(pairs: Sequence[str]) -> list[tuple[Image.Image, str]]:
    """Load the pictures of PICTURE INSTRUCTION pairs.

    Raises:
        BadInput: the last picture has no instruction.
        ImageError: a picture cannot be read.
    """
    if len(pairs) % 2:
        raise BadInput(f"{pairs[-1]}: no instruction; expected PICTURE INSTRUCTION pairs")
    paths, instructions = pairs[::2], pairs[1::2]
    return [(load_image(path), text) for path, text in zip(paths, instructions, strict=True)]


def timed(pipe: Any, seed: int, options: Mapping[str, Any]) -> tuple[Image.Image, float]:
    """Call the pipeline.

    Returns:
        The call's first picture, and its seconds with text encoding and decoding.
    """
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    picture = pipe(**options, generator=generator).images[0]
    return picture, time.perf_counter() - start
