"""What the page of one browser remembers: its picture, its finished edits, and the way back."""

import math
import shutil
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from PIL import Image

from ..editor.crop import Detailed
from ..editor.editor import Edited
from ..report import EditReport
from .desk import Order
from .job import Job
from .photos import Photo, add_edit, fit_to_page

MAX_ROUNDS = 50
_THUMBNAIL = (256, 256)  # pixels


@dataclass(frozen=True, eq=False)
class Round:
    """A finished edit.

    Attributes:
        number: counts the edits of the session from 1.
        source: the picture before the edit.
        order: what was asked for.
        parent: number of the round whose result the source is; None if the user gave the source.
        result: the edited picture.
        thumbnail: the result for the history.
        overlay: the result with the recomputed region tinted, or None without a region.
        report: as in `Edited`.
        notes: sentences about what of the original could not be kept.
        detail_notes: sentences about what was not edited again in crops, and why.
    """

    number: int
    source: Photo
    order: Order
    parent: int | None
    result: Photo
    thumbnail: Image.Image
    overlay: Image.Image | None
    report: EditReport
    notes: list[str]
    detail_notes: tuple[str, ...]


@dataclass(eq=False)
class Session:
    """The state of one page. It belongs to one browser tab.

    Attributes:
        folder: holds the files of the session, and nothing else.
        large_from: see `Desk.large_from`.
        source: the picture that the next edit changes, or None.
        parent: number of the round whose result `source` is, or None if the user gave it.
        shown: the round whose result the page shows, or None.
        rounds: the finished edits, oldest first, at most `MAX_ROUNDS`.
        job: the preview or edit that runs or waits for its turn, or None.
    """

    folder: Path
    large_from: int
    source: Photo | None = None
    parent: int | None = None
    shown: Round | None = None
    rounds: list[Round] = field(default_factory=list)
    job: Job | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _numbers: count = field(default_factory=lambda: count(1))

    @property
    def busy(self) -> bool:
        """Tell whether a preview or an edit runs or waits for its turn."""
        return self.job is not None

    @property
    def is_large(self) -> bool:
        """Tell whether the source is so large that crops can make its edits sharper."""
        return self.source is not None and math.prod(self.source.size) >= self.large_from

    @property
    def previous(self) -> Round | None:
        """The round whose result is the source, unless it is no longer in the history."""
        return next((round for round in self.rounds if round.number == self.parent), None)

    def next_number(self) -> int:
        """Return a number for a new file, which no other file of the session has."""
        return next(self._numbers)

    def open(self, photo: Photo) -> None:
        """Make a picture that the user gave the source."""
        replaced = [self.source] if self.source else []
        self.source, self.parent, self.shown = photo, None, None
        self._remove_unused(replaced)

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
        thumbnail = result.shown.copy()
        thumbnail.thumbnail(_THUMBNAIL)
        finished = Round(
            number=number,
            source=source,
            order=order,
            parent=self.parent,
            result=result,
            thumbnail=thumbnail,
            overlay=overlay,
            report=edited.report,
            notes=notes,
            detail_notes=edited.notes if isinstance(edited, Detailed) else (),
        )
        rounds = [*self.rounds, finished]
        dropped, self.rounds = rounds[:-MAX_ROUNDS], rounds[-MAX_ROUNDS:]
        self.shown = finished
        self._remove_unused([photo for round in dropped for photo in (round.source, round.result)])
        return finished

    def use_result(self) -> None:
        """Make the result that is shown the source of the next edit, if there is one."""
        if self.shown is not None:
            self.source, self.parent, self.shown = self.shown.result, self.shown.number, None

    def go_to(self, finished: Round) -> None:
        """Return to a finished edit: its source is the source again, and its result is shown."""
        self.source, self.parent = finished.source, finished.parent
        self.shown = finished

    def undo(self) -> Round | None:
        """Return to the round whose result is the source now; return it, or None without one."""
        previous = self.previous
        if previous is not None:
            self.go_to(previous)
        return previous

    def begin(self, job: Job) -> bool:
        """Take note that a job begins; return False if the session has one already."""
        with self._lock:
            if self.busy:
                return False
            self.job = job
            return True

    def end(self, job: Job) -> None:
        """Take note that a job has ended. Do nothing if it was cancelled and another one runs."""
        with self._lock:
            if self.job is job:
                self.job = None

    def cancel(self) -> None:
        """Cancel the preview or edit of this session, if one runs or waits for its turn."""
        with self._lock:
            job, self.job = self.job, None
        if job is not None:
            job.cancel()

    def _remove_unused(self, photos: list[Photo]) -> None:
        """Remove the files of these pictures, except for those that the user can return to."""
        used = {photo.path for round in self.rounds for photo in (round.source, round.result)}
        if self.source is not None:
            used.add(self.source.path)
        for photo in photos:
            if photo.path not in used:
                with suppress(OSError):
                    photo.path.unlink()


def open_session(folder: Path, large_from: int) -> Session:
    """Start a session whose files lie in a new folder inside `folder`."""
    return Session(Path(tempfile.mkdtemp(dir=folder)), large_from)


def close_session(session: Session) -> None:
    """Cancel what runs, and remove the files of a session."""
    session.cancel()
    shutil.rmtree(session.folder, ignore_errors=True)
