"""Test what comes back from a visit to a GPU machine by `bench/gpu.sh`, however it ends."""

import argparse
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from bench.gpu.plan import SMOKE, Part, parts
from bench.gpu.summary import SHOWN
from bench.gpu.visit import RESERVE, Visit

ROOT = Path(__file__).parents[2]
ROW = {"name": "time", "value": 1.0, "unit": "ms", "low": None, "high": None, "met": None}
DATA = json.dumps({"rows": [ROW | {"parameters": {}}], "notes": []})
# template of a Python program that starts a visit; its parts are shell commands, by name
VISIT = """
import signal, sys, time
from pathlib import Path
from bench.gpu.plan import Part
from bench.gpu.visit import SIGNALS, Visit, stop

parts = [Part(name, 60, ["sh", "-c", command]) for name, command in {parts!r}.items()]
for number in SIGNALS:
    signal.signal(number, stop)
out, work = map(Path, sys.argv[1:])
sys.exit(Visit(out, work, time.monotonic() + 60, {{"PATH": {path!r}}}).run(parts))
"""


def save_rows(work, name):
    """Return a shell command that writes a file of rows atomically, as the benches do."""
    path = work / "gpu" / name
    return f"printf '%s' '{DATA}' > {path}.aside && mv {path}.aside {path}.json"


def visit(tmp_path, seconds, **parts):
    """Run parts, each (limit, shell command); return the exit code, archive and summary."""
    out, work = tmp_path / "out", tmp_path / "work"
    listed = [Part(name, limit, ["sh", "-c", cmd]) for name, (limit, cmd) in parts.items()]
    run = Visit(out, work, time.monotonic() + seconds, dict(os.environ))
    return run.run(listed), archive(out), (out / "summary.txt").read_text()


def archive(out):
    """Read the texts in the archive, by name. This fails if the archive is incomplete."""
    with tarfile.open(out / "gpu.tgz") as file:
        contents = {entry.name: file.extractfile(entry).read() for entry in file}
    return {name: content.decode(errors="replace") for name, content in contents.items()}


def start(tmp_path, parts):
    """Start a visit in a new process group."""
    program = VISIT.format(parts=parts, path=os.environ["PATH"])
    return subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "out", tmp_path / "work"], cwd=ROOT,
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.02)


