"""Which steps are full and which are spot steps."""

from collections.abc import Sequence

from ..options.choices import PUBLISHED_RESETS

VERIFY_SIGMA = 0.5  # a token that is first computed later than here makes less than half its way


def _nearest(x: float) -> int:
    return int(x + 0.5)


def plan(
    steps: int,
    initial_steps: int | None = None,
    reset_steps: Sequence[int] | None = None,
    reset_every: int | None = None,
    fractions: Sequence[float] = PUBLISHED_RESETS,
) -> list[str]:
    """Kind of every denoising step, `"full"` or `"spot"`.

    The published schedule (50 steps: four full ones, resets at 13, 22 and 31) scales with `steps`:
    `max(1, round(0.08 steps))` initial steps and resets at 26, 44 and 62 per cent. Up to 12 steps
    there is one initial step, with resets at one and two thirds; up to 6 with one at 62 per cent:
    of few steps the late ones move the picture most.

    Args:
        steps: number of steps the loop really runs.
        initial_steps: overrides the number of full steps at the start.
        reset_steps: overrides the indices (0-based) of later full steps.
        reset_every: a full step every that many steps after the initial ones.
        fractions: where the resets lie where neither is given, / `steps`; the model's own.

    Returns:
        `steps` names; all of them `"full"` where there is no room for a spot step. A reset on the
        last step is dropped: nothing would use what it computes but the last step's own output,
        and the reused tokens are replaced there.
    """
    if initial_steps is None:
        initial_steps = 1 if steps <= 12 else max(1, _nearest(0.08 * steps))
    if reset_every is not None:
        resets = set(range(initial_steps - 1 + reset_every, steps, reset_every))
    elif reset_steps is not None:
        resets = set(reset_steps)
    elif steps <= 6:
        resets = {_nearest(0.62 * steps)}
    elif steps <= 12:
        resets = {_nearest(steps / 3), _nearest(2 * steps / 3)}
    else:
        resets = {_nearest(fraction * steps) for fraction in fractions}
    resets.discard(steps - 1)
    return ["full" if i < initial_steps or i in resets else "spot" for i in range(steps)]


def with_verification(kinds: Sequence[str], sigmas: Sequence[float]) -> list[str]:
    """Add a full step at the last step at which a token that was missed can still be edited.

    Args:
        kinds: of the steps, from `plan`.
        sigmas: noise level at the start of every step, 1 (noise) to 0 (image).
    """
    useful = [i for i, sigma in enumerate(sigmas[:-1]) if sigma >= VERIFY_SIGMA]
    return ["full" if useful and i == useful[-1] else kind for i, kind in enumerate(kinds)]
