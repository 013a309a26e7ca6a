"""What happens when the user does something: a session changes, and with it parts of the page.

A handler returns the changes of the page as data: for each part by its name in `layout.Parts` the
properties that change. So this module needs no Gradio.
"""

import logging
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..editor.editor import Edited
from ..editor.errors import BadInput, Failure
from ..judge.mask import same_aspect
from ..pictures.files import OutputError, describe_error
from ..pictures.images import ImageError
from ..preview import Preview
from . import words
from .desk import MAX_SEED, Desk, Order
from .job import Cancelled, Job, Progress
from .painting import paint
from .photos import Photo, add_photo, add_picture, fit_to_page
from .samples import Sample
from .session import Round, Session

logger = logging.getLogger("spotedit.app")

Result = TypeVar("Result")
Changes = dict[str, dict[str, Any]]

RESULT_TAB, REGION_TAB, SCORES_TAB = "result", "region", "scores"
WARNING = "warning"  # in `Changes`: {"text": a line to show for some seconds}


def open_file(session: Session, file: str | None) -> Changes:
    """Make an uploaded file the source. `file` is Gradio's copy of it."""
    if file is None:
        return {}
    try:
        photo = add_photo(Path(file), session.folder, session.next_number())
    except ImageError as error:
        return _warn(str(error)) | {"upload": {"value": None}}
    except OSError as error:
        text = f"The picture cannot be kept: {describe_error(error)}"
        return _warn(text) | {"upload": {"value": None}}
    session.cancel()
    session.open(photo)
    return show_page(session)


def open_sample(session: Session, sample: Sample) -> Changes:
    """Make a sample the source, and fill in its instruction."""
    session.cancel()
    number = session.next_number()
    session.open(add_picture(sample.picture, sample.name, session.folder, number))
    return show_page(session) | {"instruction": {"value": sample.instruction}}


def use_result(session: Session) -> Changes:
    """Make the result the source of the next edit."""
    if session.busy:
        return _warn(words.BUSY)
    session.use_result()
    return show_page(session) | {"instruction": {"value": ""}}


def undo(session: Session) -> Changes:
    """Return to the edit whose result is the source."""
    if session.busy:
        return _warn(words.BUSY)
    previous = session.undo()
    return {} if previous is None else _show_round(session, previous)


def go_to(session: Session, index: int) -> Changes:
    """Return to an edit of the history."""
    if session.busy:
        return _warn(words.BUSY)
    if not 0 <= index < len(session.rounds):
        return {}
    session.go_to(session.rounds[index])
    return _show_round(session, session.rounds[index])


def clear_paint(session: Session) -> Changes:
    """Put the source back where the user has emptied the whole canvas."""
    return {"painting": {"value": _canvas(session.source, None)}}


def cancel(session: Session) -> Changes:
    """Cancel the preview or edit that runs or waits for its turn."""
    session.cancel()
    return _show_cancelled(session)


def edit(desk: Desk, session: Session, order: Order, with_pictures: bool) -> Iterator[Changes]:
    """Edit the source, and show every step and the result."""
    source = session.source

    def work(job: Job[Edited]) -> Edited:
        return desk.edit(_checked(source, order), order, job)

    yield {"tabs": {"selected": RESULT_TAB}}
    edited = yield from _follow(session, Job(work, with_pictures))
    if edited is None or source is None:
        return
    try:
        finished = session.add(source, order, edited)
    except (OutputError, OSError) as error:
        yield _stopped(session, f"The result cannot be written: {error}")
        return
    yield _show_outcome(session)
    if finished.report.unedited:
        yield _warn("Nothing was edited: see the notes below the picture.")


def preview(desk: Desk, session: Session, order: Order) -> Iterator[Changes]:
    """Run the first steps of an edit of the source, and show what it would recompute."""
    source = session.source

    def work(job: Job[Preview]) -> Preview:
        if order.mask is not None and order.mask_mode == "replace":
            raise BadInput("Exactly the paint is recomputed: there is nothing to find out.")
        return desk.preview(_checked(source, order), order, job)

    found = yield from _follow(session, Job(work, with_pictures=False))
    if found is None:
        return
    yield _show_outcome(session) | {
        "status": {"value": words.status("The preview is ready.")},
        "scores": {"value": fit_to_page(found.heat_map)},
        "report": {"value": words.preview(found.report, float(np.mean(found.region)))},
        "details": {"value": found.report.summary()},
        "details_box": {"visible": True},
        "tabs": {"selected": SCORES_TAB},
    }


def show_page(session: Session, mask: Image.Image | None = None) -> Changes:
    """Return the whole page for a session in which nothing runs, with a mask on the source."""
    source = session.source
    has_source = source is not None
    return _show_outcome(session) | {
        "upload": {"visible": not has_source, "value": None},
        "samples_box": {"visible": not has_source},
        "other_picture": {"visible": has_source},
        "scores": {"value": None},
        "in_crops": {"visible": True} if session.is_large else {"visible": False, "value": False},
        "painting": {"visible": has_source, "value": _canvas(source, mask)},
    }


