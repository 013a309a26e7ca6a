"""Decide which pictures are finished, which are to be made, and what stands in the way."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from ..pictures.files import describe_error
from ..pictures.images import ImageError, load_image
from ..pictures.lines import digest
from .jobs import Job
from .manifest import Manifest, Row
from .settings import BatchSettings

_NUM_EXAMPLES = 5
_PATIENCE = 2  # seconds until progress is shown


@dataclass
class Plan:
    """The pictures of a batch.

    Attributes:
        todo: what is to be made, each with the reason.
        done: the rows of what is finished, by output.
        recovered: those rows of `done` that the manifest lacks.
        conflicts: for each reason not to overwrite files, those files.
    """

    todo: list[tuple[Job, str]] = field(default_factory=list)
    done: dict[str, Row] = field(default_factory=dict)
    recovered: list[Row] = field(default_factory=list)
    conflicts: dict[str, list[Path]] = field(default_factory=dict)

    def explain_conflicts(self) -> str:
        """Return a line for each reason in `conflicts`."""
        lines = []
        for reason, paths in self.conflicts.items():
            names = ", ".join(path.name for path in paths[:_NUM_EXAMPLES])
            more = f" and {len(paths) - _NUM_EXAMPLES} more" if len(paths) > _NUM_EXAMPLES else ""
            lines.append(f"{reason}: {names}{more}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _State:
    """What became of a job: finished, to be made, or in conflict with a file that is there."""

    reason: str
    row: Row | None = None  # of a finished picture
    conflict: bool = False


def make_plan(
    jobs: Iterable[Job],
    settings: BatchSettings,
    manifest: Manifest,
    force: bool = False,
    limit: int | None = None,
) -> Plan:
    """Compare the jobs with what is recorded and with the files that are there.

    Args:
        force: make pictures again, and overwrite files, that would be in conflict.
        limit: the most pictures to make, or None.
    """
    plan = Plan()
    # hashing many large files takes a while
    for job in tqdm(jobs, desc="checking", unit="picture", leave=False, delay=_PATIENCE):
        state = _state(job, settings, manifest)
        if state.row is not None:
            plan.done[job.output] = state.row
            if manifest.rows.get(job.output) != state.row:
                plan.recovered.append(state.row)
        elif state.conflict and not force:
            plan.conflicts.setdefault(state.reason, []).append(settings.target(job.output))
        elif limit is None or len(plan.todo) < limit:
            exists = settings.target(job.output).exists()
            plan.todo.append((replace(job, overwrite=exists), state.reason))
    return plan


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a user's file.

    Raises:
        ImageError: it cannot be read, or is no file.
    """
    try:
        if not path.is_file():
            raise ImageError(f"{path}: no such file; expected a picture file")
        return digest(path)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({describe_error(error)})") from error


def _state(job: Job, settings: BatchSettings, manifest: Manifest) -> _State:
    latest = manifest.rows.get(job.output)
    target = settings.target(job.output)
    sha256 = hash_of(target) if target.is_file() else None
    rows = []
    for row in _finished_rows(job, manifest):
        if row["sha256"] == sha256 and not _difference(job, row, settings):
            return _State("finished", row)
        rows.append(row)
    if not target.exists() and not target.is_symlink():
        if rows:
            return _State("its output is missing")
        if latest is None and settings.report(job.output).exists():
            return _State("its report is there, and not made by spotedit batch", conflict=True)
        return _State("it failed before" if latest and "problem" in latest else "new")
    is_ours = sha256 in {*(row["sha256"] for row in rows), *manifest.hashes.get(job.output, ())}
    if not is_ours and not rows:
        return _State("already there, and not made by spotedit batch", conflict=True)
    if not is_ours and _is_picture(target):
        return _State("changed since it was made; move it away to keep it", conflict=True)
    if not rows:
        return _State("it failed before")
    return _difference(job, rows[0], settings) or _State("its output is damaged or older")


def _is_picture(path: Path) -> bool:
    """Tell whether a file is a whole picture. What a power failure leaves may be none."""
    try:
        load_image(path)
    except ImageError:
        return False
    return True


def _finished_rows(job: Job, manifest: Manifest) -> Iterator[Row]:
    """Yield the manifest's row, and then that of the report, if they say that there is an output.

    Reports are large. They are read only if the manifest's row is not the right one.
    """
    for find in (manifest.rows.get, manifest.reported):
        row = find(job.output)
        if row is not None and "sha256" in row:
            yield row


def _difference(job: Job, row: Row, settings: BatchSettings) -> _State | None:
    """Return how a finished row differs from what is asked for; None if it does not.

    It is a conflict if the command line differs: then the results there may be wanted. It is none
    if the user's files, or the row in the list, were changed.
    """
    now = settings.record()
    if row["settings"] != now:
        return _State(_changed_settings(row["settings"], now), conflict=True)
    for name, value in (("instruction", job.instruction), ("seed", job.seed)):
        if row[name] != value:
            return _State(
                f"made with the {name} {row[name]!r} instead of {value!r}",
                conflict=name not in job.listed,
            )
    if _hash_or_none(job.image) != row["input_sha256"]:
        if row["input"] != settings.relative(job.image):
            return _State(f"made from another picture, {row['input']}", conflict=True)
        return _State("the picture was replaced", conflict=False)
    if _hash_or_none(job.mask) != row["mask_sha256"]:
        mask = None if job.mask is None else settings.relative(job.mask)
        if row["mask"] != mask and "mask" not in job.listed:
            return _State(f"made with the mask {row['mask']}, not {mask}", conflict=True)
        return _State("the mask was changed", conflict=False)
    return None


def _hash_or_none(path: Path | None) -> str | None:
    try:
        return None if path is None else hash_of(path)
    except ImageError:
        return None


def _changed_settings(before: object, now: dict[str, object]) -> str:
    if not isinstance(before, dict):
        return "made with other settings"
    changes = [
        f"{name} {json.dumps(before.get(name))} instead of {json.dumps(now.get(name))}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    return f"made with other settings ({'; '.join(changes)})"
