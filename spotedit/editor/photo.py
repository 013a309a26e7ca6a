"""Edit the picture in a user's file, and write the result: what `edit` and `batch` do alike."""

from pathlib import Path
from typing import Literal

from PIL import Image
from spotedit_kernels.select_tokens import Mode
from torch import Tensor

from ..judge.mask import as_mask, same_aspect
from ..pictures.images import load_image, load_mask, save_image
from .crop import Detailed, edit_in_crops
from .editor import Edited, Editor, OnStep
from .errors import BadInput
from .keep import keep_original

Keep = Literal["original", "model"]
Detail = Literal["model", "crop"]


def edit_photo(
    editor: Editor,
    path: Path,
    instruction: str,
    *,
    seed: int = 0,
    mask: Path | None = None,
    mask_mode: Mode = "intersect",
    detail: Detail = "model",
    on_step: OnStep | None = None,
) -> tuple[Edited, list[str]]:
    """Edit the picture in a file. `write_photo` writes the result.

    Args:
        path: the user's file.
        instruction, seed, mask_mode, on_step: see `Editor.edit`.
        mask: file of a mask with the picture's aspect ratio.
        detail: see `PhotoOptions.detail`.

    Returns:
        The edit, and sentences for people about what could not be done as asked.

    Raises:
        ImageError: the picture or the mask cannot be read.
        BadInput: the mask does not fit the picture, or the pipeline refused the call.
        Failure: out of memory.
    """
    image = load_image(path)
    pixels = None if mask is None else load_mask_of(mask, image, path)
    edited = editor.edit(
        image, instruction, seed=seed, mask=pixels, mask_mode=mask_mode, on_step=on_step
    )
    if detail == "model":
        return edited, []
    detailed = edit_in_crops(
        editor,
        image,
        instruction,
        edited,
        seed=seed,
        mask=pixels,
        mask_mode=mask_mode,
        on_step=on_step,
    )
    return detailed, list(detailed.notes)


def write_photo(
    path: Path, edited: Edited, out: Path, keep: Keep = "original", force: bool = False
) -> list[str]:
    """Write an edit of the picture in the file `path` to the file `out`.

    Args:
        keep: see `PhotoOptions.keep`.
        force: overwrite `out`.

    Returns:
        Sentences for people about what of the original could not be kept.

    Raises:
        ImageError: the original cannot be read.
        OutputError: see `save_image`.
    """
    if keep == "original":
        return keep_original(path, edited, out, force)
    save_image(edited.picture, out, force)
    if isinstance(edited, Detailed) and edited.layers is not None:
        return ["the picture has the model's size: --detail crop needs --keep original"]
    return []


def load_mask_of(path: Path, image: Image.Image, image_path: Path) -> Tensor:
    """Load the mask at `path` for a picture.

    Raises:
        ImageError: the mask cannot be read.
        BadInput: its aspect ratio differs from that of `image`, or its values cannot be a mask's.
    """
    picture = load_mask(path)
    if not same_aspect((picture.height, picture.width), (image.height, image.width)):
        raise BadInput(
            f"{path} is {picture.width} x {picture.height} pixels; expected the aspect ratio "
            f"of {image_path}, {image.width} x {image.height}"
        )
    try:
        return as_mask(picture)
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from error
