"""Assemble the trained parts into one pipeline folder of safetensors, in float16."""

import hashlib
import shutil
from pathlib import Path

import torch

from spotedit.tiny.pipeline import TinyKontextPipeline

from .architecture import build_scheduler, build_tokenizer, build_vae
from .editor import Editor


def trained_state(checkpoint: Path, last: bool = False) -> dict[str, torch.Tensor]:
    """Return a checkpoint's state dict with the averaged parameters, or with the `last` ones."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return state["model"] if last else {**state["model"], **state["averaged"]}


def export(
    folder: Path,
    out: Path,
    dual: int = 1,
    single: int = 7,
    editor_last: bool = False,
    init: Path | None = None,
) -> None:
    """Write the checkpoints of a training run as a pipeline folder; print file sizes and hashes.

    Args:
        folder: the folder of the training run.
        out: the pipeline folder; an existing one is replaced.
        dual, single: numbers of dual-stream and single-stream blocks.
        editor_last: take the editor's latest weights instead of their running average.
        init: pipeline folder from which to take a part that was not trained in `folder`.

    Raises:
        FileNotFoundError: there is no autoencoder in `folder` or `init`.
    """
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    vae, editor = build_vae(), Editor(len(tokenizer), dual=dual, single=single)
    start = init and TinyKontextPipeline.from_pretrained(init, local_files_only=True)
    if (folder / "vae.pt").exists():
        vae.load_state_dict(trained_state(folder / "vae.pt"))
    elif start:
        vae.load_state_dict(start.vae.state_dict())
    else:
        raise FileNotFoundError(f"no vae.pt in {folder}: train the stage `vae`, or give --init")
    if (folder / "editor.pt").exists():
        editor.load_state_dict(trained_state(folder / "editor.pt", editor_last))
    elif start:
        editor.copy_from(start)
    pipe = TinyKontextPipeline(
        scheduler=build_scheduler(),
        vae=vae,
        text_encoder=editor.text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=editor.text_encoder_2,
        tokenizer_2=tokenizer,
        transformer=editor.transformer,
    ).to(torch.float16)
    temporary = out.with_name(out.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    pipe.save_pretrained(temporary, safe_serialization=True)
    for file in temporary.rglob("*.safetensors"):
        file.chmod(0o644)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
    for file in sorted(out.rglob("*.safetensors")):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        print(f"{digest}  {file.relative_to(out)}  {file.stat().st_size / 2**20:.2f} MiB")
