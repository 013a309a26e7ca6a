"""What the page of one browser remembers: its picture, its finished edits, and the way back."""

import shutil
import tempfile
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from PIL import Image

from ..editor.editor import Edited
from ..report import EditReport
from .desk import Order
from .job import Job
from .photos import Photo, add_edit, fit_to_page

MAX_ROUNDS = 50


@dataclass(frozen=True, eq=False)
class Round:
    """A finished edit.

    Attributes:
        number: counts the edits of the session from 1.
        source: the picture before the edit.
        order: what was asked for.
        parent: the round whose result the source is, or None if the user gave the source.
        result: the edited picture.
        overlay: the result with the recomputed region tinted, or None without a region.
        report, seconds: as in `Edited`.
        notes: sentences about what of the original could not be kept.
    """

    number: int
    source: Photo
    order: Order
    parent: "Round | None"
    result: Photo
    overlay: Image.Image | None
    report: EditReport
    seconds: float
    notes: list[str]


@dataclass(eq=False)
class Session:
    """The state of one page. It belongs to one browser tab.

    Attributes:
        folder: holds the files of the session, and nothing else.
        source: the picture that the next edit changes, or None.
        parent: the round whose result `source` is, or None if the user gave it.
        shown: the round whose result the page shows, or None.
        rounds: the finished edits, oldest first, at most `MAX_ROUNDS`.
        job: the running preview or edit, or the last one.
        busy: whether a preview or an edit runs or waits for its turn.
    """

    folder: Path
    source: Photo | None = None
    parent: Round | None = None
    shown: Round | None = None
    rounds: list[Round] = field(default_factory=list)
    job: Job | None = None
    busy: bool = False
    _numbers: count = field(default_factory=lambda: count(1))

    def next_number(self) -> int:
        """Return a number for a new file, which no other file of the session has."""
        return next(self._numbers)

    def open(self, photo: Photo) -> None:
        """Make a picture that the user gave the source."""
        self.source, self.parent, self.shown = photo, None, None

    def add(self, source: Photo, order: Order, edited: Edited) -> Round:
        """Keep a finished edit, and show it.

        Raises:
            OutputError: the picture cannot be written.
        """
        number = 1 + (self.rounds[-1].number if self.rounds else 0)
        result, notes = add_edit(source, edited, self.next_number())
        overlay = None
        if edited.report.region is not None:
            overlay = edited.report.overlay(fit_to_page(edited.picture))
        finished = Round(
            number=number,
            source=source,
            order=order,
            parent=self.parent,
            result=result,
            overlay=overlay,
            report=edited.report,
            seconds=edited.seconds,
            notes=notes,
        )
        self.rounds = [*self.rounds, finished][-MAX_ROUNDS:]
        self.shown = finished
        return finished

    def use_result(self) -> None:
        """Make the result that is shown the source of the next edit, if there is one."""
        if self.shown is not None:
            self.source, self.parent, self.shown = self.shown.result, self.shown, None

    def go_to(self, finished: Round) -> None:
        """Return to a finished edit: its source is the source again, and its result is shown."""
        self.source, self.parent = finished.source, finished.parent
        self.shown = finished

    def undo(self) -> Round | None:
        """Return to the round whose result is the source now; return it, or None without one."""
        previous = self.parent
        if previous is not None:
            self.go_to(previous)
        return previous

    def cancel(self) -> None:
        """Cancel the preview or edit of this session, if one runs or waits for its turn."""
        self.busy = False
        if self.job is not None:
            self.job.cancel()


def open_session(folder: Path) -> Session:
    """Start a session whose files lie in a new folder inside `folder`."""
    return Session(Path(tempfile.mkdtemp(dir=folder)))


def close_session(session: Session | None) -> None:
    """Cancel what runs, and remove the files of a session."""
    if session is not None:
        session.cancel()
        shutil.rmtree(session.folder, ignore_errors=True)
