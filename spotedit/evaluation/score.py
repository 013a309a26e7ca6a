"""Figures of the finished pictures, and the exchange of pictures and scores with a judge.

A row of `metrics-N.jsonl` is one picture in one mode: key, mode, sha256 of the picture that was
measured, the CLIP model, and `values`, name -> figure or why there is none.

A vision-language model's score comes from outside: `prompts.jsonl` has a line for every picture,
{key, mode, category, instruction, source, picture} with paths relative to its folder, and the
judge writes `scores.jsonl` beside it, lines of {key, mode, score}: a score from 1 to 5, or a list
of them, such as ImgEdit's three, whose mean counts.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from ..pictures.files import make_folder, write_text
from ..pictures.images import load_image, save_image
from .data import Item
from .edits import MODES
from .metrics import lacking, measure
from .networks import Networks
from .run import picture_path
from .store import Lines, Row, digest

Rows = Mapping[tuple[str, str], Row]


class Changed(ValueError):
    """A picture is not the one that its row was written for."""


def score_all(items: Sequence[Item], out: Path, networks: Networks, process: int = 0) -> None:
    """Measure this process's share of the pictures that rows speak of and that lack a figure.

    Raises:
        Changed: a picture has been replaced since.
        OutputError: a row cannot be written.
    """
    lines = Lines(out, "metrics", process)
    rows, done = Lines(out, "rows").read(), lines.read()
    for item in tqdm(items, desc="measuring", unit="picture", disable=process != 0):
        for mode in MODES:
            row, old = rows.get((item.key, mode)), done.get((item.key, mode))
            if row is None or "problem" in row:
                continue
            if old and old["sha256"] == row["sha256"] and not _stale(old, networks):
                continue
            path = picture_path(out, item.key, mode)
            if not path.is_file() or digest(path) != row["sha256"]:
                raise Changed(f"{path} is not the picture that was edited; delete it and edit anew")
            values = measure(item.load(), load_image(path), item, networks)
            found = {"key": item.key, "mode": mode, "sha256": row["sha256"], "values": values}
            lines.append(found | {"clip": networks.clip_model})


def _stale(old: Row, networks: Networks) -> bool:
    """Whether a figure is missing, or from another CLIP model than the one that is here."""
    other = networks.clip is not None and old.get("clip") != networks.clip_model
    return other or lacking(old["values"], networks)


def write_prompts(items: Sequence[Item], out: Path, rows: Rows) -> Path:
    """`prompts.jsonl`, and the sources in `source/`, of the pictures that are finished.

    Raises:
        OutputError: they cannot be written.
    """
    make_folder(out / "source")
    prompts = []
    for item in items:
        modes = [m for m in MODES if "problem" not in rows.get((item.key, m), {"problem": ""})]
        source = picture_path(out, item.key, "source")
        if modes and not source.is_file():
            save_image(item.load(), source)
        prompts += [
            {
                "key": item.key,
                "mode": mode,
                "category": item.category,
                "instruction": item.instruction,
                "source": f"source/{item.key}.png",
                "picture": f"{mode}/{item.key}.png",
            }
            for mode in modes
        ]
    write_text(out / "prompts.jsonl", "".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return out / "prompts.jsonl"


def read_scores(out: Path, rows: Rows) -> tuple[dict[tuple[str, str], float], list[str]]:
    """Scores by (key, mode) from `scores.jsonl`, and what is wrong with the lines left out."""
    path, scores, problems = out / "scores.jsonl", {}, []
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
            place, score = (given["key"], given["mode"]), given["score"]
            parts = score if isinstance(score, list) and score else [score]
            if place not in rows:
                problems.append(f"scores.jsonl, line {number}: no such picture")
            elif not all(type(part) in (int, float) and 1 <= part <= 5 for part in parts):
                problems.append(f"scores.jsonl, line {number}: score {score!r}; expected 1 to 5")
            else:
                scores[place] = fmean(parts)
        except (ValueError, KeyError, TypeError):
            problems.append(f"scores.jsonl, line {number}: not a line of key, mode and score")
    return scores, problems
