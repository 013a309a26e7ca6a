"""The one configuration object."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, TypedDict, get_args

from spotedit_kernels.impl import Impl

from .fusion import FUSIONS, Fusion
from .judges import JUDGES, CustomJudge, JudgeName
from .schedule import LATE_RESETS, PUBLISHED_RESETS
from .temporal import TaylorSeer, TeaCache, Temporal

IMPLEMENTATIONS = get_args(Impl)
PresetName = Literal["default", "fast", "paper"]
THRESHOLDS: Mapping[str, float] = {"calibrated": 1.0, "perceptual": 0.2, "cosine": 0.05, "l2": 0.05}


@dataclass(frozen=True)
class Settings:
    """Values of the fields of `SpotEditConfig` that a preset chooses together.

    `reset_fractions` are the places of the resets / steps, where neither `reset_steps` nor
    `reset_every` is given.
    """

    judge: JudgeName | CustomJudge
    threshold: float | Literal["auto"]
    dilation: int
    hysteresis: float
    judge_every: int
    reset_fractions: tuple[float, ...]
    temporal: Temporal | None


_DEFAULT = Settings("calibrated", 1.0, 1, 0.1, 4, LATE_RESETS, None)
PRESETS: Mapping[PresetName, Settings] = {
    "default": _DEFAULT,
    "fast": replace(_DEFAULT, temporal=TaylorSeer()),
    "paper": Settings("perceptual", 0.2, 0, 0.0, 1, PUBLISHED_RESETS, None),
}


def _require(ok: bool, field: str, value: object, expected: str) -> None:
    if not ok:
        raise ValueError(f"SpotEditConfig.{field} is {value!r}; expected {expected}")


def _is_number(value: object, high: float) -> bool:
    """Tell whether it is a finite number from 0 to `high`."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and 0 <= value <= high


