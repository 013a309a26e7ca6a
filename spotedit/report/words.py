"""What a call did, in words: `EditReport.summary`, and the log record of a call with a surprise."""

import logging
from collections.abc import Sequence

from ..judge.mask import KEEPS_ALL
from ..options.temporal import TaylorSeer
from ..pictures.draw import KINDS
from .figures import Figures

logger = logging.getLogger("spotedit")
_RETURNED = 0.5  # of the largest region: so many tokens that come back at a reset are a doubt


def announce(report: Figures | None, dense_asked: bool) -> None:
    """Log, in one record, that a call ran dense, that its frame moved, or that nothing was edited.

    It reads nothing from the device.

    Args:
        report: of a call that has returned; None where no forward ran.
        dense_asked: the configuration asks for a dense call, so the record is no warning.
    """
    if report is None:
        return
    sentences = [
        _dense(report), _misaligned(report), _unedited(report), _returned(report), report.mask_note
    ]  # fmt: skip
    text = "; ".join(sentence for sentence in sentences if sentence)
    if text:
        level = logging.INFO if dense_asked else logging.WARNING
        logger.log(level, "%s: %s", report.pipeline, text)


def summary(report: Figures) -> str:
    """A few lines for people. Without a dense run to compare with, no speed-up is claimed."""
    images = f", {report.batch} images" if report.batch > 1 else ""
    grid = f", {report.grid[0]} x {report.grid[1]} tokens" if report.grid else ""
    steps = f"{len(report.kinds)} steps in {report.seconds:.2f} s"
    lines = [
        f"{report.pipeline}: {steps}{grid}{images}",
        *_steps(report),
        _temporal(report),
        _dense(report),
        _share(report),
        *doubts(report),
        report.mask_note,
        f"cache {report.cache_bytes / 2**20:.1f} MiB",
    ]
    return "\n".join(line for line in lines if line)


def _steps(report: Figures) -> list[str]:
    """A line for each kind of step that was run."""
    lines = []
    for kind in KINDS:
        steps = [step for step in report.steps if step["kind"] == kind]
        if steps:
            share = sum(s["active"] for s in steps) / sum(s["total"] for s in steps)
            each = 1000 * sum(s["seconds"] for s in steps) / len(steps)
            lines.append(
                f"  {kind:<5} {len(steps):>3} steps {each:>9.1f} ms each, "
                f"{share:.0%} of the tokens computed"
            )
    return lines


def _temporal(report: Figures) -> str | None:
    """What the temporal method did, or why it did nothing."""
    if report.temporal is None:
        return None
    name, total, skipped = type(report.temporal).__name__, len(report.kinds), _skipped(report)
    if skipped:
        ran = f"{name} ran {total - skipped} of {total} steps"
        if "spot" in report.kinds:  # the line of the spot steps has the share
            return ran
        return f"{ran}, {report.flops_saved:.0%} of the transformer's work skipped"
    why = "between full steps, too much changes from one step to the next for its threshold"
    if isinstance(report.temporal, TaylorSeer):
        warm_up, interval = report.temporal.warm_up, report.temporal.interval
        why = f"full steps, and its warm_up of {warm_up} and interval of {interval}, leave none out"
    return f"{name} ran all {total} steps, so nothing is gained by it: {why}"


def _skipped(report: Figures) -> int:
    return report.kinds.count("skip")


def _dense(report: Figures) -> str | None:
    """Why no token was reused, and from which step on."""
    if report.reason is None:
        return None
    what = "no token was reused" if _skipped(report) else "nothing was skipped"
    if "spot" in report.kinds and "dense" in report.kinds:
        what = f"from step {report.kinds.index('dense')} on, {what}"
    return f"{what}: {report.reason}"


def _share(report: Figures) -> str | None:
    """What the spot steps left out."""
    if "spot" not in report.kinds:
        return None
    limit = "the scores' own cut" if report.threshold == "auto" else report.threshold
    rule = f"{report.judge} <= {limit} is reused" if report.judged else "as the mask says"
    line = (
        f"r = {report.mean_ratio:.1%} of the tokens in a spot step, {report.flops_saved:.0%} "
        f"of the transformer's work skipped ({rule})"
    )
    if report.mean_ratio == 1.0 and report.misalignment is None:
        line += "\nevery token was judged to change: only the condition was cached"
    return line


def _misaligned(report: Figures) -> str | None:
    if report.misalignment is None:
        return None
    rest = "the rest ran dense" if "dense" in report.kinds else "only the condition is cached"
    return (
        f"the whole frame does not match the source: {report.misalignment}; {rest}. "
        "Another seed, or asking to keep the framing and the colours, may help"
    )


def _unedited(report: Figures, numbers: Sequence[int] = ()) -> str | None:
    """How many images end as the source, and what to try. `numbers`: which of a batch."""
    if not report.unedited or report.mask_note == KEEPS_ALL:
        return None
    what, advice = "no token was judged to change", "a lower threshold, other words or a mask"
    if report.largest and report.batch == 1:
        what = f"the region shrank from {_tokens(report.largest)} to none"
    if not report.judged:
        what, advice = "the mask lets no token change", "a larger mask"
    if report.batch == 1:
        return f"{what}: the picture is the source; {advice} may help"
    which = f" (number {', '.join(map(str, numbers))})" if numbers else ""
    count = f"{report.unedited} of {report.batch} images{which}"
    return f"{what} in {count}: there the picture is the source; {advice} may help"


def doubts(report: Figures) -> list[str]:
    """Return sentences about what may be wrong with the edit."""
    unedited = [number for number, image in enumerate(report.images) if image.unedited]
    found = _misaligned(report), _unedited(report, unedited), _returned(report), _unmoved(report)
    return [sentence for sentence in found if sentence]


def _returned(report: Figures) -> str | None:
    """Say that a reset found many tokens changed which had been reused until then."""
    step, count = max(report.returned, key=lambda found: found[1], default=(0, 0))
    if count <= _RETURNED * report.largest:
        return None
    return (
        f"step {step} found {_tokens(count)} changed that had been reused until then, of "
        f"{report.largest} active ones at most; more resets (reset_every=4) or half the threshold "
        "may help"
    )


def _tokens(count: int) -> str:
    return f"{count} token" if count == 1 else f"{count} tokens"


def _unmoved(report: Figures) -> str | None:
    """Say that tokens were computed, and ended as the source all the same."""
    if report.moved is None or report.region is None or report.moved.any():
        return None
    if not report.region.any():
        return None
    return (
        "every token that was computed ended as the source: the model may not have followed the "
        "instruction; other words, another seed or more guidance may help"
    )
