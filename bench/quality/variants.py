"""What is measured, as data: every variant by name, and the sweeps that they form."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import cos, pi
from typing import Any

from spotedit.options.choices import LATE_RESETS, PUBLISHED_RESETS

DEFAULT = "default"  # in the sweeps it also stands for the value that is the default
_FEW = 48  # scenes, where more would tell no more
_RESET_SIGMAS = (0.78, 0.52, 0.17)  # of the default's resets, in 28 steps of the tiny editor


@dataclass(frozen=True)
class Loop:
    """What a variant and the dense edit that it is compared with share.

    Attributes:
        steps: None: the run's own.
        guidance: true classifier-free guidance; None: the editor's own.
        scheduler: of `record.SCHEDULERS`; None: the editor's own.
    """

    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None

    @property
    def dense(self) -> str:
        """Name of the dense edit with this loop."""
        own = ("T", self.steps), ("guidance", self.guidance), ("scheduler", self.scheduler)
        return " ".join(["dense", *(f"{name}={value}" for name, value in own if value is not None)])


@dataclass(frozen=True)
class Variant:
    """A way to edit.

    Attributes:
        config: of `SpotEditConfig`; None: spot edits are not enabled.
        multiple: of the model's own threshold, or None.
        equal_r: take the threshold at which the judge selects as much as the default one does.
        resets: their places / steps, or None.
        mask: how the true edit's mask is set, or None.
        ablation: of `ablations.ABLATIONS`, or None.
        rival: of `rivals.RIVALS`, or None.
        paste: the dense picture with the source pasted outside a region: "spot" (that of the
            default's last step) or "truth" (the tokens that the true edit touches and a ring of
            one around them); or None.
        scenes: measured on the first ones only, or None.
    """

    config: Mapping[str, Any] | None = field(default_factory=dict)
    loop: Loop = Loop()
    multiple: float | None = None
    equal_r: bool = False
    resets: tuple[float, ...] | None = None
    mask: str | None = None
    ablation: str | None = None
    rival: str | None = None
    paste: str | None = None
    scenes: int | None = None

    @property
    def text(self) -> str:
        """All of it, as records keep it."""
        return json.dumps(asdict(self), default=lambda function: function.__name__)


def _spot(**config: Any) -> Variant:
    return Variant(config)


def _rival(name: str, scenes: int = _FEW) -> Variant:
    return Variant(None, rival=name, scenes=scenes)


def _static(sigma: float) -> float:
    return 1.0


def _condition(sigma: float) -> float:
    return 0.0


def anchored(sigma: float) -> float:
    """Condition early, cached late: the weight of the cached value as the introduction has it."""
    return cos(pi * sigma / 2) ** 2


def _unshifted(sigma: float, shift: float) -> float:
    """The sigma that a schedule with `shift` moves to `sigma`."""
    return sigma / (shift - (shift - 1) * sigma)


_DEFAULT = Variant()
_BAD = {
    "naive": Variant(ablation="naive", scenes=_FEW),
    **{f"threshold x{m}": Variant(multiple=float(m), scenes=_FEW) for m in (2, 4, 8)},
    "shifted": Variant(ablation="shifted", scenes=_FEW),
    "unreplaced": Variant(ablation="unreplaced", scenes=_FEW),
}
_RIVALS = {
    "paste, spot's region": Variant(None, paste="spot"),
    "paste, true region": Variant(None, paste="truth"),
    "FirstBlockCache": _rival("FirstBlockCache"),
    "MagCache": _rival("MagCache"),
    "TaylorSeerCache": _rival("TaylorSeerCache"),
    "FasterCache": _rival("FasterCache"),
    "PyramidAttentionBroadcast": _rival("PyramidAttentionBroadcast"),
    "cache-dit": _rival("cache-dit"),
    "cache-dit, TaylorSeer": _rival("cache-dit, TaylorSeer"),
    "SeaCache": _rival("SeaCache", scenes=4),  # skips nothing in this architecture
    "TextKVCache": _rival("TextKVCache", scenes=4),
}
MAIN = {DEFAULT: _DEFAULT, **_BAD, **_RIVALS}
PRESETS = {"fast": _spot(preset="fast"), "paper": _spot(preset="paper")}
HARD = {DEFAULT: _DEFAULT, "l2": _spot(judge="l2"), **PRESETS}  # of the hard split
SWEEPS: dict[str, dict[str, Variant]] = {
    "fusion": {
        "anchored": _spot(fusion=anchored),
        "recursive": Variant({"fusion": anchored}, ablation="recursive"),
        "static": _spot(fusion=_static),
        "condition": _spot(fusion=_condition),
        "naive": _BAD["naive"],
    },
    "resets": {
        "resets published": Variant(resets=PUBLISHED_RESETS),
        "last quarter full": Variant(resets=(*LATE_RESETS[:2], *(i / 28 for i in range(21, 28)))),
        **{f"resets every {n}": _spot(reset_every=n) for n in (4, 16)},
        "resets none": _spot(reset_steps=()),
    },
    "thresholds": {
        "threshold x0.5": Variant(multiple=0.5),
        **{name: variant for name, variant in _BAD.items() if variant.multiple is not None},
        "threshold x16": Variant(multiple=16.0),
    },
    "judges": {
        "auto": _spot(threshold="auto"),
        **{judge: _spot(judge=judge) for judge in ("perceptual", "cosine", "l2")},
        **{
            f"{judge}, equal r": Variant({"judge": judge}, equal_r=True)
            for judge in ("perceptual", "cosine", "l2")
        },
    },
    "presets": PRESETS,
    "dilation": {
        **{f"dilation {n}": _spot(dilation=n) for n in (0, 2, 3)},
        **{f"hysteresis {share:g}": _spot(hysteresis=share) for share in (0.0, 0.25, 0.5)},
    },
    "initial": {f"initial steps {n}": _spot(initial_steps=n) for n in (1, 3, 4)},
    "steps": {f"T={n}": Variant(loop=Loop(steps=n)) for n in (4, 8, 16, 50)},
    "schedulers": {
        name: Variant(loop=Loop(scheduler=name))
        for name in ("Heun", "LCM", "UniPC", "DPM-Solver++", "DEIS")
    },
    "shift": {
        "shift 3": Variant(loop=Loop(scheduler="shift 3")),
        "shift 3, resets equal in sigma": Variant(
            loop=Loop(scheduler="shift 3"),
            resets=tuple(1 - _unshifted(sigma, 3.0) for sigma in _RESET_SIGMAS),
        ),
    },
    "guidance": {f"guidance {g}": Variant(loop=Loop(guidance=g)) for g in (1.5, 2.0)},
    "condition": {
        "condition uncached": _spot(condition_cache=False),
        "condition cache alone": _spot(threshold=0.0),
        "cache int8": _spot(cache_dtype="int8"),
    },
    "masks": {f"mask {mode}": Variant(mask=mode) for mode in ("replace", "intersect", "union")},
    "judging": {f"judge every {n}": _spot(judge_every=n) for n in (1, 2, 8)},
}  # fmt: skip
VARIANTS = {**MAIN, **HARD, **{name: v for sweep in SWEEPS.values() for name, v in sweep.items()}}


def methods(names: tuple[str, ...]) -> dict[str, Variant]:
    """Variants by name, after the dense edits that they are compared with."""
    found: dict[str, Variant] = {}
    for name in names:
        variant = VARIANTS[name]
        found[variant.loop.dense] = Variant(None, loop=variant.loop)
        found[name] = variant
    return found


def with_guidance(variant: Variant, guidance: float) -> Variant:
    """The variant in a loop of another guidance."""
    return replace(variant, loop=replace(variant.loop, guidance=guidance))
