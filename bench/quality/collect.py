"""Records of all edits of a run, kept in a folder so that a killed run goes on where it stopped.

The folder holds a line for every edit in `records-N.jsonl`, N the process that wrote it, and the
dense pictures, which later edits are compared with, in `dense/`.
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
from spotedit.evaluation.store import Lines
from spotedit.pictures.images import save_image
from spotedit.tiny.scenes import Scene

from .. import edits
from . import ablations, measures, record, rivals
from .measures import NETWORKS, Figures, Truth
from .record import Setting, edit, paste
from .variants import DEFAULT, Variant

Records = dict[tuple[str, str], Figures]  # by (seed as text, variant's name)
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Job:
    """Which edits, and where their records are. Goes to other processes.

    Attributes:
        variants: by name, each after the dense edit of its loop.
        scenes: seed -> scene.
    """

    setting: Setting
    variants: Mapping[str, Variant]
    seeds: Sequence[int]
    folder: Path
    scenes: Callable[[int], Scene] = edits.varied

    def wanted(self) -> list[tuple[int, str]]:
        """All (seed, name), a scene's edits together."""
        return [
            (seed, name)
            for place, seed in enumerate(self.seeds)
            for name, variant in self.variants.items()
            if variant.scenes is None or place < variant.scenes
        ]

    def missing(self) -> list[tuple[int, str]]:
        done = Lines(self.folder, "records").read()
        return [
            (seed, name)
            for seed, name in self.wanted()
            if done.get((str(seed), name), {}).get("variant") != self.variants[name].text
        ]


def collect(job: Job, workers: int = 1) -> Records:
    """Make what is missing, in several processes of one thread each if asked, and read it all.

    Raises:
        RuntimeError: a process ended early.
    """
    (job.folder / "dense").mkdir(parents=True, exist_ok=True)
    missing = job.missing()
    seeds = list(dict.fromkeys(seed for seed, _ in missing))
    shares = [[w for w in missing if w[0] in set(seeds[n::workers])] for n in range(workers)]
    if workers == 1:
        _work(job, missing, 0)
    else:
        context = get_context("spawn")
        processes = [
            context.Process(target=_work_alone, args=(job, share, number))
            for number, share in enumerate(shares)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            codes = [process.exitcode for process in processes]
            raise RuntimeError(f"exit codes {codes} of the processes; run it again to go on")
    done = Lines(job.folder, "records").read()
    return {place: done[place] for place in ((str(s), name) for s, name in job.wanted())}


def _work_alone(job: Job, share: Sequence[tuple[int, str]], number: int) -> None:
    torch.set_num_threads(1)
    _work(job, share, number)


def _work(job: Job, share: Sequence[tuple[int, str]], number: int) -> None:
    if not share:
        return
    pipes = defaultdict[bool, Any](job.setting.load)  # one of them for what leaves traces
    measuring = job.setting.load()
    found = networks(measuring.device, names=tuple(NETWORKS.values()))
    lines, parent = Lines(job.folder, "records", number), parent_process()
    done, truth = lines.read(), None
    warm = job.setting.arguments(job.scenes(share[0][0]), 0, Variant())
    measuring(**warm | {"num_inference_steps": _WARM_UP_STEPS})
    for seed, name in tqdm(share, desc="editing", unit="edit", position=number):
        if parent is not None and not parent.is_alive():
            return
        if truth is None or truth.seed != seed:
            truth = Truth(measuring, job.scenes(seed), seed, found)
        variant, scene = job.variants[name], truth.scene
        row = {"key": str(seed), "mode": name, "variant": variant.text}
        row |= {"kind": scene.kind, "area": float(scene.mask.mean())}
        lasting = variant.rival in rivals.LASTING
        try:
            row |= _record(job, pipes[lasting], truth, name, done)
        except Exception as error:  # of a library that does not take this editor: it is the result
            row["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            del pipes[lasting]  # it may have left something behind
        lines.append(row)
        done[str(seed), name] = row


def _record(job: Job, pipe: Any, truth: Truth, name: str, done: Records) -> Figures:
    variant, seed, loop = job.variants[name], str(truth.seed), job.variants[name].loop.dense
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
    """A hash of what decides a record besides its variant: the sources and the weights' hash."""
    digest = hashlib.sha256(weights.encode())
    packages = (Path(package.__file__).parent for package in (spotedit, spotedit_kernels))
    paths = [path for folder in packages for path in folder.rglob("*.py")]
    paths += [Path(module.__file__) for module in (ablations, edits, measures, record, rivals)]
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
