"""`SpotEditConfig`: the one configuration object."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypedDict, get_args

from .choices import CustomJudge, Fusion, FusionName, Impl, JudgeName
from .presets import PRESETS, THRESHOLDS, PresetName, Settings
from .temporal import TaylorSeer, TeaCache, Temporal
from .validation import is_int, is_number, require

IMPLEMENTATIONS = get_args(Impl)
JUDGE_NAMES = sorted(get_args(JudgeName))
FUSION_NAMES = list(get_args(FusionName))


@dataclass(frozen=True)
class SpotEditConfig:
    """What `spotedit.enable` does to a pipeline. Every field has a default that fits most edits.

    A full step computes all tokens. A spot step computes only the active tokens, which a judgement
    of the predicted clean image has found to change, and reuses the others. Any full step later
    than the first spot step is called a reset.

    Attributes:
        preset: chooses judge, threshold, dilation, hysteresis, judge_every, resets and temporal
            together. A field that you set yourself overrides the preset. `"default"` is the safe
            choice: it finds every edit. `"fast"` is the same with `TaylorSeer()`, which skips most
            forwards. `"paper"` has the publication's settings. docs/defaults.md gives the reasons.
        judge: how the predicted clean image is compared with the source. `"calibrated"` compares
            the latents and the output of the VAE decoder's first layers, each against the level
            that unchanged tokens have in this picture. `"perceptual"` compares those layers alone;
            `"cosine"` and `"l2"` compare the latents alone. A function of your own has the form
            ``(y, grid, features, impl) -> (x0 -> scores)``. It is called once for each run of the
            pipeline, with the source's tokens y [B, N, C], their grid (rows, cols), a function from
            tokens to the decoder's feature maps [B, C_l, H_l, W_l], and `impl`. What it returns is
            called at every judgement with the predicted clean tokens x0, fp32 [B, N, C], and
            returns scores [B, N]. It needs a threshold.
        threshold: tokens whose score is at most this are reused. A threshold belongs to its judge.
            None takes the judge's own: 1 for `"calibrated"` (0.5 finds changes half as large), 0.2
            for `"perceptual"`, 0.05 for `"cosine"` and `"l2"`. `"auto"` splits the scores of each
            judgement into two groups, and reuses nothing if they do not separate; it assumes that
            the picture has unchanged tokens.
        dilation: number of tokens by which the active region grows on every side after a judgement.
        hysteresis: a token joins the region by dilation only if its score is at least this fraction
            of the threshold, 0..1. With 0 every neighbour joins.
        judge_every: number of spot steps from one judgement to the next. A full step before a spot
            step is always judged. Judging less often costs less, and keeps tokens active longer.
        initial_steps: number of full steps at the start. None takes 4 of every 50 steps, as in the
            publication.
        reset_steps: 0-based indices of the resets. None places them as the preset says.
        reset_every: number of steps from one full step to the next. Excludes `reset_steps`.
        verify_last: make the last step with sigma >= 0.5 a full step. After it, a missed edit can
            no longer be made. Tokens that this step finds changed stay active until the next full
            step.
        fusion: `"cosine"`, or a function `sigma -> weight` (sigma 1 = noise, 0 = image). The keys
            and values of a reused token are `weight * cached + (1 - weight) * source`.
        condition_cache: take the condition tokens' keys and values from the last full step. False
            computes them at every step, which is slower. If all tokens are active, the picture then
            equals the stock pipeline's.
        cache_dtype: `"auto"` keeps keys and values in the model's dtype. `"int8"` takes about half
            the bytes of a 16-bit dtype, with a scale for each token and head.
        reference: index of the condition image that is the source, 0 or more. `"auto"` chooses one
            on the output's grid, preferably the one that gives the output its size.
        match_size: edit on the condition image's own grid if the call gives no height and width.
            Without it most photographs get another grid, and nothing can be reused.
        on_misaligned: what happens to a call whose whole frame moves, grows or changes colour (see
            `EditReport.misalignment`). `"cache"` computes all tokens with the condition cached.
            `"dense"` runs the stock pipeline's steps from there on. The check is made in calls of
            one image without a mask.
        spatial: False reuses no token, whatever judge and mask say: every step that runs is the
            stock pipeline's. Only `temporal` still has an effect.
        temporal: `TeaCache(...)` or `TaylorSeer(...)`, which choose the steps that run no forward.
            None takes the preset's; only `"fast"` has one. A full step is never skipped, except for
            an initial step that is followed by another initial step.
        cache_text: take the prompt's keys and values from the last full step, so that a spot step
            runs the rows of the active tokens alone. This is a further approximation.
        impl: which kernels run: `"auto"`, `"triton"` or `"reference"` (PyTorch).

    Raises:
        ValueError: a value is out of range; the message says what was expected.
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
        for field, (is_allowed, expected) in _RULES.items():
            require(is_allowed(getattr(self, field)), self, field, expected)
        require(
            not callable(self.judge) or self.threshold is not None,
            self,
            "threshold",
            "a number or 'auto' beside a judge of your own, whose scores have a scale of their own",
        )
        require(
            self.reset_every is None or self.reset_steps is None,
            self,
            "reset_every",
            "None where reset_steps is given (they exclude each other)",
        )
        if self.reset_steps is not None:
            object.__setattr__(self, "reset_steps", tuple(self.reset_steps))

    @property
    def settings(self) -> Settings:
        """The preset's settings, overridden by the fields that are set."""
        preset = PRESETS[self.preset]
        overrides = {
            field.name: value
            for field in fields(Settings)  # one of them, `reset_fractions`, is missing here
            if (value := getattr(self, field.name, None)) is not None
        }
        judge = overrides.get("judge", preset.judge)
        if judge != preset.judge and "threshold" not in overrides:
            overrides["threshold"] = THRESHOLDS[judge]
        return replace(preset, **overrides)


