"""`spotedit batch` edits many pictures, and can be stopped and continued."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..batch.contact_sheet import sheet_path, write_sheet
from ..batch.inputs import describe_ignored, find_pictures
from ..batch.jobs import Job, check_outputs, jobs_of_list, jobs_of_pictures
from ..batch.lists import is_list, read_list
from ..batch.loop import EditAll, edit_here, record_all
from ..batch.manifest import Manifest, Row, locked
from ..batch.one import remove_unfinished
from ..batch.plan import Plan, make_plan
from ..batch.ray_data import OBJECT_STORE_BYTES, edit_on_ray
from ..batch.settings import BatchSettings
from ..batch.summary import dry_run, say, summary
from ..editor.editor import Editor
from ..editor.errors import BadInput, Failure
from ..editor.loading import choose_device
from ..editor.ray_cluster import check_address, ray_cluster
from ..pictures.files import OutputError, describe_error, make_folder, try_writing
from ..pictures.images import IMAGE_SUFFIXES, ImageError, open_image
from .commands import BatchOptions


def run(options: BatchOptions) -> None:
    """Edit the pictures that are not finished yet.

    Raises:
        BadInput, OutputError, Failure: see `spotedit.cli.main`.
    """
    check_address(options.ray or "")
    settings = _settings(options)
    jobs = _jobs(options)
    check_outputs(jobs, settings.out)
    if options.dry_run:
        plan = _plan(options, jobs, settings, Manifest(settings))
        say(dry_run(plan, _unreadable(plan)))
        return
    make_folder(settings.out)
    _check_writing(settings.out)
    with locked(settings.out):
        manifest = Manifest(settings)
        sheet = sheet_path(settings, options.force) if options.contact_sheet else None
        plan = _plan(options, jobs, settings, manifest)
        try:
            made = _edit(options, plan, settings, manifest, len(jobs))
            if sheet is not None:
                rows = plan.done | {row["output"]: row for row in made}
                ordered = (rows[job.output] for job in jobs if job.output in rows)
                write_sheet(settings, ordered, sheet)
                say(f"{sheet}: the pictures side by side")
        except OutputError as error:  # the folder can be written to, but something else is wrong
            raise Failure(str(error)) from error
    num_failed = sum("problem" in row for row in made)
    if num_failed:
        raise Failure(f"{num_failed} of {len(jobs)} pictures failed")


def _settings(options: BatchOptions) -> BatchSettings:
    """Check the options that need no picture, and return what all pictures share."""
    editor = options.editor_settings(options.model)
    if Path(editor.model).is_dir():
        editor = replace(editor, model=str(Path(editor.model).resolve()))
    if options.ray is None:  # the processes of Ray may be on other hosts
        choose_device(editor.device, editor.offload)
    if options.mask is not None and not options.mask.exists():
        raise BadInput(f"--mask {options.mask}: no such file or folder")
    return BatchSettings(
        editor=editor,
        out=options.out.absolute(),
        keep=options.photo.keep,
        detail=options.photo.detail,
        mask_mode=options.mask_mode,
    )


def _jobs(options: BatchOptions) -> list[Job]:
    """Return a job for every picture that the command line or its list names."""
    if not options.inputs:
        raise BadInput("name pictures, folders or a list, and then the instruction")
    *inputs, last = options.inputs
    suffix = None if options.format is None else f".{options.format}"
    seed = options.pipeline.seed
    lists = [Path(text) for text in options.inputs if is_list(Path(text))]
    if lists and lists != [Path(options.inputs[0])]:
        raise BadInput(f"{lists[-1]}: a list is the only input; give each list a command")
    if lists:
        if len(options.inputs) > 2:
            raise BadInput(f"{lists[0]}: a list is the only input; expected INSTRUCTION after it")
        instruction = last if inputs else None
        entries, unused = read_list(lists[0])
        if unused:
            say(f"{lists[0]}: these columns are not used: {', '.join(unused)}")
        folder = lists[0].parent
        return jobs_of_list(entries, folder, instruction, seed, options.mask, suffix)
    # `Path.exists` raises OSError for a long instruction
    if not inputs or os.path.exists(last) or Path(last).suffix.lower() in IMAGE_SUFFIXES:  # noqa: PTH110
        raise BadInput(
            f'the last argument is {last!r}; expected the instruction, as in "add a scarf to the '
            'dog", after the pictures'
        )
    if not last.strip():
        raise BadInput("the instruction is empty")
    found = find_pictures(inputs, options.out, options.mask)
    if line := describe_ignored(found.ignored):
        say(line)
    return jobs_of_pictures(found.pictures, last, seed, options.mask, suffix)


def _plan(
    options: BatchOptions, jobs: Sequence[Job], settings: BatchSettings, manifest: Manifest
) -> Plan:
    plan = make_plan(jobs, settings, manifest, options.force, options.limit)
    if plan.conflicts:
        raise BadInput(
            f"{settings.out} has files that this command would overwrite:\n"
            f"{plan.explain_conflicts()}\nChoose another folder, or give --force to overwrite them"
        )
    return plan


def _check_writing(folder: Path) -> None:
    try:
        try_writing(folder / "probe")
    except OSError as error:
        raise OutputError(
            f"--out {folder}: cannot be written to ({describe_error(error)}); choose another folder"
        ) from error


def _edit(
    options: BatchOptions,
    plan: Plan,
    settings: BatchSettings,
    manifest: Manifest,
    num_pictures: int,
) -> list[Row]:
    """Edit what is to be made, print the summary, and return the rows."""
    made: list[Row] = []
    try:
        for row in plan.recovered:
            manifest.append(row)
        remove_unfinished(settings)
        if plan.todo:
            with _way_to_edit(options, settings) as edit_all:
                for row in record_all([job for job, _ in plan.todo], edit_all, manifest):
                    made.append(row)
    finally:
        if made or plan.done:
            say(summary(plan.done, made, num_pictures))
        remove_unfinished(settings)
    return made


@contextmanager
def _way_to_edit(options: BatchOptions, settings: BatchSettings) -> Iterator[EditAll]:
    """Load the pipeline, or connect to Ray; yield the function that edits pictures there."""
    if options.ray is None:
        with Editor(settings.editor) as editor:
            yield edit_here(editor, settings)
    else:
        alone = {
            "num_cpus": options.ray_actors or os.cpu_count(),
            "object_store_memory": OBJECT_STORE_BYTES,
        }
        with ray_cluster(options.ray or None, "data", **alone) as ray:
            yield edit_on_ray(ray, settings, options.ray_actors)


def _unreadable(plan: Plan) -> dict[str, str]:
    """Return why pictures and masks cannot be read, by output. Only their headers are read."""
    problems = {}
    for job, _ in plan.todo:
        try:
            for path in filter(None, (job.image, job.mask)):
                with open_image(path):
                    pass
        except ImageError as error:
            problems[job.output] = str(error)
    return problems
