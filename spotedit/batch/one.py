"""Edit one picture of a batch: the same function in a loop and in a process of Ray."""

import errno
import gc
import json
import re
import time
from contextlib import suppress
from functools import cache

import diffusers
import torch

import spotedit

from ..editor.editor import Editor, OnStep
from ..editor.errors import BadInput, Failure
from ..editor.photo import edit_photo, write_photo
from ..pictures.files import OutputError, make_folder
from ..pictures.images import ImageError
from ..pictures.lines import digest
from .jobs import Job
from .manifest import Row
from .plan import hash_of
from .settings import UNFINISHED, BatchSettings

# An encoder's complaint about one picture has another error number, or none.
_NO_PICTURE_CAN_BE_WRITTEN = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOENT, errno.ENOSPC, errno.EPERM,
    errno.EROFS,
}  # fmt: skip

# names by `BatchSettings.unfinished` and, with a dot, by `atomic_write`
_MADE_THERE = re.compile(r"\.?[0-9a-f]{16}(-[0-9a-f]{8})?\.\w+")


def edit_one(
    editor: Editor, job: Job, settings: BatchSettings, on_step: OnStep | None = None
) -> Row:
    """Edit a picture, write the output and its report, and return the row for the manifest.

    Both files appear whole or not at all, the report first: it has the hash of the output, by which
    a later run knows the output for one of its own.

    If there is something wrong with the picture, or it takes too much memory, the row has the
    `problem`.

    Raises:
        OutputError: no output can be written, as on a full disk.
    """
    row = asked(job, settings)
    try:
        row["input_sha256"] = hash_of(job.image)
        row["mask_sha256"] = None if job.mask is None else hash_of(job.mask)
        return _edit(editor, job, settings, row, on_step)
    except Exception as error:  # one picture must not end the others' work
        if isinstance(error, OutputError) and _stops_all(error):
            made, target = settings.unfinished(job.output), settings.target(job.output)
            raise OutputError(str(error).replace(str(made), str(target))) from error.__cause__
        problem = first_line(error).removeprefix(f"{job.image}: ")
        took_too_much = isinstance(error.__cause__ or error, torch.OutOfMemoryError | MemoryError)
    finally:
        with suppress(OSError):
            settings.unfinished(job.output).unlink()
    if took_too_much:  # the exception, which holds tensors, is gone here
        _free_memory()
    return row | {"problem": problem}


def asked(job: Job, settings: BatchSettings) -> Row:
    """Return the fields of a row that are known before the work."""
    return {
        "output": job.output,
        "input": settings.relative(job.image),
        "input_sha256": None,
        "mask": None if job.mask is None else settings.relative(job.mask),
        "mask_sha256": None,
        "instruction": job.instruction,
        "seed": job.seed,
        "settings": settings.record(),
    }


def _edit(
    editor: Editor, job: Job, settings: BatchSettings, row: Row, on_step: OnStep | None
) -> Row:
    start = time.perf_counter()
    edited, notes = edit_photo(
        editor,
        job.image,
        job.instruction,
        seed=job.seed,
        mask=job.mask,
        mask_mode=settings.mask_mode,
        detail=settings.detail,
        on_step=on_step,
    )
    made = settings.unfinished(job.output)
    make_folder(made.parent)
    notes = notes + write_photo(job.image, edited, made, settings.keep, force=True)
    _check_unchanged(job, row)
    report = edited.report
    row = row | {
        "sha256": digest(made),
        "size": list(edited.picture.size),
        "seconds": time.perf_counter() - start,
        "r": report.mean_ratio,
        "region": None if report.region is None else float(report.region.mean()),
        "reason": report.reason,
        "cache_bytes": report.cache_bytes,
        "doubts": report.doubts,
        "notes": notes,
        "versions": versions(),
    }
    text = json.dumps({"row": row, "report": report.to_dict()}, indent=1) + "\n"
    _put_in_place(job, settings, text)
    return row


def _put_in_place(job: Job, settings: BatchSettings, report_text: str) -> None:
    """Write the report, and move the output from its unfinished place, in this order."""
    made, target = settings.unfinished(job.output), settings.target(job.output)
    made_report, report = made.with_suffix(".json"), settings.report(job.output)
    try:
        for path in (target, report):
            make_folder(path.parent)
        made_report.write_text(report_text, encoding="utf-8")
        if target.exists() and not job.overwrite:
            raise ImageError(f"{target}: appeared meanwhile, and is not overwritten")
        made_report.replace(report)
        made.replace(target)
    except OSError as error:
        raise OutputError(
            f"{target}: cannot be written ({error.strerror}); make room there or choose another "
            "folder"
        ) from error


def _check_unchanged(job: Job, row: Row) -> None:
    """Raise `ImageError` if a file is no longer the one that was hashed and edited."""
    mask_hash = None if job.mask is None else hash_of(job.mask)
    if hash_of(job.image) != row["input_sha256"] or mask_hash != row["mask_sha256"]:
        raise ImageError("was changed while it was edited; run the same command again")


@cache
def versions() -> dict[str, str]:
    """Return the versions of what decides what a picture looks like."""
    return {
        "spotedit": spotedit.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def remove_unfinished(settings: BatchSettings) -> None:
    """Remove what a killed run left. Only files that `edit_one` can have written are removed."""
    folder = settings.out / UNFINISHED
    if folder.is_dir() and not folder.is_symlink():
        for path in folder.iterdir():
            if _MADE_THERE.fullmatch(path.name):
                path.unlink()
        with suppress(OSError):  # it has other files
            folder.rmdir()


def _stops_all(error: OutputError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _NO_PICTURE_CAN_BE_WRITTEN


def first_line(error: Exception) -> str:
    """Return what a person is told about an exception; with its kind, if it is unexpected."""
    first = (str(error).splitlines() or [""])[0]
    expected = isinstance(error, ValueError | BadInput | Failure)
    return first if first and expected else f"{type(error).__name__}: {first}"


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
