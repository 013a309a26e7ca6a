"""One visit to a CUDA machine: the parts in order, each one's rows packed as soon as they exist.

``bench/gpu.sh`` calls this. Two files come back in the folder OUT: ``gpu.tgz`` with the rows (in
``gpu/``) and each part's output (in ``logs/``), and ``summary.txt``, which is also printed last.
Both are replaced whole whenever a row file has changed, so that a process killed at any moment
leaves all that was finished. Parts that fail or are stopped cost the others nothing.

Only the standard library is used: the machine may lack everything else.
"""

import argparse
import ctypes
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
POLL = 0.5  # seconds between two looks at the row files
GRACE = 2  # seconds that a stopped part has to say what it was doing
RESERVE = 4  # seconds before the deadline at which the last part is stopped
LOG_BYTES = 200_000  # kept of a part's output: its end
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
# one test an operation and dtype, int8 and masked attention, synchronisation and memory
SMOKE = (
    "tests/test_gpu.py",
    "tests/kernels/test_triton_ops.py::test_kernels_agree_with_the_references",
    "tests/kernels/test_op_gathered_attention.py::test_int8_cache",
)
VERSIONS = """
import platform, sys, torch
from importlib.metadata import PackageNotFoundError, version
print("python", platform.python_version())
for name in "torch triton diffusers transformers numpy peft pytest pytest-xdist".split():
    try:
        print(name, version(name))
    except PackageNotFoundError:
        print(name, "IS MISSING")
if sys.argv[1] == "cuda":
    if not torch.cuda.is_available():
        sys.exit("no CUDA device that PyTorch can use here; nothing else is run")
    print(torch.cuda.get_device_properties(0), "CUDA", torch.version.cuda)
"""
# The tables of the summary, the most important last: the number of characters that a table gets,
# and patterns of its lines, the most important first. What matches none is in the archive alone.
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
FAILURE_CHARACTERS = 1200  # of the output of each part that failed


@dataclass(frozen=True)
class Part:
    """A command with its own limit in seconds.

    `needed`: where it exits with 1, nothing else can run. A reason in `skipped` is only reported:
    the command is not run.
    """

    name: str
    seconds: float
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    needed: bool = False
    skipped: str = ""


def parts(rehearse: bool, python: str, wheels: str, work: Path) -> list[Part]:
    """List the parts in their order: what is worth most for its time comes first."""
    device = "cpu" if rehearse else "cuda"

    def run(module: str, *options: str) -> list[str]:
        return [python, "-m", module, *(word for option in options for word in option.split())]

    def bench(module: str, visit: str, rehearsal: str) -> list[str]:
        options = rehearsal if rehearse else visit
        return [*run(module, f"--device {device}", options), "--out", str(work / "gpu")]

    def tests(workers: int, *selection: str) -> list[str]:
        how = "--collect-only" if rehearse else ""
        return run("pytest", f"-m gpu -q -n {workers}", how, *selection)

    wheel_files = sorted(map(str, Path(wheels).glob("*.whl"))) if wheels else []
    pip = run("pip", "install --quiet --no-compile --no-deps --no-index --target")
    memcheck = run("bench", f"--device {device} --check --shapes odd")
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer and not rehearse:
        tool = "--tool memcheck --report-api-errors no --error-exitcode 1"
        memcheck = [sanitizer, *tool.split(), *memcheck]
    odd = "--shapes odd --repeats 2"
    found = [
        Part("wheels", 30, [*pip, str(work / "packages"), *wheel_files],
             skipped="" if wheel_files else "WHEELS names no folder of wheels"),
        Part("versions", 45, [python, "-c", VERSIONS, device], needed=True),
        Part("ceilings", 40, bench("bench", *2 * ["--shapes --name ceilings"])),
        Part("smoke", 75, tests(8, *SMOKE)),
        Part("kernels", 80, bench(
            "bench", "--shapes kontext --no-compiled", f"{odd} --no-compiled",
        )),
        Part("pipeline", 240, bench(
            "bench.pipeline",
            "--ratio .05 .1 .2 1 --judge .2 --unfused .1 --profile .05 .2 --seconds 190",
            "--ratio .25 1 --judge .25 --unfused .25 --profile .25 --seconds 190 "
            "--size tiny --layers 1 1 --steps 4 --dtype float32 --backend eager",
        )),
        Part("tests", 100, tests(12, *(f"--deselect={name}" for name in SMOKE), "tests")),
        Part("kernels-others", 45, bench(
            "bench", "--shapes qwen-edit flux2-dev klein-4b klein-9b vae --name kernels-others",
            f"{odd} --name kernels-others",
        )),
        Part("kernels-compiled", 60, bench(
            "bench", "--shapes kontext --name kernels-compiled", f"{odd} --name kernels-compiled",
        )),
        # without PyTorch's pool every tensor is an allocation of its own, whose ends are guarded
        Part("memcheck", 60, memcheck, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
             skipped="" if rehearse or sanitizer else "compute-sanitizer is not on the PATH"),
        Part("speed", 45, bench(
            "bench.speed", "--dtype bfloat16 --sizes 256 512", "--sizes 64 --steps 4",
        )),
        Part("quality", 60, [*bench(
            "bench.quality", "--scenes 4 --variants default",
            "--scenes 1 --steps 6 --variants default",
        ), "--work", str(work / "quality")]),
    ]  # fmt: skip
    # how slow a CPU is says nothing: there the deadline alone bounds a part
    return [replace(part, seconds=math.inf) for part in found] if rehearse else found


