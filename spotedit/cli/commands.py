"""The options of every command. tyro makes the command line from these dataclasses."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg
from tyro.constructors import MISSING_NONPROP

from ..editor.settings import MODELS
from ..serve.settings import ServeSettings
from .file import file_defaults
from .options import (
    ConfigOptions,
    FileOptions,
    ModelOption,
    PhotoOptions,
    PipelineOptions,
    SpotOptions,
    at_least,
    optional_word,
)


@dataclass(kw_only=True)
class DemoOptions(FileOptions):
    """Compare the stock pipeline (dense) with SpotEdit (spot) on small scenes.

    Edit held-out scenes with the tiny editor, dense and spot in turn, and compare time and quality.
    This needs no GPU and no network.
    """

    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """Folder, or .png file of the figure. None writes to the folder spotedit-demo, which every run
    overwrites."""
    scenes: Annotated[int, at_least(1)] = 4
    """Number of scenes."""
    steps: Annotated[int, at_least(1)] = 28
    """Number of steps."""
    seed: Annotated[int, at_least(0)] = 0
    """Seed of the first scene."""
    force: bool = False
    """Overwrite the files of --out."""
    config: OmitArgPrefixes[ConfigOptions]


@dataclass(kw_only=True)
class PictureOptions(SpotOptions):
    """The options of a command that edits one picture."""

    image: Annotated[Positional[Path], arg(metavar="IMAGE")]
    """The picture to edit."""
    instruction: Annotated[Positional[str], arg(metavar="INSTRUCTION")]
    """What to change, such as "add a scarf to the dog"."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="OUT")]
    """File for the result."""
    model: ModelOption = None
    force: bool = False
    """Overwrite the output files."""


@dataclass(kw_only=True)
class EditOptions(PictureOptions):
    """Edit a picture."""

    mask: Path | None = None
    """Picture with the aspect ratio of IMAGE that shows where IMAGE may change: in white, or in any
    colour on a transparent background."""
    mask_mode: Literal["intersect", "union", "replace"] = "intersect"
    """How the mask is combined with the tokens that SpotEdit selects."""
    compare: bool = False
    """Also edit with the stock pipeline (dense). Write OUT-dense and OUT-compare.png, and print
    both times."""
    report: Annotated[Path | None, arg(metavar="R.json")] = None
    """File for the report of what was skipped."""
    fail_if_unchanged: bool = False
    """Exit with status 3 if nothing was edited. OUT is still written."""
    photo: OmitArgPrefixes[PhotoOptions]


