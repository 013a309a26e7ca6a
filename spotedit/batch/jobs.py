"""Say what is to be done: a `Job` for every picture."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..editor.errors import BadInput
from ..pictures.images import IMAGE_SUFFIXES
from .inputs import Picture
from .lists import Entry

_MAX_NAME_BYTES = 250  # file systems allow 255, and the report's name is 5 longer


@dataclass(frozen=True)
class Job:
    """One picture and what to do with it.

    Attributes:
        image: absolute path of the user's file, which may not exist.
        output: path of the output relative to the folder of the outputs, with slashes.
        instruction: what to change.
        seed: seed of the noise.
        mask: absolute path of the mask, or None. It may not exist.
        listed: which of "instruction", "seed" and "mask" a list gave. Where the list has another
            one than before, the picture is made again.
        overwrite: whether a file at the output's place may be overwritten.
    """

    image: Path
    output: str
    instruction: str
    seed: int
    mask: Path | None = None
    listed: frozenset[str] = frozenset()
    overwrite: bool = False


def jobs_of_pictures(
    pictures: Iterable[Picture],
    instruction: str,
    seed: int,
    masks: Path | None = None,
    suffix: str | None = None,
) -> list[Job]:
    """Return a job for every picture, all with the same instruction and seed.

    Args:
        masks: a mask for all pictures, or a folder with a mask for each, whose relative path is
            that of the picture up to the suffix. None: no masks.
        suffix: suffix of the outputs. None takes that of the picture.
    """
    return [
        Job(
            picture.path.absolute(),
            _with_suffix(picture.name, suffix).as_posix(),
            instruction,
            seed,
            mask_for(picture.name, masks),
        )
        for picture in pictures
    ]


def jobs_of_list(
    entries: Iterable[Entry],
    folder: Path,
    instruction: str | None,
    seed: int,
    masks: Path | None = None,
    suffix: str | None = None,
) -> list[Job]:
    """Return a job for every row of a list.

    Args:
        folder: the folder of the list; relative paths in it start there.
        instruction, seed, masks: for rows that have none of their own; see `jobs_of_pictures`.
        suffix: suffix of the outputs whose row names none with a suffix.

    Raises:
        BadInput: a row has no instruction, or its output is no path below the outputs' folder.
    """
    jobs = []
    for entry in entries:
        given = entry.instruction or instruction
        if given is None:
            raise BadInput(
                f"{entry.where}: no instruction; fill the column, or give INSTRUCTION for all rows"
            )
        name = _name_in_list(entry)
        mask = mask_for(name, masks) if entry.mask is None else (folder / entry.mask).absolute()
        jobs.append(
            Job(
                (folder / entry.image).absolute(),
                _output_in_list(entry, name, suffix),
                given,
                seed if entry.seed is None else entry.seed,
                mask,
                _given_by(entry),
            )
        )
    return jobs


def _given_by(entry: Entry) -> frozenset[str]:
    names = ("instruction", "seed", "mask")
    return frozenset(name for name in names if getattr(entry, name) is not None)


def mask_for(name: Path, masks: Path | None) -> Path | None:
    """Return the mask of the picture with the relative path `name`; see `jobs_of_pictures`.

    If the folder has none for it, the path of a mask that does not exist is returned, so that the
    picture is reported instead of being edited without a mask.
    """
    if masks is None:
        return None
    if not masks.is_dir():
        return masks.absolute()
    suffixes = (*IMAGE_SUFFIXES, name.suffix, *map(str.upper, IMAGE_SUFFIXES))
    candidates = [(masks / name).with_suffix(suffix).absolute() for suffix in suffixes]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _with_suffix(name: Path, suffix: str | None) -> Path:
    return name if suffix is None else name.with_suffix(suffix)


def _name_in_list(entry: Entry) -> Path:
    """Return the picture's relative path, or its name if the list has no plain relative path."""
    path = Path(entry.image)
    if path.name in ("", ".."):
        raise BadInput(f"{entry.where}: image is {entry.image!r}; expected a picture file")
    return Path(path.name) if path.is_absolute() or ".." in path.parts else path


def _output_in_list(entry: Entry, name: Path, suffix: str | None) -> str:
    if entry.output is None:
        output = _with_suffix(name, suffix)
        if output.suffix.lower() not in IMAGE_SUFFIXES:  # the picture will be reported as bad
            output = output.with_name(f"{output.name}.png")
        return output.as_posix()
    output = Path(entry.output)
    if not _stays_below(entry.output) or not output.name:
        raise BadInput(
            f"{entry.where}: output is {entry.output!r}; expected a relative path without .., "
            "which stays in the folder of the outputs"
        )
    if output.suffix.lower() not in IMAGE_SUFFIXES:
        output = output.with_name(f"{output.name}{suffix or name.suffix}")
    return output.as_posix()


def _stays_below(text: str) -> bool:
    """Return whether a path is relative and goes nowhere up, by the rules of any system."""
    windows, posix = PureWindowsPath(text), PurePosixPath(text)
    return not (windows.anchor or posix.anchor or ".." in windows.parts or ".." in posix.parts)


def check_outputs(jobs: Sequence[Job], out: Path) -> None:
    """Check that every job has a place of its own in the folder `out`.

    Names that differ only in case or in their Unicode form count as equal, because some file
    systems take them for equal.

    Raises:
        BadInput: two jobs have the same output, an output is a picture to be edited or a mask, its
            name is too long, or a link leads out of `out`.
    """
    folder = out.resolve()
    inputs = {path.resolve() for job in jobs for path in (job.image, job.mask) if path is not None}
    by_name: dict[str, Job] = {}
    for job in jobs:
        key = unicodedata.normalize("NFC", job.output).casefold()
        if (other := by_name.setdefault(key, job)) is not job:
            raise BadInput(
                f"{other.image} and {job.image} would both become {job.output}; give the folder "
                "that both are in, rename one, or name the outputs in a list"
            )
        if any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in Path(job.output).parts):
            raise BadInput(
                f"{job.output}: a name of more than {_MAX_NAME_BYTES} bytes; rename it, or name "
                "the output in a list"
            )
        target = out / job.output
        if not target.parent.resolve().is_relative_to(folder):
            raise BadInput(f"{target}: a link leads out of {out}; choose another folder")
        if target.resolve() in inputs:
            raise BadInput(
                f"{target}: is a picture to be edited, or a mask; choose another folder with --out"
            )
    for job in jobs:
        above = PurePosixPath(unicodedata.normalize("NFC", job.output).casefold()).parents
        if blocking := next((by_name[str(path)] for path in above if str(path) in by_name), None):
            raise BadInput(
                f"{blocking.output} cannot be a picture and the folder of {job.output}; rename one"
            )
