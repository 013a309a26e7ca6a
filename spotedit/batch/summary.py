"""The sentences that a batch ends with, and those of `--dry-run`."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median

from .manifest import Row
from .plan import Plan

_NUM_EXAMPLES = 3


def summary(done: Mapping[str, Row], made: Sequence[Row], num_pictures: int) -> str:
    """Return lines about the pictures that are finished and those that failed.

    Args:
        done: rows of pictures that an earlier run finished.
        made: rows of this run.
        num_pictures: number of pictures that the command names.
    """
    good = [row for row in made if "problem" not in row]
    bad = [row for row in made if "problem" in row]
    finished = [*done.values(), *good]
    counts = f"{len(good)} edited"
    if done:
        counts += f", {len(done)} were finished before"
    if bad:
        counts += f", {len(bad)} failed"
    if num_left := num_pictures - len(done) - len(made):
        counts += f", {num_left} are left"
    lines = [counts]
    if good:
        seconds = median(row["seconds"] for row in good)
        lines[0] += f"; {seconds:.2f} s a picture (median, with reading and writing)"
    lines += _savings(finished)
    lines += _groups("doubt", ((row, doubt) for row in finished for doubt in row["doubts"]))
    lines += _groups("note", ((row, note) for row in finished for note in row["notes"]))
    lines += _groups("failed", ((row, row["problem"]) for row in bad))
    return "\n".join(lines)


def _savings(rows: Sequence[Row]) -> list[str]:
    """Return a line about the share of the tokens that were recomputed."""
    lines = []
    shares = [row["region"] for row in rows if row["region"] is not None]
    if shares:
        ratio = mean(row["r"] for row in rows)
        lines.append(
            f"region: {median(shares):.0%} of a picture (median); "
            f"r = {ratio:.0%} of the tokens in a spot step (mean)"
        )
    dense = [(row, row["reason"]) for row in rows if row["reason"]]
    return lines + _groups("nothing was skipped", dense)


def _groups(title: str, sentences: Iterable[tuple[Row, str]]) -> list[str]:
    """Return a line for every kind of sentence, sorted, the most frequent kind first.

    Sentences that differ only in numbers are of one kind.
    """
    kinds: dict[str, list[tuple[Row, str]]] = {}
    for row, sentence in sentences:
        kinds.setdefault(re.sub(r"[0-9]+", "#", sentence), []).append((row, sentence))
    ordered = sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    return [f"{title} in {len(group)}: {group[0][1]} ({_names(group)})" for _, group in ordered]


def _names(group: Sequence[tuple[Row, str]]) -> str:
    names = ", ".join(row["output"] for row, _ in group[:_NUM_EXAMPLES])
    more = len(group) - _NUM_EXAMPLES
    return f"{names} and {more} more" if more > 0 else names


def dry_run(plan: Plan, problems: Mapping[str, str]) -> str:
    """Return what a run would do: a line for every picture, the counts and an estimate.

    Args:
        problems: why pictures cannot be read, by output.
    """
    lines = [
        f"{job.output}: {problems.get(job.output, f'to do ({reason})')}"
        for job, reason in plan.todo
    ]
    lines += [f"{output}: finished" for output in plan.done]
    num_todo = len(plan.todo) - len(problems)
    lines.append(f"{num_todo} to do, {len(plan.done)} finished, {len(problems)} cannot be read")
    return "\n".join([*lines, *_estimate(num_todo, list(plan.done.values()))])


def _estimate(num_todo: int, finished: Sequence[Row]) -> list[str]:
    """Return lines about the time and memory of a run, from the figures of finished pictures."""
    if not num_todo:
        return []
    if not finished:
        return [
            "time and memory: unknown, because no picture is finished here; --limit 1 edits one to "
            "find out"
        ]
    each = median(row["seconds"] for row in finished)
    mib = max(row["cache_bytes"] for row in finished) / 2**20
    return [
        f"time: about {_duration(each * num_todo)} for {num_todo} pictures one after another, at "
        f"{each:.2f} s each (median of the {len(finished)} finished here) and without loading",
        f"memory: {mib:.1f} MiB for the cache, on top of the weights (the most of the pictures "
        "finished here)",
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def printable(text: str) -> str:
    """Return a text, such as a path, with what is no valid Unicode written as escapes."""
    return text.encode(errors="backslashreplace").decode()


def say(text: str) -> None:
    """Print lines, with escapes for characters that the terminal or the file cannot take."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="backslashreplace").decode(encoding), flush=True)