@dataclass(kw_only=True)
class BatchOptions(SpotOptions):
    """Edit many pictures; a run that was stopped can be continued.

    Edit the pictures of folders, patterns or a list. Each output has its picture's name, below
    --out. To continue a run that was stopped, run the same command again: it makes what is missing,
    and what was replaced since.
    """

    inputs: Annotated[Positional[tuple[str, ...]], arg(metavar="INPUT ... INSTRUCTION")]
    """Pictures, folders (with their sub-folders) or quoted patterns such as "photos/**/*.jpg", and
    what to change. Or one list, a .csv or .jsonl file, whose rows have image and any of
    instruction, mask, seed and output; then INSTRUCTION is for the rows without one."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="DIR")]
    """Folder for the outputs, their reports and the record of what is finished."""
    model: ModelOption = None
    format: Literal["png", "jpg", "webp", "tif"] | None = None
    """Format of the outputs. None takes that of each picture."""
    mask: Annotated[Path | None, arg(metavar="PATH")] = None
    """A mask for all pictures, or a folder with a mask for each, of the same relative path and name
    up to the suffix; see `spotedit edit --help`."""
    mask_mode: Literal["intersect", "union", "replace"] = "intersect"
    """How the mask is combined with the tokens that SpotEdit selects."""
    dry_run: bool = False
    """Edit and write nothing. List what would be edited, what is finished and what cannot be
    read."""
    limit: Annotated[int | None, at_least(1)] = None
    """Edit at most this many pictures."""
    contact_sheet: bool = False
    """Also write DIR/contact-sheet.html: before, after and region of every picture."""
    force: bool = False
    """Make pictures again that were made with other settings, and overwrite other files in their
    places."""
    ray: Annotated[str | None, optional_word("ADDRESS")] = None
    """Edit in several processes with Ray Data: on this machine, or on the cluster at ADDRESS
    ("auto" or HOST:PORT), whose hosts must see all files at the same paths."""
    ray_actors: Annotated[int | None, at_least(1)] = None
    """Number of processes with --ray. None: one for each GPU, or for each core if there is none."""
    photo: OmitArgPrefixes[PhotoOptions]


@dataclass(kw_only=True)
class PreviewOptions(PictureOptions):
    """See what an edit would regenerate.

    Run an edit until SpotEdit first decides which tokens change. Write a figure to OUT: the source,
    the draft and the scores. OUT-mask.png has the size of IMAGE and is white where `spotedit edit`
    with the same options would regenerate at first. You can change that mask and give it to --mask.
    """


@dataclass(kw_only=True)
class AppOptions(SpotOptions):
    """Open a page in the browser, in which people edit their photographs.

    Everything stays on this machine: the page loads nothing from other hosts, and only this machine
    can open it unless you change --host or set --share.
    """

    model: Annotated[str, arg(metavar="MODEL", help=f"{MODELS}.")] = "tiny"
    host: str = "127.0.0.1"
    """Address to listen at. 0.0.0.0 lets every machine of the network open the page."""
    port: Annotated[int | None, at_least(0)] = None
    """Port to listen at. None takes the first free one from 7860 on."""
    share: bool = False
    """Also give the page a public address, through Gradio's servers. Everyone who has the address
    can edit pictures on this machine."""
    open: bool = False
    """Open the page in your browser."""


@dataclass(kw_only=True)
class VerifyOptions(SpotOptions):
    """Compare the stock pipeline (dense) with SpotEdit (spot) on your own pictures.

    Edit each picture in both ways, in the same loop. Compare the time, the background and the seam,
    which is the ring of tokens around the regenerated region. Write the numbers to a JSON file that
    you can share; it has no pictures, names or instructions.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL", help=f"{MODELS}.")]
    pairs: Annotated[Positional[tuple[str, ...]], arg(metavar="PICTURE INSTRUCTION ...")]
    """Pictures, each followed by its instruction."""
    row: Annotated[Path, arg(metavar="FILE.json")] = Path("spotedit-verify.json")
    """File for the numbers: a row for bench/results/community, if you share it."""
    force: bool = False
    """Overwrite FILE.json."""


@dataclass(kw_only=True)
class EvalOptions(SpotOptions):
    """Compare the stock pipeline (dense) with SpotEdit (spot) on a published benchmark.

    Edit every picture in both ways, measure, and print a table. --variants compares several
    settings of SpotEdit with one dense edit of each picture. To continue a run that was stopped,
    run the same command again. `torchrun --nproc-per-node N -m spotedit.cli eval ...` divides
    the pictures among N processes.
    """

    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """Folder of PIE-Bench, PIE-Bench++ or ImgEdit Basic."""
    out: Path
    """Folder for rows, pictures and table.md."""
    model: ModelOption = None
    pictures: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder that the benchmark's picture paths are relative to. None takes the usual one."""
    variants: Annotated[Path | None, arg(metavar="FILE.toml")] = None
    """File of the settings to compare. Its table [NAME] has the options of SpotEdit in which NAME
    differs from those of the command."""
    limit: Annotated[int | None, at_least(1)] = None
    """Use only the first pictures, at most this many."""
    clip: Annotated[str | None, arg(metavar="MODEL")] = None
    """Folder or id of the model for the CLIP score. None takes openai/clip-vit-large-patch14."""
    prompts: bool = False
    """Write prompts.jsonl and source/, from which a vision-language model can score the edits."""
    score_only: bool = False
    """Edit nothing; measure the edits that exist."""


