"""The sentences of the page, in plain words."""

from html import escape

from ..report import EditReport
from .job import Progress
from .session import Round

WAITING = "Waiting for the editor …"
IDLE = "Choose a picture, say what to change, and press Edit."
READY = "Say what to change, and press Edit. Paint over a part if only that part may change."
CANCELLED = "Cancelled. Nothing was changed."
BUSY = "An edit is running: wait for it, or cancel it first."
EXPIRED = "This page has expired: reload it."

_KINDS = {
    "dense": "the whole picture",
    "full": "the whole picture",
    "spot": "only the region",
    "skip": "nothing: this step is skipped",
}

TINY_NOTICE = (
    "**This is the tiny editor, for trying things out.** It knows one task: it recolours, removes, "
    "replaces or adds coloured shapes, in pictures of about 128 x 128 pixels. Start with a sample "
    "below. It does not understand other instructions, and small pictures come out soft. For real "
    "edits, start the app with a real model: "
    "`spotedit app --model black-forest-labs/FLUX.1-Kontext-dev`."
)


def status(text: str) -> str:
    """Return a line of the status as HTML."""
    return f'<p class="status">{escape(text)}</p>'


def progress(step: Progress) -> str:
    """Return the progress bar and its line as HTML."""
    done = step.index + 1
    computed = _KINDS.get(step.kind, step.kind)
    if step.kind == "spot":
        computed += f", {step.ratio:.0%} of the picture"
    line = f"Step {done} of {step.total}: computed {computed}"
    if step.crop is not None:
        index, total = step.crop
        line = f"Detail {index + 1} of {total}. {line}"
    return (
        f'<p class="status" aria-hidden="true">{escape(line)}</p>'
        f'<progress value="{done}" max="{step.total}" aria-label="Progress of the edit"></progress>'
    )


def result(finished: Round) -> str:
    """Return what an edit did and what may be wrong with it, as Markdown."""
    report = finished.report
    lines = [_did(report)]
    lines += [f"**Check the result:** {_sentence(doubt)}" for doubt in report.doubts]
    if report.mask_note:
        lines.append(_sentence(report.mask_note))
    lines += [f"About the detail: {_sentence(note)}" for note in finished.detail_notes]
    lines += [f"About the file: {_sentence(note)}" for note in finished.notes]
    return "\n\n".join(lines)


def preview(report: EditReport, share: float) -> str:
    """Return what a preview found, as Markdown.

    Args:
        share: of the picture, that an edit would recompute at first.
    """
    lines = [
        f"The edit would recompute {share:.0%} of the picture at first: the outlined part. Warmer "
        "colours have changed more. The picture is a draft, as the first steps predict it."
    ]
    lines += [f"**Check the region:** {_sentence(doubt)}" for doubt in report.doubts]
    return "\n\n".join(lines)


def caption(finished: Round) -> str:
    """Return the line below a picture of the history."""
    start = f"{finished.parent} → " if finished.parent else ""
    return f"{start}{finished.number}: {finished.order.instruction}"


def _did(report: EditReport) -> str:
    if "spot" not in report.kinds:
        return "Done. The whole picture was computed in every step."
    return (
        f"Done. Most steps computed {report.mean_ratio:.0%} of the picture; "
        f"{report.flops_saved:.0%} of the model's work was skipped."
    )


def _sentence(text: str) -> str:
    """Return the text with a capital and a full stop, with no character that Markdown reads."""
    plain = "".join(f"\\{char}" if char in r"\`*_[]<>#|" else char for char in text)
    return plain[:1].upper() + plain[1:].rstrip(".") + "."
