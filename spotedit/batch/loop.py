"""Edit the pictures of a batch one after another, and record each."""

import sys
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from ..editor.editor import Editor
from ..engine.record import StepProgress
from .jobs import Job
from .manifest import Manifest, Row
from .one import edit_one
from .settings import BatchSettings
from .summary import printable

_SECONDS_BETWEEN_LINES = 10  # where the bar is written to a file

EditAll = Callable[[Sequence[Job], "Progress"], Iterator[Row]]


class Progress:
    """A bar of the finished pictures, with the time left and the picture and step at hand."""

    def __init__(self, num_pictures: int) -> None:
        self._is_live = sys.stderr.isatty()
        interval = 0.1 if self._is_live else _SECONDS_BETWEEN_LINES
        self._bar = tqdm(
            total=num_pictures, unit="picture", dynamic_ncols=True, mininterval=interval
        )

    def begin(self, job: Job) -> None:
        self._bar.set_description_str(printable(job.output), refresh=self._is_live)

    def step(self, progress: StepProgress) -> None:
        text = f"step {progress.index + 1}/{progress.total}"
        self._bar.set_postfix_str(text, refresh=self._is_live)

    def finish(self, row: Row) -> None:
        """Count a picture. A problem is printed as a line above the bar."""
        if "problem" in row:
            self._bar.write(printable(f"{row['input']}: {row['problem']}"), file=sys.stderr)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


def edit_here(editor: Editor, settings: BatchSettings) -> EditAll:
    """Return the function that edits pictures in this process, one after another."""

    def edit_all(jobs: Sequence[Job], progress: Progress) -> Iterator[Row]:
        for job in jobs:
            progress.begin(job)
            yield edit_one(editor, job, settings, progress.step)

    return edit_all


def record_all(jobs: Sequence[Job], edit_all: EditAll, manifest: Manifest) -> Iterator[Row]:
    """Edit the pictures, append a row for each as soon as it is finished, and yield it.

    Raises:
        OutputError: an output or a row cannot be written; what is finished stays.
    """
    progress = Progress(len(jobs))
    try:
        for row in edit_all(jobs, progress):
            manifest.append(row)
            progress.finish(row)
            yield row
    finally:
        progress.close()