def _one_of(*choices: object) -> Callable[[Any], bool]:
    return lambda value: value in choices


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _or_none(is_allowed: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_allowed(value)


def _is_count(value: object) -> bool:
    return is_int(value, minimum=1)


def _are_step_indices(value: object) -> bool:
    return isinstance(value, Sequence) and all(is_int(index, minimum=0) for index in value)


_STEPS = (_or_none(_is_count), "a number of steps >= 1, or None")
_SWITCH = (_is_bool, "True or False")

# For each field: whether a value is allowed, and what the error message says was expected.
_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "preset": (_one_of(*PRESETS), f"one of {sorted(PRESETS)}"),
    "judge": (
        lambda judge: callable(judge) or judge is None or judge in JUDGE_NAMES,
        f"one of {JUDGE_NAMES}, a function, or None for the preset's",
    ),
    "threshold": (
        lambda threshold: threshold in (None, "auto") or is_number(threshold),
        "a finite number >= 0, 'auto', or None for the judge's own",
    ),
    "dilation": (
        _or_none(lambda dilation: is_int(dilation, minimum=0)),
        "a number of tokens >= 0, or None for the preset's",
    ),
    "hysteresis": (
        _or_none(lambda hysteresis: is_number(hysteresis, maximum=1.0)),
        "a share of the threshold, 0 to 1, or None for the preset's",
    ),
    "judge_every": _STEPS,
    "initial_steps": _STEPS,
    "reset_every": _STEPS,
    "reset_steps": (_or_none(_are_step_indices), "step indices >= 0, or None"),
    "fusion": (
        lambda fusion: callable(fusion) or fusion in FUSION_NAMES,
        f"one of {FUSION_NAMES} or a callable sigma -> weight",
    ),
    "cache_dtype": (_one_of("auto", "int8"), "'auto' or 'int8'"),
    "reference": (
        lambda reference: reference == "auto" or is_int(reference, minimum=0),
        "the index of a condition image, 0 or more, or 'auto'",
    ),
    "verify_last": _SWITCH,
    "condition_cache": _SWITCH,
    "match_size": _SWITCH,
    "spatial": _SWITCH,
    "cache_text": _SWITCH,
    "on_misaligned": (_one_of("cache", "dense"), "'cache' or 'dense'"),
    "temporal": (
        lambda temporal: temporal is None or isinstance(temporal, TeaCache | TaylorSeer),
        "a TeaCache(...), a TaylorSeer(...) or None",
    ),
    "impl": (_one_of(*IMPLEMENTATIONS), f"one of {IMPLEMENTATIONS}"),
}


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
    """Return `config`, or the default one, with `overrides` applied.

    Raises:
        TypeError: `config` is not a SpotEditConfig, or an override is not one of its fields.
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


def changed_fields(config: SpotEditConfig) -> dict[str, Any]:
    """Return the fields of `config` that differ from their defaults, in a form fit for JSON."""
    defaults = asdict(SpotEditConfig())
    return {name: value for name, value in asdict(config).items() if value != defaults[name]}
