"""Run the parts of a visit one after the other and pack each one's rows as soon as they exist."""

import ctypes
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .plan import Part
from .summary import SHOWN, log_end, table

ROOT = Path(__file__).parents[2]
POLL = 0.5  # seconds between two looks at the row files
GRACE = 2  # seconds that a stopped part has to say what it was doing
RESERVE = 4  # seconds before the deadline at which the last part is stopped
LOG_BYTES = 200_000  # kept of a part's output: its end
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """Raised where a signal asks the visit to end; its text is the signal's name."""


def stop(number: int, frame: object) -> None:
    """Turn the first signal into an exception, and ignore those that follow."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signal.Signals(number).name)


@dataclass
class Visit:
    """Runs the parts, and keeps what became of them and what is packed.

    `work` holds the row files in ``gpu`` and the parts' outputs in ``logs``.
    """

    out: Path
    work: Path
    end: float  # of time.monotonic(), the deadline
    environment: Mapping[str, str]
    outcomes: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    packed: dict[Path, int] = field(default_factory=dict)  # time of change of each row file

    def run(self, parts: Sequence[Part]) -> int:
        """Run the parts one after the other; returns the exit code."""
        for folder in (self.out, self.work / "gpu", self.work / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self.pack()
            for part in parts:
                code = self.run_part(part)
                self.pack()
                print(f"{part.name}: {self.outcomes[part.name]}", flush=True)
                if part.needed and code == 1:
                    break
        except Stopped as stopped:
            self.outcomes["the visit"] = f"stopped by {stopped}"
            self.failed.append("the visit")
            self.pack()
        print(self.summary(), end="", flush=True)
        return int(bool(self.failed))

    def run_part(self, part: Part) -> int | None:
        """Run a part within its limit; returns its exit code, None where it did not end itself."""
        if part.skipped:
            self.outcomes[part.name] = f"skipped, {part.skipped}"
            return None
        start = time.monotonic()
        limit = min(part.seconds, self.end - RESERVE - start)
        self.failed.append(part.name)  # until it has ended well
        if limit < 1:
            self.outcomes[part.name] = "not run, no time was left"
            return None
        self.outcomes[part.name] = "running"
        try:
            process = self.start(part)
        except OSError as error:
            self.outcomes[part.name] = f"not run, {error}"
            return None
        try:
            code = self.wait(process, start + limit)
        except Stopped as stopped:
            self.outcomes[part.name] = f"stopped by {stopped}"
            raise
        finally:
            end_group(process)
        if code is None:
            self.outcomes[part.name] = f"stopped at its limit of {limit:.0f} s"
        else:
            self.outcomes[part.name] = f"exit {code} after {time.monotonic() - start:.0f} s"
        if code == 0:
            self.failed.remove(part.name)
        return code

    def start(self, part: Part) -> subprocess.Popen[bytes]:
        """Start a part in a process group of its own, its output in its log."""
        with (self.work / "logs" / f"{part.name}.log").open("wb") as log:
            return subprocess.Popen(
                part.command, cwd=ROOT, env={**self.environment, **part.environment},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                process_group=0, preexec_fn=die_with_parent,
            )  # fmt: skip

    def wait(self, process: subprocess.Popen[bytes], end: float) -> int | None:
        """Wait until the process or its time ends, packing new rows; returns its exit code."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(max(0.0, min(POLL, end - time.monotonic())))
            if self.changed() != self.packed:
                self.pack()
            if time.monotonic() >= end:
                return None

    def changed(self) -> dict[Path, int]:
        """Look up when each row file was last changed; hidden files are still being written."""
        found = {}
        for path in sorted((self.work / "gpu").iterdir()):
            with suppress(FileNotFoundError):
                if path.is_file() and not path.name.startswith("."):
                    found[path] = path.stat().st_mtime_ns
        return found

    def pack(self) -> None:
        """Write the archive and the summary, each aside and then renamed."""
        self.packed = self.changed()
        summary = self.summary().encode()
        files = {f"gpu/{path.name}": path.read_bytes() for path in self.packed}
        for path in sorted((self.work / "logs").iterdir()):
            files[f"logs/{path.name}"] = path.read_bytes()[-LOG_BYTES:]
        files["logs/summary.txt"] = summary
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime = len(content), int(time.time())
                archive.addfile(entry, io.BytesIO(content))
        for name, content in (("gpu.tgz", buffer.getvalue()), ("summary.txt", summary)):
            aside = self.out / f"{name}.new"
            aside.write_bytes(content)
            aside.replace(self.out / name)

    def summary(self) -> str:
        """Say what was found, the most important last: a long output may lose its beginning."""
        rows, logs = self.work / "gpu", self.work / "logs"
        sections = [log_end(logs / "versions.log", 1500)]
        tables = ["\n".join(table(rows / f"{name}.json")) for name in SHOWN]
        *others, kernels, profile, pipeline = tables
        ends = {name: log_end(logs / f"{name}.log") for name in self.failed}
        failures = [f"== output of {name} ==\n{log}" for name, log in ends.items() if log]
        sections += [*others, *failures, kernels, profile, pipeline]
        outcomes = [f"{name}: {outcome}" for name, outcome in self.outcomes.items()]
        verdict = f"FAILED: {', '.join(self.failed)}" if self.failed else "nothing failed"
        sections.append("\n".join(["== parts ==", *outcomes, verdict]))
        return "\n\n".join(section for section in sections if section) + "\n"


def die_with_parent() -> None:
    """Let Linux kill this process when its parent dies, however that dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a part: ask it, so that it may report, then kill the whole group."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
