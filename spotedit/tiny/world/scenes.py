"""Scenes of the toy world with a known truth: a picture, an instruction, and what obeys it.

What an instruction leaves open (a shade, a build, the exact place) is drawn at random, so one
target of many valid ones is shown; `Scene.fit` finds the valid picture that is nearest to an
edited one.
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
        mask: bool [H, W], True where the two differ.
        kind: one of `KINDS`.
        case: one of `CASES` where the edit is a hard one, else "".
        before, after: what the two pictures show.
        opens: what the instruction leaves open in `after`.
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
        """Find the valid picture nearest to `picture`, uint8 [H, W, 3] of the scene's size.

        Raises:
            ValueError: the picture has another shape or type.
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
        kind: one of `KINDS`; drawn from the seed where None.
        size: side in pixels, a multiple of 16.
        split: "easy", or "hard": near colours, objects of about one token, thin lines, shadows
            and reflections, slight changes of texture, busy ground. "train" has both.

    Raises:
        ValueError: unknown kind or split, a kind that the hard split does not have, or a size
            that is no multiple of 16.
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
    hard = bool(cases) and rng.random() < _HARD_SHARE[split]
    makers = LOCAL_KINDS | WHOLE_KINDS
    while True:  # until a landscape has room for the edit
        case = choice(rng, cases) if hard else ""
        options = _KINDS_OF_CASE[case] if hard else KINDS
        shares = None if hard else list(_SHARES.values())
        drawn = kind or str(rng.choice(options, p=shares))
        land = random_landscape(rng)
        if case == "busy":
            land = replace(land, ground=choice(rng, BUSY_GROUNDS))
        elif case == "shadow":
            land = replace(land, shadow=(float(rng.uniform(*_STRONG_SHADOWS)), land.shadow[1]))
        edit = makers[drawn](rng, land, case)
        if edit is not None:
            break
    source, target = render(edit.before, size), render(edit.after, size)
    mask = (source != target).any(axis=-1)
    return Scene(
        source, target, edit.instruction, mask, drawn, case, edit.before, edit.after, edit.opens
    )
