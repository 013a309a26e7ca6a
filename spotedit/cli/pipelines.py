"""A pipeline to edit with: which device, where from, how it is timed."""

import argparse
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import spotedit

from ..pictures.files import OutputError
from . import MODELS
from .errors import BadInput, Failure

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def choose_device(name: str | None, offload: str) -> torch.device:
    """The named device, or the best one there is.

    Raises:
        BadInput: no such device here, or one that nothing can be offloaded from.
    """
    if name is None:
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        name = "cuda" if cuda else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise BadInput(f"--device {name}: {first}; expected one of this machine") from None
    if offload != "none" and device.type == "cpu":
        raise BadInput(f"--offload {offload} needs a GPU; on {device} leave it out")
    return device


def load(model: str, dtype: str | None, device: torch.device, offload: str) -> Any:
    """The pipeline named on the command line, on `device` or offloaded from it.

    Weights are read as safetensors only, and no code is fetched with them.

    Raises:
        BadInput: the model is of a class that `spotedit.enable` does not take.
        Failure: it cannot be found or read.
    """
    kind = DTYPES[dtype or ("float32" if device.type == "cpu" else "bfloat16")]
    if model == "tiny":
        from .. import tiny

        pipe = tiny.load(dtype=kind)
    else:
        pipe = _from_pretrained(model, kind)
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
def fitting_threads(model: str, device: torch.device) -> Iterator[None]:
    """Run the tiny editor with one PyTorch thread on a CPU; other models keep all threads.

    The tiny editor's operations are so short that several threads would mostly wait for each
    other, and where another process keeps a core busy they wait many times as long as they work.
    """
    if model != "tiny" or device.type != "cpu":
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def explained(device: torch.device) -> Iterator[None]:
    """Turn what a model may raise about its input or its memory into the command's errors.

    A file that cannot be written here is a failure: the work has begun.
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


def native(pipe: Any, image: Image.Image) -> Image.Image:
    """`image` with the area that the tiny editor was trained on, in whole tokens."""
    from ..tiny.pipeline import NATIVE_SIZE

    token = 2 * pipe.vae_scale_factor
    scale = NATIVE_SIZE / (image.width * image.height) ** 0.5
    width, height = (max(1, round(side * scale / token)) * token for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def call_given(args: argparse.Namespace) -> dict[str, Any]:
    """Options of the pipeline's call that the command line names."""
    options = {
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance,
        "true_cfg_scale": args.true_cfg,
        "negative_prompt": args.negative_prompt,
    }
    return {name: value for name, value in options.items() if value is not None}


def timed(pipe: Any, seed: int, options: Mapping[str, Any]) -> tuple[Image.Image, float]:
    """One call: its first picture and its seconds, text encoding and decoding included."""
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    picture = pipe(**options, generator=generator).images[0]
    return picture, time.perf_counter() - start