def alive(pid):
    """Return whether a process runs; a zombie has ended, but nobody has read its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_part_that_fails_does_not_affect_others(tmp_path, capsys):
    work = tmp_path / "work"
    code, contents, summary = visit(
        tmp_path, 60,
        first=(20, save_rows(work, "speed")),
        broken=(20, "echo why it broke; exit 3"),
        last=(20, save_rows(work, "pipeline")),
    )  # fmt: skip
    assert code == 1
    assert contents["gpu/speed.json"] == contents["gpu/pipeline.json"] == DATA
    assert contents["logs/broken.log"] == "why it broke\n"
    assert "== output of broken ==\nwhy it broke\n" in summary
    assert summary.endswith("FAILED: broken\n")
    assert capsys.readouterr().out.endswith(summary)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gpu.tgz", "summary.txt"]


def test_a_part_ends_at_its_limit_with_all_its_processes(tmp_path):
    pids = tmp_path / "pids"
    command = f"trap '' INT; sleep 100 & echo $! >{pids}; sleep 101 & echo $! >>{pids}; wait; wait"
    code, _, summary = visit(tmp_path, 60, endless=(1, command), next=(20, "true"))
    assert code == 1
    assert "endless: stopped at its limit of 1 s" in summary
    assert "next: exit 0" in summary
    wait_until(lambda: not any(alive(pid) for pid in pids.read_text().split()), 5)


def test_a_visit_ends_before_its_deadline(tmp_path):
    begin = time.monotonic()
    endless = (60, f"{save_rows(tmp_path / 'work', 'kernels')}; sleep 100")
    code, contents, summary = visit(tmp_path, RESERVE + 2, long=endless, late=(60, "true"))
    assert time.monotonic() - begin < RESERVE + 4
    assert code == 1
    assert "gpu/kernels.json" in contents
    assert "late: not run, no time was left\nFAILED: long, late\n" in summary


def test_rows_of_a_running_part_survive_when_everything_is_killed(tmp_path):
    pid, out = tmp_path / "pid", tmp_path / "out"
    command = f"{save_rows(tmp_path / 'work', 'kernels')}; echo $$ > {pid}; sleep 100"
    process = start(tmp_path, {"long": command})
    wait_until(lambda: (out / "gpu.tgz").exists() and "gpu/kernels.json" in archive(out))
    assert process.poll() is None
    wait_until(lambda: pid.exists() and pid.read_text().strip())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert archive(out)["gpu/kernels.json"] == DATA
    if sys.platform == "linux":
        wait_until(lambda: not alive(pid.read_text().strip()))


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_visit_leaves_all_that_was_finished(tmp_path, seed):
    names = [f"part{i}" for i in range(200)]
    process = start(tmp_path, {name: save_rows(tmp_path / "work", name) for name in names})
    first = process.stdout.readline()
    time.sleep(random.Random(seed).uniform(0, 0.5))
    os.killpg(process.pid, signal.SIGKILL)
    printed, _ = process.communicate()
    finished = re.findall(r"^(part\d+): exit 0 after", first + printed, re.M)
    assert 0 < len(finished) < 200
    assert {f"gpu/{name}.json" for name in finished} <= archive(tmp_path / "out").keys()
    assert all(content == DATA for name, content in archive(tmp_path / "out").items()
               if name.startswith("gpu/"))  # fmt: skip


def test_a_signal_ends_the_visit_with_its_archive(tmp_path):
    command = f"{save_rows(tmp_path / 'work', 'kernels')}; echo it began; sleep 100"
    process = start(tmp_path, {"long": command, "late": "true"})
    log = tmp_path / "work" / "logs" / "long.log"
    wait_until(lambda: log.exists() and log.read_text())
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert archive(tmp_path / "out")["gpu/kernels.json"] == DATA
    assert "long: stopped by SIGTERM" in printed
    assert printed.endswith("FAILED: long, the visit\n")
    assert "late" not in printed


def test_the_summary_ends_with_the_most_important(tmp_path):
    rows = [ROW | {"name": "whole edit", "unit": "s", "parameters": {"mode": f"mode {i}"}}
            for i in range(300)]  # fmt: skip
    folder = tmp_path / "gpu"
    folder.mkdir()
    for name in SHOWN:
        notes = ["FAILED: spot, r = 5%: no memory"]
        (folder / f"{name}.json").write_text(json.dumps({"rows": rows, "notes": notes}))
    run = Visit(tmp_path, tmp_path, 0, {})
    run.outcomes["pipeline"] = "exit 1 after 3 s"
    end = run.summary()[-12_000:]
    for shown in ("== kernels: 300 rows", "== pipeline-profile: ", "== pipeline: ", "== parts =="):
        assert shown in end
    assert "FAILED: spot, r = 5%: no memory\nwhole edit (mode 0): 1 s\n" in end
    assert "(more in gpu.tgz)" in end
    for broken, error in (('{"rows": [{}], "notes": []}', "KeyError"), ("{", "JSONDecodeError")):
        (folder / "pipeline.json").write_text(broken)
        assert f"pipeline: the rows cannot be shown, {error}" in run.summary()


def test_every_command_accepts_the_options_of_its_part(tmp_path, monkeypatch):
    """The commands parse the options of a GPU visit; nothing is run."""

    class Parsed(Exception):
        """Raised to stop a command when it has parsed its options."""

    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, args=None, namespace=None):
        parse(parser, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    num_commands = 0
    for part in parts(False, "python", "", tmp_path):
        if "-m" not in part.command:
            continue
        module, *options = part.command[part.command.index("-m") + 1 :]
        if not module.startswith("bench"):
            continue
        num_commands += 1
        is_package = module in ("bench", "bench.quality")
        command = importlib.import_module(f"{module}.__main__" if is_package else module)
        with pytest.raises(Parsed):
            command.main(options)
    assert num_commands == 8


def test_the_smoke_tests_exist():
    for name in SMOKE:
        path, _, test = name.partition("::")
        assert f"def {test}" in (ROOT / path).read_text()


def wheel(folder):
    """Write a wheel that holds one module."""
    info = "visited-1.0.dist-info"
    with zipfile.ZipFile(folder / "visited-1.0-py3-none-any.whl", "w") as file:
        file.writestr("visited.py", "")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: visited\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def script(tmp_path, *options, **settings):
    """Start `bench/gpu.sh` in a new process group."""
    defaults = {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "DEADLINE": "1500"}
    return subprocess.Popen(
        [ROOT / "bench" / "gpu.sh", *options], cwd=tmp_path, text=True,
        env=os.environ | defaults | settings, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


@pytest.mark.full
def test_the_script_with_wheels(tmp_path):
    """Rehearse only the first parts; `-m full` rehearses all."""
    wheel(tmp_path)
    process = script(tmp_path, "--rehearse", "--parts", "ceilings", WHEELS=str(tmp_path))
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert re.search("^wheels: exit 0", printed, re.M)
    contents = archive(tmp_path / "out")
    rows = json.loads(contents["gpu/ceilings.json"])["rows"]
    assert [row["name"] for row in rows] == ["matmul", "copy"]
    assert "torch" in contents["logs/versions.log"]
    assert printed.endswith((tmp_path / "out" / "summary.txt").read_text())
    assert printed.endswith("nothing failed\n")


def test_the_script_keeps_its_deadline(tmp_path):
    begin = time.monotonic()
    printed, _ = script(tmp_path, "--rehearse", DEADLINE="6").communicate(timeout=60)
    assert time.monotonic() - begin < 6 + 3
    assert "logs/versions.log" in archive(tmp_path / "out")
    assert "pipeline: not run, no time was left" in printed


def test_the_script_names_a_part_that_does_not_exist(tmp_path):
    printed, _ = script(tmp_path, "--rehearse", "--parts", "kernel").communicate(timeout=60)
    assert "no part is named kernel; expected some of wheels, versions, ceilings" in printed


@pytest.mark.full
def test_a_whole_rehearsal(tmp_path):
    process = script(tmp_path, "--rehearse")
    printed, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, printed
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["gpu.tgz", "summary.txt"]
    contents = archive(out)
    for name in SHOWN:
        assert json.loads(contents[f"gpu/{name}.json"])["rows"]
        assert f"gpu/{name}.md" in contents
    for test in SMOKE:
        assert test in contents["logs/smoke.log"]
        assert test not in contents["logs/tests.log"]
    assert "tests/engine/test_offload.py" in contents["logs/tests.log"]
    assert printed.endswith((out / "summary.txt").read_text())
    assert "== pipeline: " in printed[-12_000:]


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_rehearsal_leaves_all_that_was_finished(tmp_path, seed):
    process = script(tmp_path, "--rehearse", "--parts", "ceilings", "kernels", "speed")
    first = process.stdout.readline()  # says that the wheels are skipped
    time.sleep(random.Random(seed).uniform(5, 30))
    os.killpg(process.pid, signal.SIGKILL)
    printed, _ = process.communicate()
    finished = re.findall(r"^(\w+): exit 0", first + printed, re.M)
    contents = archive(tmp_path / "out")
    for name in {"ceilings", "kernels", "speed"} & set(finished):
        assert json.loads(contents[f"gpu/{name}.json"])["rows"]