def _is_int(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


@dataclass(frozen=True)
class SpotEditConfig:
    """What `spotedit.enable` does to a pipeline. Every field has a default that fits most edits.

    Attributes:
        preset: chooses judge, threshold, dilation, hysteresis, judge_every, resets and temporal
            together; a field that is given counts for itself. `"default"`: safe, every edit is
            found. `"fast"`: the same with `TaylorSeer()`, which leaves most forwards out.
            `"paper"`: the publication's settings. docs/defaults.md has the reasons.
        judge: how the predicted clean image is compared with the source. `"calibrated"`: by latents
            and by the first layers of the VAE decoder, each against what unchanged tokens have in
            this picture; `"perceptual"`: by those layers alone; `"cosine"` or `"l2"`: by latents.
            Or a function of your own, ``(y, grid, features, impl) -> (x0 -> scores)``: called once
            a call with the source's tokens y [B, N, C], their grid (rows, cols), a function from
            tokens to the decoder's feature maps [B, C_l, H_l, W_l], and `impl`; what it returns is
            called at every judgement with the predicted clean tokens x0, fp32 [B, N, C], and gives
            scores [B, N]. It needs a threshold.
        threshold: tokens whose score is at most this are reused. A threshold belongs to its judge;
            None takes that of the judge: 1 for `"calibrated"` (half of it finds changes half as
            large), 0.2 for `"perceptual"`, 0.05 for `"cosine"` and `"l2"`. `"auto"` cuts each
            judgement's scores in two groups instead, and reuses nothing where they do not separate;
            it assumes that the picture has unchanged tokens.
        dilation: how many tokens the active region grows on every side after a judgement.
        hysteresis: a token joins the region by dilation only if its score is at least this share of
            the threshold, 0..1; 0 lets every neighbour join.
        judge_every: spot steps from one judgement to the next; full steps before a spot step are
            always judged. Judging less often costs less, and keeps tokens active that would have
            been dropped.
        initial_steps: full steps at the start; None scales the published four of fifty.
        reset_steps: 0-based indices of later full steps; None takes the preset's places.
        reset_every: a full step every that many steps instead; excludes `reset_steps`.
        verify_last: add a full step at the last one from which a missed edit can still be made
            (sigma >= `schedule.VERIFY_SIGMA`); every token that would still change is computed
            from there on.
        fusion: `"cosine"`, or a callable `sigma -> weight` (sigma 1 = noise, 0 = image) giving the
            share of the cached value in a reused token's keys and values, 0..1.
        condition_cache: take the condition tokens' keys and values from the last full step. False
            computes them at every step: slower, and exact where all tokens are active.
        cache_dtype: `"auto"` keeps keys and values in the model's dtype, `"int8"` in about half the
            bytes of a 16-bit one, with a scale for each token and head.
        reference: which of the call's condition images is the source, 0 or more; `"auto"`: one on
            the output's grid, the one that the pipeline takes the output's size from.
        match_size: where the call names no height and width, edit on the condition image's own
            grid. Without it most photographs get another grid and nothing can be reused.
        on_misaligned: what happens to a call whose whole frame moves, grows or changes colour (see
            `EditReport.misalignment`). `"cache"`: all tokens are computed, with the condition
            cached; `"dense"`: the stock pipeline's steps from there on. It is looked for in calls
            of one image without a mask.
        spatial: False reuses no token, whatever judge and mask say: every step that runs is the
            stock pipeline's. What is left is `temporal`.
        temporal: which steps run no forward at all: `TeaCache(...)` or `TaylorSeer(...)`; None
            takes the preset's, which but for `"fast"` means that every step runs one. Full steps
            always do, of the initial ones the last.
        cache_text: take the prompt's keys and values from the last full step, so that a spot step
            runs the active tokens' rows alone. An approximation of its own.
        impl: which kernels run, `"auto"`, `"triton"` or `"reference"` (PyTorch).

    Raises:
        ValueError: a value out of range, with what was expected.
    """

    preset: PresetName = "default"
    judge: JudgeName | CustomJudge | None = None
    threshold: float | Literal["auto"] | None = None
    dilation: int | None = None
    hysteresis: float | None = None
    judge_every: int | None = None
    initial_steps: int | None = None
    reset_steps: Sequence[int] | None = None
    reset_every: int | None = None
    verify_last: bool = False
    fusion: Fusion = "cosine"
    condition_cache: bool = True
    cache_dtype: Literal["auto", "int8"] = "auto"
    reference: int | Literal["auto"] = "auto"
    match_size: bool = True
    on_misaligned: Literal["cache", "dense"] = "cache"
    spatial: bool = True
    temporal: Temporal | None = None
    cache_text: bool = False
    impl: Impl = "auto"

    def __post_init__(self) -> None:
        _require(self.preset in PRESETS, "preset", self.preset, f"one of {sorted(PRESETS)}")
        custom = callable(self.judge)
        _require(
            custom or self.judge is None or self.judge in JUDGES,
            "judge",
            self.judge,
            f"one of {sorted(JUDGES)}, a function, or None for the preset's",
        )
        _require(
            self.threshold in (None, "auto") or _is_number(self.threshold, math.inf),
            "threshold",
            self.threshold,
            "a finite number >= 0, 'auto', or None for the judge's own",
        )
        _require(
            not custom or self.threshold is not None,
            "threshold",
            self.threshold,
            "a number or 'auto' beside a judge of your own, whose scores have a scale of their own",
        )
        _require(
            self.dilation is None or _is_int(self.dilation, 0),
            "dilation",
            self.dilation,
            "a number of tokens >= 0, or None for the preset's",
        )
        _require(
            self.hysteresis is None or _is_number(self.hysteresis, 1.0),
            "hysteresis",
            self.hysteresis,
            "a share of the threshold, 0 to 1, or None for the preset's",
        )
        for field in ("judge_every", "initial_steps", "reset_every"):
            value = getattr(self, field)
            steps = value is None or _is_int(value, 1)
            _require(steps, field, value, "a number of steps >= 1, or None")
        if self.reset_steps is not None:
            _require(
                isinstance(self.reset_steps, Sequence)
                and all(_is_int(i, 0) for i in self.reset_steps),
                "reset_steps",
                self.reset_steps,
                "step indices >= 0, or None",
            )
            object.__setattr__(self, "reset_steps", tuple(self.reset_steps))
        _require(
            self.reset_every is None or self.reset_steps is None,
            "reset_every",
            self.reset_every,
            "None where reset_steps is given (they exclude each other)",
        )
        _require(
            callable(self.fusion) or self.fusion in FUSIONS,
            "fusion",
            self.fusion,
            f"one of {sorted(FUSIONS)} or a callable sigma -> weight",
        )
        _require(
            self.cache_dtype in ("auto", "int8"),
            "cache_dtype",
            self.cache_dtype,
            "'auto' or 'int8'",
        )
        _require(
            self.reference == "auto" or _is_int(self.reference, 0),
            "reference",
            self.reference,
            "the number of a condition image, 0 or more, or 'auto'",
        )
        for field in ("verify_last", "condition_cache", "match_size", "spatial", "cache_text"):
            value = getattr(self, field)
            _require(isinstance(value, bool), field, value, "True or False")
        _require(
            self.on_misaligned in ("cache", "dense"),
            "on_misaligned",
            self.on_misaligned,
            "'cache' or 'dense'",
        )
        _require(
            self.temporal is None or isinstance(self.temporal, TeaCache | TaylorSeer),
            "temporal",
            self.temporal,
            "a TeaCache(...), a TaylorSeer(...) or None",
        )
        _require(self.impl in IMPLEMENTATIONS, "impl", self.impl, f"one of {IMPLEMENTATIONS}")

    @property
    def settings(self) -> Settings:
        """The fields that a preset chooses, with its values where this has none."""
        preset = PRESETS[self.preset]
        given = {
            field.name: value
            for field in fields(Settings)
            if (value := getattr(self, field.name, None)) is not None
        }
        judge = given.get("judge", preset.judge)
        if judge != preset.judge and "threshold" not in given:
            given["threshold"] = THRESHOLDS[judge]
        return replace(preset, **given)


class Overrides(TypedDict, total=False):
    """The fields of `SpotEditConfig` as keyword arguments, such as those of `spotedit.enable`."""

    preset: PresetName
    judge: JudgeName | CustomJudge | None
    threshold: float | Literal["auto"] | None
    dilation: int | None
    hysteresis: float | None
    judge_every: int | None
    initial_steps: int | None
    reset_steps: Sequence[int] | None
    reset_every: int | None
    verify_last: bool
    fusion: Fusion
    condition_cache: bool
    cache_dtype: Literal["auto", "int8"]
    reference: int | Literal["auto"]
    match_size: bool
    on_misaligned: Literal["cache", "dense"]
    spatial: bool
    temporal: Temporal | None
    cache_text: bool
    impl: Impl


def resolve(config: SpotEditConfig | None, overrides: Overrides) -> SpotEditConfig:
    """`config` or the default one, with `overrides` replaced.

    Raises:
        TypeError: `config` is something else, or an override that is no field.
    """
    if config is not None and not isinstance(config, SpotEditConfig):
        raise TypeError(f"config is a {type(config).__name__}; expected a SpotEditConfig or None")
    names = [field.name for field in fields(SpotEditConfig)]
    unknown = sorted(set(overrides) - set(names))
    if unknown:
        raise TypeError(
            f"unknown option {', '.join(unknown)}; SpotEditConfig has {', '.join(names)}"
        )
    return replace(config or SpotEditConfig(), **overrides)
