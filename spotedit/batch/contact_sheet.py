"""Write an HTML page on which a person can look through all pictures of a batch."""

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image
from tqdm import tqdm

from ..editor.errors import BadInput
from ..pictures.files import write_text
from ..pictures.images import ImageError, load_image
from .manifest import Row
from .settings import BatchSettings
from .summary import printable

_NAME = "contact-sheet.html"
_GENERATOR = b'content="spotedit batch"'
_LONGEST_SIDE = 480  # of a thumbnail, in pixels: sharp on a dense screen
_QUALITY = 80
_MAX_STRETCH = 0.1
_SCRIPT = """
document.addEventListener("input", ({target}) => {
  if (target.type === "range") target.parentElement.style.setProperty("--cut", target.value + "%");
});
"""


def sheet_path(settings: BatchSettings, force: bool = False) -> Path:
    """Return the path of the page.

    Raises:
        BadInput: another program's file is there, and `force` is False.
    """
    path = settings.out / _NAME
    if path.exists() and not force and _GENERATOR not in path.read_bytes()[:2000]:
        raise BadInput(f"{path}: was not made by spotedit batch; move it, or give --force")
    return path


def write_sheet(settings: BatchSettings, rows: Iterable[Row], path: Path) -> None:
    """Write the page, which has its pictures inside: failures first, then doubtful edits.

    Raises:
        OutputError: it cannot be written.
    """
    ordered = sorted(rows, key=_urgency)  # the sort is stable
    cards = [_card(row, settings) for row in tqdm(ordered, desc="contact sheet", leave=False)]
    num_good = sum(card["kind"] == "good" for card in cards)
    num_failed = sum(card["kind"] == "failed" for card in cards)
    num_doubtful = len(cards) - num_good
    counts = [f"{len(cards) - num_failed} edited", f"{num_doubtful - num_failed} with doubts"]
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        files(__package__).joinpath("contact_sheet.html").read_text(encoding="utf-8")
    )
    script_hash = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    page = template.render(
        title=printable(settings.out.name),
        counts=", ".join([*counts, f"{num_failed} failed"]),
        num_doubtful=num_doubtful,
        cards=cards,
        script=Markup(_SCRIPT),
        script_hash=f"sha256-{script_hash}",
    )
    write_text(path, page)


def _urgency(row: Row) -> int:
    if "problem" in row:
        return 0
    return 1 if row["doubts"] else 2


def _card(row: Row, settings: BatchSettings) -> dict[str, Any]:
    """Return what the template shows of a picture."""
    output = row["output"]
    failed = "problem" in row
    before = _thumbnail(settings.out / row["input"])
    after = None if failed else _thumbnail(settings.target(output))
    links = [("original", _address(row["input"]))]
    if not failed:
        report = settings.report(output).relative_to(settings.out)
        links += [("output", _address(output)), ("report", _address(report.as_posix()))]
    return {
        "kind": ("failed", "doubtful", "good")[_urgency(row)],
        "name": printable(output),
        "instruction": printable(row["instruction"]),
        "before": before,
        "after": after,
        "aspect": _common_aspect(before, after),
        "region": None if failed else _region(settings.report(output)),
        "facts": [] if failed else _facts(row),
        "problem": printable(row.get("problem", "")),
        "doubts": [] if failed else row["doubts"],
        "notes": [] if failed else row["notes"],
        "links": links,
    }


def _common_aspect(before: dict[str, Any] | None, after: dict[str, Any] | None) -> float | None:
    """Return the aspect ratio in which both pictures are drawn; None if theirs are unlike.

    The models' sizes are whole numbers of tokens, so that an output may be a little wider.
    """
    if before is None or after is None:
        return None
    first, second = (picture["width"] / picture["height"] for picture in (before, after))
    return first if abs(first / second - 1) < _MAX_STRETCH else None


def _facts(row: Row) -> list[tuple[str, str]]:
    facts = [("region", f"{row['region']:.0%}")] if row["region"] is not None else []
    facts += [("r", f"{row['r']:.0%}"), ("time", f"{row['seconds']:.1f} s")]
    facts.append(("seed", str(row["seed"])))
    return facts if row["mask"] is None else [*facts, ("mask", printable(Path(row["mask"]).name))]


def _address(path: str) -> str:
    """Return a relative path as an address that works from the page, also from a disk."""
    if Path(path).is_absolute():
        return Path(path).as_uri()
    return quote(os.fsencode(path))


def _thumbnail(path: Path) -> dict[str, Any] | None:
    """Return a small copy of a picture as a `data:` address, or None if it cannot be read."""
    try:
        picture = load_image(path)
    except ImageError:
        return None
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    encoded = BytesIO()
    picture.save(encoded, "WEBP", quality=_QUALITY)
    data = base64.b64encode(encoded.getvalue()).decode()
    return {
        "data": Markup(f"data:image/webp;base64,{data}"),
        "width": picture.width,
        "height": picture.height,
    }


def _region(report: Path) -> dict[str, Any] | None:
    """Return the region in a report as paths of SVG, in tokens; None if there is none."""
    try:
        region = json.loads(report.read_bytes())["report"]["region"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not region:
        return None
    rows, cols = len(region), len(region[0])

    def has(row: int, col: int) -> bool:
        return 0 <= row < rows and 0 <= col < cols and bool(region[row][col])

    cells = [(row, col) for row in range(rows) for col in range(cols) if has(row, col)]
    edge = []
    for row, col in cells:
        if not has(row - 1, col):
            edge.append(f"M{col} {row}h1")
        if not has(row + 1, col):
            edge.append(f"M{col} {row + 1}h1")
        if not has(row, col - 1):
            edge.append(f"M{col} {row}v1")
        if not has(row, col + 1):
            edge.append(f"M{col + 1} {row}v1")
    inside = "".join(f"M{col} {row}h1v1h-1z" for row, col in cells)
    return {"rows": rows, "cols": cols, "inside": inside, "edge": "".join(edge)}
