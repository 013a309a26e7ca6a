"""The schedule: which steps are full and which are spot steps."""

from collections.abc import Sequence

from ..options.choices import PUBLISHED_RESETS

# A token that is first computed below this sigma can make less than half of its way.
VERIFY_SIGMA = 0.5


def plan(
    steps: int,
    initial_steps: int | None = None,
    reset_steps: Sequence[int] | None = None,
    reset_every: int | None = None,
    fractions: Sequence[float] = PUBLISHED_RESETS,
) -> list[str]:
    """Return the kind of every denoising step, `"full"` or `"spot"`.

    The published schedule for 50 steps has four full steps at the start, and resets at the steps
    13, 22 and 31. It scales with `steps`: `max(1, round(0.08 steps))` initial steps, and resets at
    26, 44 and 62 per cent. Up to 12 steps there is one initial step, and resets lie at one and two
    thirds; up to 6 steps there is one reset at 62 per cent, because the late ones of few steps move
    the picture most.

    Args:
        steps: number of steps that the loop really runs.
        initial_steps: overrides the number of full steps at the start.
        reset_steps: overrides the 0-based indices of later full steps.
        reset_every: number of steps from one full step to the next, after the initial ones.
        fractions: positions of the resets as fractions of `steps`, if neither is given.

    Returns:
        A kind for each step. All are `"full"` if there is no room for a spot step. A reset on the
        last step is dropped: only the last step's own output would use what it computes, and the
        reused tokens are replaced there.
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


def _nearest(x: float) -> int:
    """Round to the nearest integer, and halves up."""
    return int(x + 0.5)


def with_verification(kinds: Sequence[str], sigmas: Sequence[float]) -> list[str]:
    """Add a full step at the last step at which a token that was missed can still be edited.

    Args:
        kinds: kind of every step, from `plan`.
        sigmas: noise level at the start of every step, 1 (noise) to 0 (image).
    """
    in_time = [index for index, sigma in enumerate(sigmas[:-1]) if sigma >= VERIFY_SIGMA]
    verified = list(kinds)
    if in_time:
        verified[in_time[-1]] = "full"
    return verified
