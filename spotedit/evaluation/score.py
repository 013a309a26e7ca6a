"""Measure the finished pictures, and exchange pictures and scores with an external rater.

Process N writes `metrics-N.jsonl`. A line describes the edit of one item (`key`) in one `mode`:
"dense" without spotedit, any other with it. The line also has the sha256 of the edited picture, the
CLIP model, and `values`, which maps each metric to its figure or to the reason why there is none.

A vision-language model that scores the edits runs outside this program. `prompts.jsonl` has a line
for every picture, {key, mode, category, instruction, source, picture}, with paths relative to its
folder. The rater writes `scores.jsonl` beside it, with lines of {key, mode, score}. A score is a
number from 1 to 5, or a list of such numbers (ImgEdit has three), of which the mean counts.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from ..pictures.files import make_folder, write_text
from ..pictures.images import load_image, save_image
from .data import Item
from .metrics import lacking, measure
from .networks import Networks
from .run import picture_path
from .store import JsonLines, Row, digest

Rows = Mapping[tuple[str, str], Row]


class PictureChanged(ValueError):
    """Raised when a picture file no longer holds what the edit wrote."""


def score_all(
    items: Sequence[Item],
    out: Path,
    networks: Networks,
    modes: Sequence[str],
    process: int = 0,
) -> None:
    """Measure the finished edits of `items` that are not fully measured yet.

    Args:
        items: this process's share of the items.
        out: folder of the edits' rows, the pictures and the metrics.
        networks: the metrics to measure.
        modes: the modes whose edits are measured.
        process: index of this process.

    Raises:
        PictureChanged: a picture file no longer holds what the edit wrote, or is missing.
        OutputError: the metrics cannot be written.
    """
    edits = JsonLines(out, "rows").read()
    metrics_file = JsonLines(out, "metrics", process)
    metrics = metrics_file.read()  # of all processes
    for item in tqdm(items, desc="measuring", unit="picture", disable=process != 0):
        for mode in modes:
            picture_id = item.key, mode
            edit = edits.get(picture_id)
            if edit is None or "problem" in edit:
                continue
            old = metrics.get(picture_id)
            if old and old["sha256"] == edit["sha256"] and not _is_stale(old, networks):
                continue
            path = picture_path(out, item.key, mode)
            if not path.is_file() or digest(path) != edit["sha256"]:
                raise PictureChanged(
                    f"{path} is not the picture that the edit wrote; delete it and run the edit "
                    "again"
                )
            metrics_file.append(
                {
                    "key": item.key,
                    "mode": mode,
                    "sha256": edit["sha256"],
                    "values": measure(item.load(), load_image(path), item, networks),
                    "clip": networks.clip_model,
                }
            )


def _is_stale(old: Row, networks: Networks) -> bool:
    """Tell whether `networks` can measure a missing figure, or have another CLIP model."""
    has_other_clip = networks.clip is not None and old.get("clip") != networks.clip_model
    return has_other_clip or lacking(old["values"], networks)


def write_prompts(items: Sequence[Item], out: Path, rows: Rows, modes: Sequence[str]) -> Path:
    """Write `prompts.jsonl` for the finished pictures, and their sources to `source/`.

    Returns:
        The path of `prompts.jsonl`.

    Raises:
        OutputError: a file cannot be written.
    """
    make_folder(out / "source")
    finished = {picture_id for picture_id, row in rows.items() if "problem" not in row}
    prompts = []
    for item in items:
        edited = [mode for mode in modes if (item.key, mode) in finished]
        source = picture_path(out, item.key, "source")
        if edited and not source.is_file():
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
            for mode in edited
        ]
    write_text(out / "prompts.jsonl", "".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return out / "prompts.jsonl"


def read_scores(out: Path, rows: Rows) -> tuple[dict[tuple[str, str], float], list[str]]:
    """Read `scores.jsonl`, which may be missing.

    Returns:
        The scores by (key, mode), and a text for every line that is wrong.
    """
    path = out / "scores.jsonl"
    scores: dict[tuple[str, str], float] = {}
    problems: list[str] = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            picture_id = fields["key"], fields["mode"]
            score = fields["score"]
            parts = score if isinstance(score, list) and score else [score]
            if picture_id not in rows:
                problems.append(f"scores.jsonl, line {number}: no such picture")
            elif not all(type(part) in (int, float) and 1 <= part <= 5 for part in parts):
                problems.append(f"scores.jsonl, line {number}: score {score!r}; expected 1 to 5")
            else:
                scores[picture_id] = fmean(parts)
        except (ValueError, KeyError, TypeError):
            problems.append(f"scores.jsonl, line {number}: not a line of key, mode and score")
    return scores, problems
