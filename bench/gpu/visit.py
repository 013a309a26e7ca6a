"""Run the parts of a visit one after the other, and pack their rows as soon as they exist."""

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
POLL = 0.5  # seconds between two checks for new rows
GRACE = 2  # seconds for a part that is stopped to report what it was doing
RESERVE = 4  # the last part is stopped this many seconds before the deadline
LOG_BYTES = 200_000  # the archive keeps this many bytes from the end of a part's output
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """Raised when a signal asks the visit to end; its text is the name of the signal."""


def stop(number: int, frame: object) -> None:
    """Turn the first signal into an exception, and ignore later signals."""
    for signal_number in SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    raise Stopped(signal.Signals(number).name)


@dataclass
class Visit:
    """Runs the parts, and keeps their outcomes and what is packed.

    Attributes:
        out: folder for the archive and the summary.
        work: folder in which ``gpu`` holds the files of rows and ``logs`` the parts' outputs.
        end: deadline, as a time of `time.monotonic`.
        environment: environment variables of the parts.
        outcomes: part -> what became of it.
        failed: names of the parts that have not ended well.
        packed: file of rows that is in the archive -> its time of change.
    """

    out: Path
    work: Path
    end: float
    environment: Mapping[str, str]
    outcomes: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    packed: dict[Path, int] = field(default_factory=dict)

    def run(self, parts: Sequence[Part]) -> int:
        """Run the parts one after the other, and return the exit code."""
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
        """Run a part within its limit; return its exit code, or None if it had to be stopped."""
        if part.skipped:
            self.outcomes[part.name] = f"skipped, {part.skipped}"
            return None
        start = time.monotonic()
        limit = min(part.seconds, self.end - RESERVE - start)
        self.failed.append(part.name)  # removed when the part has ended well
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
        """Start a part in a new process group, with its output in its log."""
        with (self.work / "logs" / f"{part.name}.log").open("wb") as log:
            return subprocess.Popen(
                part.command, cwd=ROOT, env={**self.environment, **part.environment},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                process_group=0, preexec_fn=die_with_parent,
            )  # fmt: skip

    def wait(self, process: subprocess.Popen[bytes], end: float) -> int | None:
        """Wait until the process or its time ends, and pack new rows; return the exit code."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(max(0.0, min(POLL, end - time.monotonic())))
            if self.row_files() != self.packed:
                self.pack()
            if time.monotonic() >= end:
                return None

    def row_files(self) -> dict[Path, int]:
        """Return when each file of rows was last changed; hidden files are still being written."""
        times = {}
        for path in sorted((self.work / "gpu").iterdir()):
            with suppress(FileNotFoundError):
                if path.is_file() and not path.name.startswith("."):
                    times[path] = path.stat().st_mtime_ns
        return times

    def pack(self) -> None:
        """Write the archive and the summary atomically."""
        self.packed = self.row_files()
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
            temporary = self.out / f"{name}.new"
            temporary.write_bytes(content)
            temporary.replace(self.out / name)

    def summary(self) -> str:
        """Return the summary. The most important is last, as output may lose its beginning."""
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
    """On Linux, have this process killed when its parent dies for any reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a part: interrupt it, so that it can report, then kill its whole process group."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
