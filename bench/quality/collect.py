"""Make the records of all edits of a run, in a folder from which an interrupted run continues.

The folder holds one line per edit in `records-N.jsonl`, where N is the number of the process that
wrote it. Its sub-folder `dense` holds the dense edits, which later edits are compared with.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import spotedit_kernels
import torch
from PIL import Image
from tqdm import tqdm

import spotedit
from spotedit.evaluation.networks import networks
from spotedit.evaluation.store import JsonLines
from spotedit.pictures.images import save_image
from spotedit.tiny.scenes import Scene

from .. import edits
from . import ablations, measures, record, rivals
from .measures import NETWORK_OF_MEASURE, Figures, Truth
from .record import Setting, edit, paste
from .variants import DEFAULT, Variant

Records = dict[tuple[str, str], Figures]  # (seed as text, variant's name) -> record
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Job:
    """The edits to make and the folder of their records. It is pickled for other processes.

    Attributes:
        setting: shared by all edits.
        variants: by name; the dense edit of a loop comes before the variants with that loop.
        seeds: one for each scene.
        folder: where the records are.
        scenes: makes the scene of a seed.
    """

    setting: Setting
    variants: Mapping[str, Variant]
    seeds: Sequence[int]
    folder: Path
    scenes: Callable[[int], Scene] = edits.varied

    def wanted(self) -> list[tuple[int, str]]:
        """Return (seed, variant's name) of all edits, scene by scene."""
        return [
            (seed, name)
            for scene_index, seed in enumerate(self.seeds)
            for name, variant in self.variants.items()
            if variant.scenes is None or scene_index < variant.scenes
        ]

    def missing(self) -> list[tuple[int, str]]:
        """Return (seed, variant's name) of the edits that have no record of this variant yet."""
        done = JsonLines(self.folder, "records").read()
        return [
            (seed, name)
            for seed, name in self.wanted()
            if done.get((str(seed), name), {}).get("variant") != self.variants[name].text
        ]


def collect(job: Job, workers: int = 1) -> Records:
    """Make the missing edits and return the records of all.

    Args:
        workers: with more than one, edit in so many processes of one thread each.

    Raises:
        RuntimeError: a process failed.
    """
    (job.folder / "dense").mkdir(parents=True, exist_ok=True)
    missing = job.missing()
    if workers == 1:
        _work(job, missing, 0)
    else:
        _work_in_processes(job, missing, workers)
    done = JsonLines(job.folder, "records").read()
    return {(str(seed), name): done[str(seed), name] for seed, name in job.wanted()}


def _work_in_processes(job: Job, missing: Sequence[tuple[int, str]], workers: int) -> None:
    """Divide the scenes among processes; one process makes all edits of a scene."""
    seeds = list(dict.fromkeys(seed for seed, _ in missing))
    context = get_context("spawn")
    processes = []
    for number in range(workers):
        its_seeds = set(seeds[number::workers])
        share = [(seed, name) for seed, name in missing if seed in its_seeds]
        processes.append(context.Process(target=_work_in_one_thread, args=(job, share, number)))
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    if any(codes):
        raise RuntimeError(f"the processes ended with exit codes {codes}; run it again to continue")


def _work_in_one_thread(job: Job, share: Sequence[tuple[int, str]], number: int) -> None:
    torch.set_num_threads(1)
    _work(job, share, number)


def _work(job: Job, share: Sequence[tuple[int, str]], number: int) -> None:
    """Make the edits of a share and append their records; stop if the parent process has died."""
    if not share:
        return
    pipes = defaultdict[bool, Any](job.setting.load)  # True: for rivals that leave traces
    measuring_pipe = job.setting.load()
    distances = networks(measuring_pipe.device, names=tuple(NETWORK_OF_MEASURE.values()))
    lines, parent = JsonLines(job.folder, "records", number), parent_process()
    done, truth = lines.read(), None
    arguments = job.setting.arguments(job.scenes(share[0][0]), 0, Variant())
    measuring_pipe(**arguments | {"num_inference_steps": _WARM_UP_STEPS})
    for seed, name in tqdm(share, desc="editing", unit="edit", position=number):
        if parent is not None and not parent.is_alive():
            return
        if truth is None or truth.seed != seed:
            truth = Truth(measuring_pipe, job.scenes(seed), seed, distances)
        variant, scene = job.variants[name], truth.scene
        row = {"key": str(seed), "mode": name, "variant": variant.text}
        row |= {"kind": scene.kind, "area": float(scene.mask.mean())}
        leaves_traces = variant.rival in rivals.LASTING
        try:
            row |= _record(job, pipes[leaves_traces], truth, name, done)
        except Exception as error:  # a library that fails on this editor is a result, too
            row["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            del pipes[leaves_traces]  # the failed call may have left it in another state
        lines.append(row)
        done[str(seed), name] = row


def _record(job: Job, pipe: Any, truth: Truth, name: str, done: Records) -> Figures:
    """Edit one scene with one variant; a dense edit is saved, others are compared with it."""
    variant, seed = job.variants[name], str(truth.seed)
    loop = variant.loop.dense
    path = job.folder / "dense" / f"{loop}-{seed}.png"
    if name == loop:
        picture, figures = edit(pipe, job.setting, variant, truth, None)
        save_image(Image.fromarray(picture), path, force=True)
        return figures
    reference = done[seed, loop]
    if "error" in reference:
        return {"error": reference["error"]}
    dense = np.asarray(Image.open(path))
    if variant.paste is not None:
        return paste(variant, truth, dense, reference, done[seed, DEFAULT])
    return edit(pipe, job.setting, variant, truth, dense)[1]


def code(weights: str) -> str:
    """Hash the sources and the weights' hash: records depend on nothing else but the variant."""
    digest = hashlib.sha256(weights.encode())
    packages = (Path(package.__file__).parent for package in (spotedit, spotedit_kernels))
    paths = [path for folder in packages for path in folder.rglob("*.py")]
    paths += [Path(module.__file__) for module in (ablations, edits, measures, record, rivals)]
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