class Stopped(Exception):
    """A signal asks the visit to end."""


def stop(number: int, frame: object) -> None:
    """Turn the first signal into an exception, and ignore those that follow."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signal.Signals(number).name)


@dataclass
class Visit:
    """The parts run so far, and what is packed of them.

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
        except Stopped as signal_name:
            self.outcomes["the visit"] = f"stopped by {signal_name}"
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
        except Stopped as signal_name:
            self.outcomes[part.name] = f"stopped by {signal_name}"
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
        sections = [self.log("versions", 1500)]
        *others, kernels, profile, pipeline = ["\n".join(self.table(name)) for name in SHOWN]
        logs = {name: self.log(name) for name in self.failed}
        failures = [f"== output of {name} ==\n{log}" for name, log in logs.items() if log]
        sections += [*others, *failures, kernels, profile, pipeline]
        outcomes = [f"{name}: {outcome}" for name, outcome in self.outcomes.items()]
        verdict = f"FAILED: {', '.join(self.failed)}" if self.failed else "nothing failed"
        sections.append("\n".join(["== parts ==", *outcomes, verdict]))
        return "\n\n".join(section for section in sections if section) + "\n"

    def log(self, name: str, characters: int = FAILURE_CHARACTERS) -> str:
        """Return the last lines of a part's output."""
        path = self.work / "logs" / f"{name}.log"
        if not path.exists():
            return ""
        text = path.read_bytes()[-20 * characters :].decode(errors="replace")
        # of a progress bar, which returns to the beginning of its line, the last state
        lines = [line.split("\r")[-1] for line in text.replace("\r\n", "\n").split("\n")]
        return "\n".join(lines[-25:]).strip()[-characters:]

    def table(self, name: str) -> Iterator[str]:
        """Yield the lines of a file of rows that the summary shows."""
        path = self.work / "gpu" / f"{name}.json"
        if not path.exists():
            return
        limit, patterns = SHOWN[name]
        data = json.loads(path.read_text())
        try:
            lines = list(lines_of(data["rows"]))
        except (KeyError, TypeError, ValueError) as error:  # must not cost the archive
            yield f"== {name}: the rows cannot be shown, {error!r} =="
            return
        chosen = [note for note in data["notes"] if note.startswith("FAILED")]
        for pattern in patterns:
            chosen += [x for x in lines if re.search(pattern, x) and x not in chosen]
        yield f"== {name}: {len(lines)} rows =="
        for line in chosen:
            limit -= len(line) + 1
            if limit < 0:
                yield "(more in gpu.tgz)"
                return
            yield line


def lines_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Write each row in one line, without the parameters that are the same in all rows."""
    values: dict[str, set[Any]] = {}
    for row in rows:
        for key, value in row["parameters"].items():
            values.setdefault(key, set()).add(value)
    for row in rows:
        given = row["parameters"].items()
        told = ", ".join(str(value)[:60] for key, value in given if len(values[key]) > 1)
        text = f"{row['name']} ({told}): " if told else f"{row['name']}: "
        text += "nothing" if row["value"] is None else f"{row['value']:.4g}"
        if row["low"] is not None and row["high"] is not None:
            text += f" [{row['low']:.4g}, {row['high']:.4g}]"
        text += f" {row['unit']}"
        if row["met"] is not None:
            goal = row["at_most"] if row["at_least"] is None else row["at_least"]
            text += f", target {goal:g} {'met' if row['met'] else 'MISSED'}"
        yield text


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


def main(argv: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at tiny shapes")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="only these")
    args = parser.parse_args(argv)
    setting = os.environ.get
    with tempfile.TemporaryDirectory(prefix="spotedit-gpu-") as folder:
        work = Path(folder)
        python, wheels = setting("PYTHON") or sys.executable, setting("WHEELS", "")
        plan = parts(args.rehearse, python, wheels, work)
        unknown = set(args.parts or ()) - {part.name for part in plan}
        if unknown:
            parser.error(f"no part is named {', '.join(sorted(unknown))}; expected some of "
                         f"{', '.join(part.name for part in plan)}")  # fmt: skip
        if args.parts:
            plan = [part for part in plan if part.name in ("wheels", "versions", *args.parts)]
        paths = [ROOT, ROOT / "kernels", *filter(None, [setting("PYTHONPATH")]), work / "packages"]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1",
            "TRITON_INTERPRET": "0", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        if args.rehearse:
            environment["OMP_NUM_THREADS"] = "1"  # tiny shapes, perhaps beside other work
        end = started + float(setting("DEADLINE") or 540)
        for number in SIGNALS:
            signal.signal(number, stop)
        return Visit(Path(setting("OUT") or "build/gpu"), work, end, environment).run(plan)


if __name__ == "__main__":
    sys.exit(main())
