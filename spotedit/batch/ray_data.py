"""Edit the pictures of a batch on several devices or hosts, with Ray Data.

An actor loads one pipeline and edits one picture at a time, as the plain loop does. It writes the
outputs itself, so that all hosts must see the users' files and the folder of the outputs at the
same paths. The rows return to the process that started the batch.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..editor.editor import Editor
from ..editor.errors import Failure
from ..pictures.files import OutputError, make_folder
from ..pictures.lines import append_line, read_lines
from .jobs import Job
from .loop import EditAll, Progress
from .manifest import Row
from .one import asked, edit_one, first_line
from .settings import BatchSettings

OBJECT_STORE_BYTES = 128 * 2**20  # only rows pass through it
_MAX_BLOCKS = 4096
_MAX_ATTEMPTS = 3  # at a picture during which the process was killed; it may be the cause


class EditingActor:
    """A process with one pipeline. It takes and returns rows of one JSON text each."""

    def __init__(self, settings: BatchSettings) -> None:
        self._settings = settings
        self._editor: Editor | None = None
        self._problem: str | None = None
        try:
            self._editor = Editor(settings.editor)
        except Exception as error:  # Ray would start the actor again and again
            self._problem = first_line(error)

    def __call__(self, item: dict[str, str]) -> dict[str, str]:
        if self._editor is None:
            return {"stop": str(self._problem), "row": ""}
        job = _job_from(item["job"])
        try:
            with _attempt(job, self._settings) as number:
                if number > _MAX_ATTEMPTS:
                    problem = f"its process was killed {_MAX_ATTEMPTS} times, perhaps for memory"
                    row = asked(job, self._settings) | {"problem": problem}
                else:
                    row = edit_one(self._editor, job, self._settings)
        except OutputError as error:
            return {"stop": str(error), "row": ""}
        return {"stop": "", "row": json.dumps(row)}


@contextmanager
def _attempt(job: Job, settings: BatchSettings) -> Iterator[int]:
    """Count the attempts at a picture in a file, because a killed process forgets them.

    Ray starts a killed actor, and its picture, again without end.
    """
    path = settings.unfinished(job.output).with_suffix(".attempts")
    make_folder(path.parent)
    append_line(path, {})
    yield len(list(read_lines(path)))
    path.unlink(missing_ok=True)


def edit_on_ray(ray: Any, settings: BatchSettings, num_actors: int | None) -> EditAll:
    """Return the function that edits pictures on the cluster.

    Args:
        ray: the module, connected.
        num_actors: number of processes. None: one for each GPU, or for each core if there is none.
    """

    def edit_all(jobs: Sequence[Job], progress: Progress) -> Iterator[Row]:
        resources = ray.cluster_resources()
        uses_gpus = resources.get("GPU", 0) >= 1 and settings.editor.device != "cpu"
        available = int(resources.get("GPU" if uses_gpus else "CPU", 1))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        items = [{"job": _job_text(job)} for job in jobs]
        dataset = ray.data.from_items(items, override_num_blocks=min(len(items), _MAX_BLOCKS))
        results = dataset.map(
            EditingActor,
            fn_constructor_args=(settings,),
            compute=ray.data.ActorPoolStrategy(size=min(num_actors or available, len(items))),
            num_gpus=1 if uses_gpus else 0,
            num_cpus=0 if uses_gpus else 1,
        )
        try:
            for result in results.iter_rows():
                if result["stop"]:
                    raise Failure(result["stop"])
                yield json.loads(result["row"])
        except ray.exceptions.RayError as error:
            raise Failure(
                f"Ray: {str(error).splitlines()[-1]}; what is finished stays: run the same command "
                "again"
            ) from error

    return edit_all


def _job_text(job: Job) -> str:
    fields = asdict(job) | {"image": str(job.image), "listed": sorted(job.listed)}
    return json.dumps(fields | {"mask": None if job.mask is None else str(job.mask)})


def _job_from(text: str) -> Job:
    fields = json.loads(text)
    mask = None if fields["mask"] is None else Path(fields["mask"])
    listed = frozenset(fields["listed"])
    return Job(**fields | {"image": Path(fields["image"]), "mask": mask, "listed": listed})
