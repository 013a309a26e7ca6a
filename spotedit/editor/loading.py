"""Load the pipeline that edits, and choose its device."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import spotedit

from ..pictures.files import OutputError
from .errors import BadInput, Failure
from .settings import MODELS

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def choose_device(name: str | None, offload: str) -> torch.device:
    """Return the device called `name`, or the best one of this machine if `name` is None.

    Raises:
        BadInput: this machine has no such device, or the device is a CPU and `offload` is set.
    """
    if name is None:
        name = _best_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = str(error).splitlines()[0]
        raise BadInput(
            f"--device {name}: {first_line}; expected a device of this machine"
        ) from None
    if offload != "none" and device.type == "cpu":
        raise BadInput(f"--offload {offload} needs a GPU; leave it out on {device}")
    return device


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load(model: str, dtype: str | None, device: torch.device, offload: str) -> Any:
    """Load the pipeline `model` onto `device`.

    If `offload` is set, the weights stay in host memory and are moved to `device` while they are
    used. Only safetensors weights are read, and no code is downloaded with them.

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
            f"--model {model}: no such folder, and it is not a model id of the Hugging Face Hub; "
            f"expected {MODELS}"
        )
    try:
        name = DiffusionPipeline.load_config(model)["_class_name"]
    except Exception as error:  # a missing file or network raises various exceptions
        raise _unreadable(model, error) from error
    if name not in spotedit.supported_pipelines():
        supported = ", ".join(spotedit.supported_pipelines())
        raise BadInput(f"--model {model} is a {name}; expected one of {supported}")
    try:
        return DiffusionPipeline.from_pretrained(model, dtype=dtype, use_safetensors=True)
    except Exception as error:
        raise _unreadable(model, error) from error


def _unreadable(model: str, error: Exception) -> Failure:
    lines = str(error).splitlines()
    first_line = lines[0] if lines else type(error).__name__
    return Failure(
        f"--model {model} cannot be loaded: {first_line}\nExpected {MODELS}. Loading from the "
        "Hugging Face Hub needs network access; some models also need an accepted licence and "
        "`hf auth login`."
    )


@contextmanager
def one_thread_for_tiny(model: str, device: torch.device) -> Iterator[None]:
    """Use one PyTorch thread inside the block if the tiny editor runs on a CPU.

    Other models keep all threads. The tiny editor's operations are so short that several threads
    would mostly wait for each other. If another process keeps a core busy, they spend far more time
    waiting than working.
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
    """Turn exceptions of the work inside the block into the errors that a command reports.

    An `OutputError` becomes a `Failure` (exit status 1). Outside this block, while the options are
    checked, an `OutputError` means a wrong path (exit status 2).
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


def image_to_edit(pipe: Any, model: str, image: Image.Image) -> Image.Image:
    """Return `image` at the size to edit.

    The tiny editor works only near the number of pixels that it was trained on. Other models get
    the image unchanged.
    """
    return resize_to_native(pipe, image) if model == "tiny" else image


def resize_to_native(pipe: Any, image: Image.Image) -> Image.Image:
    """Resize `image` to about the number of pixels that the tiny editor was trained on.

    Its sides become whole numbers of tokens.
    """
    from ..tiny.pipeline import NATIVE_SIZE

    token = 2 * pipe.vae_scale_factor  # side of a token in pixels
    scale = NATIVE_SIZE / (image.width * image.height) ** 0.5
    width, height = (max(1, round(side * scale / token)) * token for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
