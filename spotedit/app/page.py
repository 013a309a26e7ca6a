"""`create_app` makes the page: it ties what the user does to the handlers."""

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from . import handlers, words
from .desk import Desk, Order
from .handlers import WARNING, Changes
from .layout import Parts, lay_out
from .painting import painted_mask
from .samples import Sample, tiny_samples
from .session import Session, close_session, open_session

_CACHE_CHECKED_EVERY, _CACHE_KEPT = 3600, 24 * 3600  # seconds
_NUM_RANDOM_SEEDS = 2**32
_NUM_READERS = 4  # pictures that are read at the same time
_MAX_JOBS = 24  # edits and previews that run or wait for the editor; Gradio has 40 threads

# What every event of the page has in common.
_EVENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

# Screen readers say what the status says, except for the single steps.
_ON_LOAD = "() => document.getElementById('status').setAttribute('aria-live', 'polite')"

Updates = dict[Any, Any]  # what Gradio wants: the changes of a component by component


def create_app(desk: Desk, samples: Sequence[Sample] | None = None, seed: int = 0) -> gr.Blocks:
    """Make the page of `desk`; `launch.launch` opens it.

    Several users may open the page. They share the editor, which serves them in turn. Each browser
    tab has a session of its own, whose files are removed an hour after the tab is closed.

    Args:
        samples: pictures to try. None takes the tiny editor's, or none for another model.
        seed: the seed that the page starts with.
    """
    if samples is None:
        samples = tiny_samples() if desk.model == "tiny" else []
    folder = tempfile.TemporaryDirectory(prefix="spotedit-app-")  # is removed with the page
    app = gr.Blocks(
        title="spotedit",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(_CACHE_CHECKED_EVERY, _CACHE_KEPT),
    )
    with app:
        rows = [(_write_sample(sample, folder.name), sample.instruction) for sample in samples]
        parts = lay_out(rows, desk.preset, desk.steps, seed)

        def start() -> Updates:
            """Let the user choose a picture, now that there is a session."""
            session = open_session(Path(folder.name), desk.large_from)
            shown = {"upload": {"visible": True}, "samples_box": {"visible": bool(samples)}}
            return {parts["session"]: session} | _updates(parts, shown)

        def end(session: Session | None) -> None:
            if session is not None:
                close_session(session)
                desk.forget(session.folder)

        parts["session"].delete_callback = end

        app.load(start, outputs=[parts["session"], *_outputs(parts)], queue=False, **_EVENT)
        app.load(None, js=_ON_LOAD, **_EVENT)
        _tie_pictures(parts, samples)
        _tie_work(parts, desk)
    app.queue()
    return app


def _write_sample(sample: Sample, folder: str) -> str:
    path = Path(folder) / f"sample-{sample.name}.png"
    sample.picture.save(path)
    return str(path)


def _tie_pictures(parts: Parts, samples: Sequence[Sample]) -> None:
    """Let the user choose the source: a file, a sample, a result or an earlier round."""
    session, outputs = parts["session"], _outputs(parts)
    options = {"outputs": outputs, "concurrency_limit": _NUM_READERS, **_EVENT}

    def open_sample(session: Session, index: int) -> Changes:
        return handlers.open_sample(session, samples[index])

    def go_to(session: Session, event: gr.SelectData) -> Updates:
        return _updates(parts, _on_session(handlers.go_to, session, event.index))

    for name in ("upload", "other_picture"):
        parts[name].upload(_tied(parts, handlers.open_file), [session, parts[name]], **options)
    parts["painting"].clear(_tied(parts, handlers.clear_paint), [session], **options)
    parts["samples"].click(_tied(parts, open_sample), [session, parts["samples"]], **options)
    parts["use_result"].click(_tied(parts, handlers.use_result), [session], **options)
    parts["undo"].click(_tied(parts, handlers.undo), [session], **options)
    parts["history"].select(go_to, [session], **options)


def _tie_work(parts: Parts, desk: Desk) -> None:
    """Let the user preview, edit and cancel."""
    session, outputs = parts["session"], _outputs(parts)
    names = ("instruction", "painting", "mask_mode", "preset", "steps", "seed", "in_crops")
    inputs = [session, *(parts[name] for name in names)]

    def edit(session: Session, *values: Any) -> Iterator[Updates]:
        *request, with_pictures = values
        order = _order(*request)
        yield from _each(parts, session, lambda: handlers.edit(desk, session, order, with_pictures))

    def preview(session: Session, *request: Any) -> Iterator[Updates]:
        order = _order(*request)
        yield from _each(parts, session, lambda: handlers.preview(desk, session, order))

    def new_seed() -> int:
        return random.randrange(_NUM_RANDOM_SEEDS)

    # One event is a whole job. Neither a chain of events nor Gradio's way to cancel one will do: a
    # browser that is slow to send the second event sends it after the user has cancelled the first.
    options = {
        "outputs": outputs,
        "concurrency_limit": _MAX_JOBS,  # the desk gives them their turns
        "concurrency_id": "editor",
        "trigger_mode": "multiple",  # the session refuses a second job, and says so
        **_EVENT,
    }
    starts_edit = [parts["edit"].click, parts["instruction"].submit]
    gr.on(starts_edit, edit, [*inputs, parts["with_pictures"]], **options)
    parts["preview"].click(preview, inputs, **options)
    cancel = _tied(parts, handlers.cancel)
    parts["cancel"].click(cancel, [session], outputs, queue=False, **_EVENT)
    parts["new_seed"].click(new_seed, outputs=parts["seed"], queue=False, **_EVENT)


def _order(
    instruction: str,
    painting: dict[str, Any] | None,
    mask_mode: Any,
    preset: Any,
    steps: int,
    seed: int | None,
    in_crops: bool,
) -> Order:
    """Return what the page asks for."""
    mask = painted_mask(painting["layers"]) if painting else None
    return Order(
        instruction=instruction or "",
        mask=mask,
        mask_mode=mask_mode,
        seed=int(seed or 0),
        preset=preset,
        steps=int(steps),
        detail="crop" if in_crops else "model",
    )


def _outputs(parts: Parts) -> list[Any]:
    return [part for name, part in parts.items() if name != "session"]


def _tied(parts: Parts, handler: Callable[..., Changes]) -> Callable[..., Updates]:
    """Return a function for Gradio that runs a handler of a session."""

    def run(session: Session | None, *values: Any) -> Updates:
        return _updates(parts, _on_session(handler, session, *values))

    return run


def _on_session(handler: Callable[..., Changes], session: Session | None, *values: Any) -> Changes:
    if session is None:  # the server was started anew, or forgot a tab that was long closed
        return {WARNING: {"text": words.EXPIRED}}
    return handler(session, *values)


def _each(
    parts: Parts, session: Session | None, run: Callable[[], Iterator[Changes]]
) -> Iterator[Updates]:
    """Run a handler that changes the page several times."""
    if session is None:
        yield _updates(parts, {WARNING: {"text": words.EXPIRED}})
        return
    for changes in run():
        yield _updates(parts, changes)


def _updates(parts: Parts, changes: Changes) -> Updates:
    """Show the warning among the changes, and return the others in Gradio's form."""
    warning = changes.get(WARNING)
    if warning:
        gr.Warning(warning["text"])
    updates = {
        parts[name]: gr.update(**properties)
        for name, properties in changes.items()
        if name != WARNING
    }
    return updates or {parts["status"]: gr.update()}  # Gradio takes no empty dict
