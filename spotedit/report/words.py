"""The sentences of a report: its summary, its doubts, and the log record of a call.

Each function that returns `str | None` returns one sentence, or None if it has nothing to say.
"""

import logging
from collections.abc import Sequence

from ..judge.mask import KEEPS_ALL
from ..options.temporal import TaylorSeer
from ..pictures.draw import KINDS
from .figures import Figures

logger = logging.getLogger("spotedit")

# `doubts` mentions reused tokens that a full step found changed only if they are more than this
# fraction of the largest region.
_MAX_WRONGLY_REUSED = 0.5


def announce(report: Figures | None, dense_requested: bool) -> None:
    """Log, in one record, what the caller may not expect of a call.

    That is: it ran dense, its whole frame does not match the source's, nothing was edited, or its
    mask has no effect. The function reads nothing from the device.

    Args:
        report: the report of a call that has returned, or None if no forward ran.
        dense_requested: whether the configuration asks for a dense call, which is then no warning.
    """
    if report is None:
        return
    sentences = [
        _why_dense(report),
        _how_misaligned(report),
        _how_many_unedited(report),
        _what_was_wrongly_reused(report),
        report.mask_note,
    ]
    text = "; ".join(sentence for sentence in sentences if sentence)
    if text:
        level = logging.INFO if dense_requested else logging.WARNING
        logger.log(level, "%s: %s", report.pipeline, text)


def summary(report: Figures) -> str:
    """Return a few lines for people, without a speed-up, which needs a dense call beside it."""
    images = f", {report.batch} images" if report.batch > 1 else ""
    grid = f", {report.grid[0]} x {report.grid[1]} tokens" if report.grid else ""
    steps = f"{len(report.kinds)} steps in {report.seconds:.2f} s"
    lines = [
        f"{report.pipeline}: {steps}{grid}{images}",
        *_lines_of_steps(report),
        _what_step_skipping_did(report),
        _why_dense(report),
        _what_spot_saved(report),
        *doubts(report),
        report.mask_note,
        f"cache {report.cache_bytes / 2**20:.1f} MiB",
    ]
    return "\n".join(line for line in lines if line)


def doubts(report: Figures) -> list[str]:
    """Return sentences about what may be wrong with the edit."""
    unedited = [index for index, image_report in enumerate(report.images) if image_report.unedited]
    sentences = [
        _how_misaligned(report),
        _how_many_unedited(report, unedited),
        _what_was_wrongly_reused(report),
        _all_computed_ended_as_source(report),
    ]
    return [sentence for sentence in sentences if sentence]


def _lines_of_steps(report: Figures) -> list[str]:
    """Return a line for each kind of step that was run."""
    lines = []
    for kind in KINDS:
        steps = [step for step in report.steps if step["kind"] == kind]
        if steps:
            num_active = sum(step["active"] for step in steps)
            num_total = sum(step["total"] for step in steps)
            milliseconds = 1000 * sum(step["seconds"] for step in steps) / len(steps)
            lines.append(
                f"  {kind:<5} {len(steps):>3} steps {milliseconds:>9.1f} ms each, "
                f"{num_active / num_total:.0%} of the tokens computed"
            )
    return lines


def _what_step_skipping_did(report: Figures) -> str | None:
    method, num_steps, num_skipped = report.temporal, len(report.kinds), _num_skipped(report)
    if method is None:
        return None
    name = type(method).__name__
    if num_skipped:
        ran = f"{name} ran {num_steps - num_skipped} of {num_steps} steps"
        if "spot" in report.kinds:  # then the line about the spot steps gives the work saved
            return ran
        return f"{ran}, {report.flops_saved:.0%} of the transformer's work skipped"
    why = "at every step between the full ones, the predicted change exceeded its threshold"
    if isinstance(method, TaylorSeer):
        why = (
            f"with warm_up={method.warm_up}, interval={method.interval} and the full steps that "
            "spotedit needs, no step is left to skip"
        )
    return f"{name} ran all {num_steps} steps and saved nothing: {why}"


def _num_skipped(report: Figures) -> int:
    return report.kinds.count("skip")


def _why_dense(report: Figures) -> str | None:
    if report.reason is None:
        return None
    # skipped steps are savings, even if no token was reused
    what = "no token was reused" if _num_skipped(report) else "nothing was skipped"
    if "spot" in report.kinds and "dense" in report.kinds:
        what = f"from step {report.kinds.index('dense')} on, {what}"
    return f"{what}: {report.reason}"


def _what_spot_saved(report: Figures) -> str | None:
    if "spot" not in report.kinds:
        return None
    if not report.judged:
        rule = "as the mask says"
    elif report.threshold == "auto":
        rule = f"tokens with a {report.judge} score below the picture's own threshold are reused"
    else:
        rule = f"tokens with a {report.judge} score of at most {report.threshold} are reused"
    sentence = (
        f"r = {report.mean_ratio:.1%} of the tokens in a spot step, {report.flops_saved:.0%} "
        f"of the transformer's work skipped ({rule})"
    )
    if report.mean_ratio == 1.0 and report.misalignment is None:
        sentence += "\nevery token was judged to change: only the condition was cached"
    return sentence


def _how_misaligned(report: Figures) -> str | None:
    if report.misalignment is None:
        return None
    consequence = (
        "the remaining steps ran dense"
        if "dense" in report.kinds
        else "only the condition is cached"
    )
    return (
        f"the whole frame does not match the source: {report.misalignment}; {consequence}. "
        "Another seed, or asking to keep the framing and the colours, may help"
    )


def _how_many_unedited(report: Figures, indices: Sequence[int] = ()) -> str | None:
    """Say how many images ended as the source, and what to try.

    Args:
        indices: the indices of these images in a batch, if they are known.
    """
    said_by_mask_note = report.mask_note == KEEPS_ALL
    if not report.unedited or said_by_mask_note:
        return None
    if not report.judged:
        what, advice = "the mask lets no token change", "a larger mask"
    elif report.largest and report.batch == 1:
        what = f"the region shrank from {_tokens(report.largest)} to none"
        advice = "a lower threshold, other words or a mask"
    else:
        what = "no token was judged to change"
        advice = "a lower threshold, other words or a mask"
    if report.batch == 1:
        return f"{what}: the picture is the source; {advice} may help"
    which = f" (number {', '.join(map(str, indices))})" if indices else ""
    count = f"{report.unedited} of {report.batch} images{which}"
    return f"{what} in {count}: there the picture is the source; {advice} may help"


def _what_was_wrongly_reused(report: Figures) -> str | None:
    """Say that a full step found that many reused tokens had changed."""
    step, num_returned = max(report.returned, key=lambda entry: entry[1], default=(0, 0))
    if num_returned <= _MAX_WRONGLY_REUSED * report.largest:
        return None
    return (
        f"the full step {step} found that {_tokens(num_returned)} reused until then had changed "
        f"(the largest region has {_tokens(report.largest)}); more full steps (reset_every=4) or "
        "half the threshold may help"
    )


def _all_computed_ended_as_source(report: Figures) -> str | None:
    """Say that tokens were computed, but all of them ended as the source."""
    if report.moved is None or report.region is None:
        return None
    if report.moved.any() or not report.region.any():
        return None
    return (
        "every token that was computed ended as the source: the model may not have followed the "
        "instruction; other words, another seed or more guidance may help"
    )


def _tokens(count: int) -> str:
    return f"{count} token" if count == 1 else f"{count} tokens"
