"""Edit the changed parts of a large photograph again, in crops of it (`--detail crop`).

A model works with about one size of pictures. Its edit of a larger photograph is blurred when it is
enlarged, but it shows where the photograph changes, and how. So each changed part is edited again
in a crop, where the model sees more of the photograph's pixels. If the edit of a crop is not the
first edit with more detail, the first edit is kept there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from spotedit_kernels.select_tokens import Mode
from torch import Tensor

from ..judge.mask import as_mask, resized
from ..options.choices import Box
from ..pictures.composite import Placed, PlacedEdit, composite
from ..pictures.layers import Layers
from .boxes import Rectangle, box_in_crop, box_in_photo
from .crop_plan import MIN_GAIN, Plan, changed_tokens, mask_in_crop, plan_crops
from .editor import Edited, Editor, OnStep
from .errors import BadInput, Failure

MAX_DISAGREEMENT = 0.65  # see `disagreement`
_TIED_TO_PHOTO = {"height", "width", "mask_image"}  # arguments of the call that fit no crop


@dataclass(frozen=True)
class CropEdit:
    """What became of one crop.

    Attributes:
        plan: the changed part, and the crop around it.
        edited: its edit, or None if that failed.
        placed: the edit with its place in the photograph, or None if nothing was edited.
        disagreement: see `disagreement`; None if nothing was edited.
        problem: why the first edit was kept here, or None if the crop's edit is used.
    """

    plan: Plan
    edited: Edited | None = None
    placed: PlacedEdit | None = None
    disagreement: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Detailed(Edited):
    """The edit of a large photograph: the first edit, and the edits of crops.

    The attributes of `Edited` are those of the first edit, of the whole photograph. `seconds` is
    the duration of all edits.

    Attributes:
        crops: the crops that were edited.
        notes: sentences for people about the parts without a crop's edit.
        layers: what to put into the photograph, or None to put the first edit into it.
    """

    crops: tuple[CropEdit, ...] = ()
    notes: tuple[str, ...] = ()
    layers: Layers | None = None

    @property
    def placed(self) -> Placed:
        """The edits with their places in the photograph.

        Raises:
            ValueError: see `EditReport.placed`.
        """
        return self.report.placed(self.picture) if self.layers is None else self.layers


@dataclass(frozen=True)
class _Photo:
    """The photograph, its first edit, and the user's mask, bool [H, W] or None."""

    image: Image.Image
    first: Edited
    box: Box  # the part of the photograph that the first edit shows
    mask: Tensor | None
    mask_mode: Mode


