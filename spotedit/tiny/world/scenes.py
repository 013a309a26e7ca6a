"""Make scenes of the toy world: a source picture, an instruction, and a picture that obeys it.

What the instruction leaves open, such as a shade, a build or the exact place, is drawn at random.
So the target is one of many valid pictures. `Scene.fit` finds the valid one that is nearest to an
edited picture.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .edits import CASES, LOCAL_KINDS, WHOLE_KINDS, choice
from .fit import Fit, Open, nearest_valid
from .landscape import BUSY_GROUNDS, random_landscape
from .picture import World, render

_SHARES = {
    "recolour": 0.14, "texture": 0.06, "remove": 0.18, "replace": 0.18, "add": 0.19, "move": 0.11,
    "night": 0.03, "winter": 0.03, "autumn": 0.03, "sepia": 0.025, "zoom": 0.025,
}  # fmt: skip
KINDS = tuple(_SHARES)
SPLITS = ("train", "easy", "hard")
_KINDS_OF_CASE = {
    "near colour": ("recolour",),
    "small": ("recolour", "remove", "add", "replace", "move"),
    "thin": ("recolour", "remove", "add", "move"),
    "shadow": ("remove", "move"),
    "texture": ("texture",),
    "busy": ("remove", "move", "replace"),
}
_HARD_SHARE = {"train": 0.35, "easy": 0.0, "hard": 1.0}
_STRONG_SHADOWS = (0.4, 0.6)


@dataclass(frozen=True)
class Scene:
    """A source picture, an instruction, and a picture that obeys it.

    Attributes:
        source, target: uint8 [H, W, 3].
        instruction: the prompt.
        mask: bool [H, W], True where source and target differ.
        kind: one of `KINDS`.
        case: one of `CASES` for a hard edit, else "".
        before, after: the worlds that source and target show.
        opens: the numbers that the instruction leaves open in `after`.
    """

    source: np.ndarray
    target: np.ndarray
    instruction: str
    mask: np.ndarray
    kind: str
    case: str
    before: World
    after: World
    opens: tuple[Open, ...]

    @property
    def source_image(self) -> Image.Image:
        return Image.fromarray(self.source)

    @property
    def target_image(self) -> Image.Image:
        return Image.fromarray(self.target)

    def fit(self, picture: np.ndarray) -> Fit:
        """Find the valid picture that is nearest to an edited one.

        Args:
            picture: uint8 [H, W, 3], of the scene's size.

        Raises:
            ValueError: the picture has another shape or dtype.
        """
        if picture.shape != self.source.shape or picture.dtype != np.uint8:
            raise ValueError(
                f"picture is {picture.dtype} {picture.shape}; expected uint8 {self.source.shape}"
            )
        return nearest_valid(picture, self.source, self.after, self.opens)


def make_scene(seed: int, kind: str | None = None, size: int = 256, split: str = "easy") -> Scene:
    """Make one scene; equal arguments give equal scenes.

    Args:
        seed: any non-negative integer. The splits draw from separate streams.
        kind: one of `KINDS`; None draws one from the seed.
        size: side in pixels, a multiple of 16.
        split: "easy"; "hard", with near colours, objects of about one token, thin lines, shadows
            and reflections, slight changes of texture, or busy ground; or "train", with both.

    Raises:
        ValueError: the kind or the split is unknown, the hard split does not have this kind, or
            the size is not a multiple of 16.
    """
    if size < 16 or size % 16:
        raise ValueError(f"size is {size}; expected a multiple of 16 pixels")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; expected one of {KINDS}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {SPLITS}")
    cases = [case for case in CASES if kind is None or kind in _KINDS_OF_CASE[case]]
    if split == "hard" and not cases:
        raise ValueError(f"the hard split has no {kind!r}; expected one of {tuple(LOCAL_KINDS)}")
    rng = np.random.default_rng([SPLITS.index(split), seed])
    is_hard = bool(cases) and rng.random() < _HARD_SHARE[split]
    makers = LOCAL_KINDS | WHOLE_KINDS
    while True:  # until a landscape has room for the edit
        case = choice(rng, cases) if is_hard else ""
        kinds = _KINDS_OF_CASE[case] if is_hard else KINDS
        shares = None if is_hard else list(_SHARES.values())
        edit_kind = kind or str(rng.choice(kinds, p=shares))
        land = random_landscape(rng)
        if case == "busy":
            land = replace(land, ground=choice(rng, BUSY_GROUNDS))
        elif case == "shadow":
            land = replace(land, shadow=(float(rng.uniform(*_STRONG_SHADOWS)), land.shadow[1]))
        edit = makers[edit_kind](rng, land, case)
        if edit is not None:
            break
    source, target = render(edit.before, size), render(edit.after, size)
    mask = (source != target).any(axis=-1)
    return Scene(
        source, target, edit.instruction, mask, edit_kind, case,
        edit.before, edit.after, edit.opens,
    )  # fmt: skip