def _show_outcome(session: Session) -> Changes:
    """Return the page without the source, whose paint stays, for a session that does nothing."""
    gallery = [(round.thumbnail, words.caption(round)) for round in session.rounds]
    changes = _show_result(session, session.shown) | _busy(False)
    return changes | {
        "history": {"value": gallery, "visible": bool(gallery), "selected_index": None},
        "undo": {"interactive": session.previous is not None},
        "use_result": {"interactive": session.shown is not None},
        "edit": {"interactive": session.source is not None},
        "preview": {"interactive": session.source is not None},
    }


def _show_result(session: Session, shown: Round | None) -> Changes:
    """Show a result beside its source, or an empty place."""
    if shown is None:
        ready = words.IDLE if session.source is None else words.READY
        return {
            "status": {"value": words.status(ready)},
            "running": {"value": None, "visible": True},
            "comparison": {"value": None, "visible": False},
            "region": {"value": None},
            "report": {"value": ""},
            "details": {"value": ""},
            "details_box": {"visible": False},
            "download": {"value": None, "interactive": False},
        }
    return {
        "status": {"value": words.status("The edit is ready.")},
        "running": {"value": None, "visible": False},
        "comparison": {"value": _before_and_after(shown), "visible": True},
        "region": {"value": shown.overlay},
        "report": {"value": words.result(shown)},
        "details": {"value": shown.report.summary()},
        "details_box": {"visible": True},
        "download": {"value": str(shown.result.path), "interactive": True},
        "tabs": {"selected": RESULT_TAB},
    }


def _show_round(session: Session, finished: Round) -> Changes:
    """Show a finished edit with all that was asked for."""
    order = finished.order
    return show_page(session, order.mask) | {
        "instruction": {"value": order.instruction},
        "mask_mode": {"value": order.mask_mode},
        "seed": {"value": order.seed},
        "preset": {"value": order.preset},
        "steps": {"value": order.steps},
        "in_crops": {"visible": session.is_large, "value": order.detail == "crop"},
    }


def _canvas(source: Photo | None, mask: Image.Image | None) -> dict[str, Any] | None:
    """Return a picture to paint on, with a mask painted on it."""
    if source is None:
        return None
    layers = [] if mask is None else [paint(mask, source.shown.size)]
    composite = source.shown.convert("RGBA")
    for layer in layers:
        composite = Image.alpha_composite(composite, layer)
    return {"background": source.shown, "layers": layers, "composite": composite}


def _before_and_after(finished: Round) -> tuple[Image.Image, Image.Image]:
    """Return the source and the result at one size."""
    after = finished.result.shown
    return finished.source.shown.resize(after.size, Image.Resampling.LANCZOS), after


def _checked(source: Photo | None, order: Order) -> Photo:
    """Return the source, or raise `BadInput` if nothing can be edited."""
    if source is None:
        raise BadInput("Choose a picture first.")
    if not order.instruction.strip():
        raise BadInput("Write what to change first, such as: add a scarf to the dog.")
    if not 0 <= order.seed <= MAX_SEED:
        raise BadInput(f"The seed is {order.seed}: choose one from 0 to {MAX_SEED}.")
    mask = order.mask
    if mask is not None and not same_aspect(mask.size, source.shown.size):
        raise BadInput("The paint does not fit the picture: press the bin above it, paint again.")
    return source


def _follow(session: Session, job: Job[Result]) -> Generator[Changes, None, Result | None]:
    """Let a job wait for its turn, run it and show its steps.

    Returns:
        The result of the job, or None if there is none; the page then says why.
    """
    if not session.begin(job):
        yield _warn(words.BUSY)
        return None
    problem = None
    try:
        yield _busy(True) | {"status": {"value": words.status(words.WAITING)}}
        for step in job.steps():
            yield _show_step(step)
        return job.result()
    except Cancelled:
        pass
    except (BadInput, Failure, ImageError) as error:
        problem = str(error)
    except MemoryError:
        problem = "Out of memory: choose a smaller picture."
    except Exception as error:  # the user cannot mend it; whoever runs the app can
        logger.exception("the app failed")
        problem = f"The app made a mistake ({type(error).__name__}). Its log says more."
    finally:
        session.end(job)
    if problem is not None:
        yield _stopped(session, problem)
    elif not session.busy:  # otherwise the page already shows the next job
        yield _show_cancelled(session)
    return None


def _show_step(step: Progress) -> Changes:
    changes: Changes = {"status": {"value": words.progress(step)}}
    if step.picture is not None:
        changes |= {
            "running": {"value": fit_to_page(step.picture), "visible": True},
            "comparison": {"visible": False},
        }
    return changes


def _show_cancelled(session: Session) -> Changes:
    return _show_outcome(session) | {"status": {"value": words.status(words.CANCELLED)}}


def _stopped(session: Session, problem: str) -> Changes:
    """Show why nothing came out, and let the user go on."""
    line = problem.partition("\n")[0]
    return _show_outcome(session) | {"status": {"value": words.status(line)}} | _warn(line)


def _busy(is_busy: bool) -> Changes:
    names = ("edit", "preview", "undo", "use_result", "other_picture")
    changes: Changes = {name: {"interactive": not is_busy} for name in names}
    variant = "stop" if is_busy else "secondary"
    return changes | {"cancel": {"interactive": is_busy, "variant": variant}}


def _warn(text: str) -> Changes:
    return {WARNING: {"text": text}}