def edit_in_crops(
    editor: Editor,
    image: Image.Image,
    instruction: str,
    first: Edited,
    *,
    seed: int = 0,
    mask: Any = None,
    mask_mode: Mode = "intersect",
    on_step: OnStep | None = None,
    on_crop: Callable[[int, int], object] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Detailed:
    """Edit what an edit has changed again, in crops of the photograph.

    A crop's edit is not used if it failed, raises doubts or disagrees with the first edit.

    Args:
        image: the photograph, RGB.
        first: what `editor.edit` returned for the same arguments.
        instruction, seed, mask, mask_mode, on_step, arguments: see `Editor.edit`.
        on_crop: called before the edit of every crop with its 0-based index and their number.
    """
    reason = _why_not(image, first, {**editor.settings.arguments, **(arguments or {})})
    if reason is not None:
        return Detailed(**vars(first), notes=(reason,))
    region, moved = first.report.region, first.report.moved
    box = first.report.source_box
    assert region is not None  # or else there was a reason
    assert box is not None
    edit = partial(
        editor.edit, instruction=instruction, seed=seed, on_step=on_step, arguments=arguments
    )
    pixels = None if mask is None else resized(as_mask(mask), (image.height, image.width))[0]
    photo = _Photo(image, first, box, pixels, mask_mode)
    plans, notes = plan_crops(region, moved, box, image.size, math.prod(first.picture.size))
    crops = []
    for index, plan in enumerate(plans):
        if on_crop is not None:
            on_crop(index, len(plans))
        crops.append(_edit_crop(edit, photo, plan))
    kept, placed = changed_tokens(region, moved), []
    for crop in crops:
        if crop.placed is not None and crop.problem is None:
            kept = kept & ~crop.plan.part
            placed.append(crop.placed)
        else:
            notes.append(f"{_place(crop.plan.crop)}: the first edit is kept: {crop.problem}")
    edits = [first, *(crop.edited for crop in crops if crop.edited is not None)]
    return Detailed(
        first.source,
        first.picture,
        first.report,
        sum(edit.seconds for edit in edits),
        tuple(crops),
        tuple(notes),
        Layers((PlacedEdit(first.picture, kept, box), *placed)),
    )


def _why_not(image: Image.Image, first: Edited, arguments: Mapping[str, Any]) -> str | None:
    """Say why no crop helps, or return None."""
    report = first.report
    num_pixels, num_model_pixels = math.prod(image.size), math.prod(first.picture.size)
    if num_pixels < MIN_GAIN**2 * num_model_pixels:
        why = (
            f"the photograph, {_in_words(image.size)}, is not much larger than the model's "
            f"{_in_words(first.picture.size)}"
        )
    elif report.misalignment is not None:
        why = f"the whole frame changed: {report.misalignment}"
    elif report.source_box is None:
        why = "the edit cannot be placed on the photograph"
    elif report.region is None or report.reason is not None:
        why = f"no region was found: {report.reason}"
    elif report.batch > 1:
        why = f"the call made {report.batch} pictures"
    elif not changed_tokens(report.region, report.moved).any():
        why = "nothing was edited"
    elif tied := _TIED_TO_PHOTO & arguments.keys():
        why = f"{', '.join(sorted(tied))} was given for the whole photograph"
    else:
        return None
    return f"no crop was edited: {why}"


def _edit_crop(edit: Callable[..., Edited], photo: _Photo, plan: Plan) -> CropEdit:
    """Edit a crop, and compare it with the first edit."""
    crop = plan.crop
    mask = mask_in_crop(plan.part, photo.box, crop, photo.image.size)
    if photo.mask is not None and photo.mask_mode != "union":
        mask &= photo.mask[crop.top : crop.bottom, crop.left : crop.right].numpy()
    mode = "replace" if photo.mask_mode == "replace" else "intersect"
    source = photo.image.crop(crop)
    try:
        edited = edit(source, mask=mask, mask_mode=mode)
    except (BadInput, Failure) as error:
        return CropEdit(plan, problem=str(error))
    report = edited.report
    if report.region is None or report.reason is not None:
        return CropEdit(plan, edited, problem=f"no region was found: {report.reason}")
    if report.source_box is None:
        return CropEdit(plan, edited, problem="its edit cannot be placed on it")
    if not report.region.any():
        return CropEdit(plan, edited, problem="nothing was edited in it")
    first_box = box_in_crop(photo.box, photo.image.size, crop)
    first = composite(source, PlacedEdit(photo.first.picture, plan.part, first_box))
    second = composite(source, PlacedEdit(edited.picture, report.region, report.source_box))
    scale = photo.first.picture.width / photo.image.width
    distance = disagreement(source, first, second, scale)
    problems = report.doubts
    if distance > MAX_DISAGREEMENT:
        problems.append(
            f"the crop's edit is another one (its distance from the first edit is {distance:.2f}; "
            f"at most {MAX_DISAGREEMENT} is accepted)"
        )
    box = box_in_photo(report.source_box, photo.image.size, crop)
    placed = PlacedEdit(edited.picture, report.region, box)
    return CropEdit(plan, edited, placed, distance, "; ".join(problems) or None)


def disagreement(
    source: Image.Image, first: Image.Image, second: Image.Image, scale: float
) -> float:
    """Return how much two edits of a crop differ, relative to the larger change of the source.

    It is 0 if they are equal, and 1 if only one of them changes anything.

    Args:
        source, first, second: the crop, and both edits in it, of the same size.
        scale: the pictures are compared at this share of their size.
    """
    size = max(1, round(source.width * scale)), max(1, round(source.height * scale))
    before, one, other = (
        np.asarray(picture.resize(size, Image.Resampling.BOX), dtype=np.float32)
        for picture in (source, first, second)
    )
    change = max(np.linalg.norm(one - before), np.linalg.norm(other - before))
    return float(np.linalg.norm(one - other) / change) if change else 0.0


def _in_words(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _place(crop: Rectangle) -> str:
    return f"crop of {_in_words(crop.size)} at ({crop.left}, {crop.top})"
