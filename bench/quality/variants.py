"""Define everything that is measured: the variants by name, and the sweeps that they form."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import cos, pi
from typing import Any

from spotedit.options.choices import LATE_RESETS, PUBLISHED_RESETS

DEFAULT = "default"  # this variant also stands for the default value of a swept setting
_NUM_SCENES = 48  # enough where the differences are large
_RESET_SIGMAS = (0.78, 0.52, 0.17)  # sigmas of the default's resets in 28 steps of the tiny editor


@dataclass(frozen=True)
class Loop:
    """The denoising loop, which a variant shares with the dense edit that it is compared with.

    Attributes:
        steps: number of steps; None takes that of the run.
        guidance: scale of true classifier-free guidance; None takes the editor's default.
        scheduler: a key of `record.SCHEDULERS`; None takes the editor's scheduler.
    """

    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None

    @property
    def dense(self) -> str:
        """The name of the dense edit with this loop."""
        options = {"T": self.steps, "guidance": self.guidance, "scheduler": self.scheduler}
        changed = [f"{name}={value}" for name, value in options.items() if value is not None]
        return " ".join(["dense", *changed])


@dataclass(frozen=True)
class Variant:
    """A way to edit. The settings that are None do not apply.

    Attributes:
        config: arguments of `SpotEditConfig`; with None, `spotedit` is not enabled.
        loop: the denoising loop.
        multiple: the threshold as a multiple of the model's default threshold.
        equal_r: whether to use the threshold at which this judge selects as many tokens as the
            default judge.
        resets: the resets' step indices as shares of the number of steps.
        mask: mode in which the true edit's mask is set.
        ablation: a key of `ablations.ABLATIONS`.
        rival: an element of `rivals.RIVALS`.
        paste: region outside which the source is pasted over the dense edit: "spot" (the region of
            the default's last step) or "truth" (the tokens that the true edit touches and a ring
            of one token around them).
        scenes: number of scenes, if not all are measured.
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
        """The whole variant as JSON, which its records contain."""
        return json.dumps(asdict(self), default=lambda function: function.__name__)


def _spot(**config: Any) -> Variant:
    return Variant(config)


def _static(sigma: float) -> float:
    return 1.0


def _condition(sigma: float) -> float:
    return 0.0


def anchored(sigma: float) -> float:
    """Return the cached value's weight as in the paper's introduction: 0 early and 1 late."""
    return cos(pi * sigma / 2) ** 2


def _unshifted(sigma: float, shift: float) -> float:
    """Return the sigma that a schedule's `shift` turns into `sigma`."""
    return sigma / (shift - (shift - 1) * sigma)


_DEFAULT = Variant()
_BAD = {
    "naive": Variant(ablation="naive", scenes=_NUM_SCENES),
    **{f"threshold x{m}": Variant(multiple=float(m), scenes=_NUM_SCENES) for m in (2, 4, 8)},
    "shifted": Variant(ablation="shifted", scenes=_NUM_SCENES),
    "unreplaced": Variant(ablation="unreplaced", scenes=_NUM_SCENES),
}
_RIVALS = {
    "paste, spot's region": Variant(None, paste="spot"),
    "paste, true region": Variant(None, paste="truth"),
    **{
        name: Variant(None, rival=name, scenes=_NUM_SCENES)
        for name in (
            "FirstBlockCache", "MagCache", "TaylorSeerCache", "FasterCache",
            "PyramidAttentionBroadcast", "cache-dit", "cache-dit, TaylorSeer",
        )
    },
    # these skip nothing in this architecture
    **{name: Variant(None, rival=name, scenes=4) for name in ("SeaCache", "TextKVCache")},
}  # fmt: skip
MAIN = {DEFAULT: _DEFAULT, **_BAD, **_RIVALS}
PRESETS = {"fast": _spot(preset="fast"), "paper": _spot(preset="paper")}
HARD = {DEFAULT: _DEFAULT, "l2": _spot(judge="l2"), **PRESETS}  # the main run of the hard split
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
    """Return the variants by name, each after the dense edit that it is compared with."""
    variants: dict[str, Variant] = {}
    for name in names:
        variant = VARIANTS[name]
        variants[variant.loop.dense] = Variant(None, loop=variant.loop)
        variants[name] = variant
    return variants