@dataclass(kw_only=True)
class CalibrateOptions(FileOptions):
    """Fit TeaCache to a model.

    Edit pictures with the stock pipeline and fit the coefficients that TeaCache(coefficients=...)
    takes, for a model without published ones. Choose pictures and numbers of steps that are typical
    of your edits.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL", help=f"{MODELS}.")]
    pairs: Annotated[Positional[tuple[str, ...]], arg(metavar="PICTURE INSTRUCTION ...")] = ()
    """Pictures, each followed by its instruction."""
    scenes: Annotated[int, at_least(1)] = 16
    """Number of scenes to edit if the model is tiny and no pictures are given."""
    also: Annotated[tuple[Annotated[int, at_least(2)], ...], arg(metavar="INT ...")] = ()
    """Other numbers of steps to edit with, in addition to --steps. One fit covers all of them."""
    out: Annotated[Path, arg(metavar="FILE.json")] = Path("spotedit-teacache.json")
    """File for the coefficients and for what they were fitted to."""
    force: bool = False
    """Overwrite FILE.json."""
    # The next two are accepted so that one list of options suits every command.
    preset: str = "default"
    """Has no effect, because only the stock pipeline edits here."""
    threshold: str | None = None
    """Has no effect, because only the stock pipeline edits here."""
    pipeline: OmitArgPrefixes[PipelineOptions]


@dataclass(kw_only=True)
class ServeOptions(SpotOptions):
    """Edit pictures over HTTP.

    Serve POST /v1/images/edits in the form that clients of hosted image APIs use. There is no
    authentication without --api-key-file.
    """

    model: ModelOption = None
    host: str = "127.0.0.1"
    """Address to listen at. The default is reachable from this machine only."""
    port: Annotated[int, at_least(0)] = 8000
    """Port to listen at. 0 takes a free one."""
    devices: Annotated[str | None, arg(metavar="DEVICES")] = None
    """Devices with a pipeline each, such as cuda:0,cuda:1. `all` takes every GPU. None takes
    --device."""
    queue: Annotated[int, at_least(0)] = ServeSettings.queue
    """Number of requests that may wait for a pipeline. Further ones are refused with status 429."""
    max_bytes: Annotated[int, at_least(1)] = ServeSettings.max_bytes
    """Largest number of bytes of a request."""
    max_pixels: Annotated[int, at_least(1)] = ServeSettings.max_pixels
    """Largest number of pixels of an uploaded picture."""
    max_output_pixels: Annotated[int, at_least(1)] = ServeSettings.max_output_pixels
    """Largest number of pixels of a size that a client asks for."""
    max_prompt: Annotated[int, at_least(1)] = ServeSettings.max_prompt
    """Largest number of characters of a prompt."""
    max_pictures: Annotated[int, at_least(1)] = ServeSettings.max_pictures
    """Largest number of pictures that one request can ask for."""
    transfer_seconds: float = ServeSettings.transfer_seconds
    """Longest time for the upload of a request, and for the client to read its answer."""
    request_seconds: float = ServeSettings.request_seconds
    """Longest time from the end of an upload to the answer."""
    shutdown_seconds: Annotated[int, at_least(1)] = 60
    """Longest time for the running edits to finish after SIGTERM."""
    api_key_file: Annotated[Path | None, arg(metavar="FILE")] = None
    """File with the key that clients must send as `Authorization: Bearer KEY`."""
    ray: Annotated[str | None, optional_word("ADDRESS")] = None
    """Serve with Ray Serve: on this machine, or on the cluster at ADDRESS ("auto" or HOST:PORT)."""
    replicas: Annotated[int | None, at_least(1)] = None
    """Number of processes with --ray, which have a pipeline and a queue each. None: one."""


@dataclass(kw_only=True)
class EnvOptions:
    """Print versions and devices, for bug reports."""


COMMANDS: dict[str, type] = {
    "demo": DemoOptions,
    "edit": EditOptions,
    "batch": BatchOptions,
    "preview": PreviewOptions,
    "app": AppOptions,
    "verify": VerifyOptions,
    "eval": EvalOptions,
    "calibrate": CalibrateOptions,
    "serve": ServeOptions,
    "env": EnvOptions,
}


def parse(command: str, arguments: Sequence[str]) -> Any:
    """Return the options dataclass of `command`, filled from the command line and from its file.

    Raises:
        BadInput: the file of `--config` cannot be read, or has a mistake.
        SystemExit: with 2 if `arguments` has a mistake, with 0 after `--help`.
    """
    options = COMMANDS[command]
    path = _config_file(arguments) if issubclass(options, FileOptions) else None
    default = MISSING_NONPROP if path is None else file_defaults(COMMANDS, command, path)
    try:
        return tyro.cli(options, prog=f"spotedit {command}", args=arguments, default=default)
    except SystemExit as stop:
        if stop.code:
            print(f"usage: spotedit {command} --help lists the options", file=sys.stderr)
        raise


def _config_file(arguments: Sequence[str]) -> Path | None:
    """Return the path of `--config`, or None if the command line has none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?", type=Path)  # tyro reports a missing path
    known, _ = parser.parse_known_args(arguments)
    path: Path | None = known.config
    return path
