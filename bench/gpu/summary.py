"""Choose which rows and which output of the parts the summary of a visit shows."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# The tables of the summary, the most important last. For each: its largest number of characters,
# and patterns of the lines it shows, the most important first.
SHOWN = {
    "ceilings": (200, (".",)),
    "quality": (800, ("^edited region against", "^recall|^seconds")),
    "speed": (800, ("dense / spot", "share of", "whole edit .*:")),
    "kernels-others": (1500, ("wrong|failed", "eager-unfused", "best SDPA", "reference")),
    "kernels-compiled": (1500, ("wrong|failed", "compiled reference")),
    "kernels": (3500, ("^matmul|^copy", "wrong|failed", "target", "triton", "auto")),
    "pipeline-profile": (2000, ("^profile|^attention", "^kernel")),
    "pipeline": (
        3800,
        ("^transformer, (dense|spot)|^whole edit .*s$", "dense compiled", "new M|^peak", "share"),
    ),
}  # fmt: skip


def log_end(path: Path, characters: int = 1200) -> str:
    """Return the last lines of the output in `path`, or "" if there is no such file."""
    if not path.exists():
        return ""
    text = path.read_bytes()[-20 * characters :].decode(errors="replace")
    # A progress bar overwrites its line; keep only its last state.
    lines = [line.split("\r")[-1] for line in text.replace("\r\n", "\n").split("\n")]
    return "\n".join(lines[-25:]).strip()[-characters:]


def table(path: Path) -> Iterator[str]:
    """Yield the lines that the summary shows of a file of rows; none if there is no such file."""
    if not path.exists():
        return
    name = path.stem
    limit, patterns = SHOWN[name]
    try:
        data = json.loads(path.read_text())
        lines = list(lines_of(data["rows"]))
        shown = [note for note in data["notes"] if note.startswith("FAILED")]
    except (KeyError, TypeError, ValueError) as error:  # the archive must be written all the same
        yield f"== {name}: the rows cannot be shown, {error!r} =="
        return
    for pattern in patterns:
        shown += [line for line in lines if re.search(pattern, line) and line not in shown]
    yield f"== {name}: {len(lines)} rows =="
    num_characters = 0
    for line in shown:
        num_characters += len(line) + 1
        if num_characters > limit:
            yield "(more in gpu.tgz)"
            return
        yield line


def lines_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each row, without the parameters that are equal in all rows."""
    values: dict[str, set[Any]] = {}
    for row in rows:
        for key, value in row["parameters"].items():
            values.setdefault(key, set()).add(value)
    for row in rows:
        items = row["parameters"].items()
        varying = ", ".join(str(value)[:60] for key, value in items if len(values[key]) > 1)
        text = f"{row['name']} ({varying}): " if varying else f"{row['name']}: "
        text += "nothing" if row["value"] is None else f"{row['value']:.4g}"
        if row["low"] is not None and row["high"] is not None:
            text += f" [{row['low']:.4g}, {row['high']:.4g}]"
        text += f" {row['unit']}"
        if row["met"] is not None:
            goal = row["at_most"] if row["at_least"] is None else row["at_least"]
            text += f", target {goal:g} {'met' if row['met'] else 'MISSED'}"
        yield text
