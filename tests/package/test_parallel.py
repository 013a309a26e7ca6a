"""How a test run is set up: interpreted kernels, workers and threads, with and without xdist."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import conftest
import pytest
from spotedit_kernels.impl import HAS_TRITON

TESTS = Path(__file__).parents[1]
PROBE = """
import os, pathlib, pytest, triton

@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("marked", [0, pytest.param(1, marks=pytest.mark.gpu)])
def test_probe(number, marked):
    @triton.jit
    def kernel():
        pass

    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    found = f"{type(kernel).__name__}, {os.environ['OMP_NUM_THREADS']} thread"
    pathlib.Path("found", worker).write_text(found)
"""
INTERPRETED, COMPILED = "InterpretedFunction, 1 thread", "JITFunction, 1 thread"


def probe(folder: Path, *options: str, **environment: str) -> dict[str, str]:
    """Run the probe with our settings; return what each worker found, by the worker's name."""
    shutil.copy(TESTS / "conftest.py", folder)
    (folder / "test_probe.py").write_text(PROBE)
    (folder / "found").mkdir()
    set_here = ("TRITON_INTERPRET", "OMP_NUM_THREADS", "PYTEST_XDIST_WORKER")
    outside = {name: value for name, value in os.environ.items() if name not in set_here}
    outside["PYTHONPATH"] = os.pathsep.join(sys.path)
    settings = ["-c", str(TESTS.parent / "pyproject.toml"), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *settings, *options, "--rootdir", folder, "test_probe.py"],
        cwd=folder, env=outside | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    assert "warning" not in done.stdout
    return {path.name: path.read_text() for path in (folder / "found").iterdir()}


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize(
    ("options", "environment", "workers", "found"),
    [
        (["-n", "2"], {}, ["gw0", "gw1"], INTERPRETED),
        (["-n", "2", "-m", "gpu"], {}, ["gw0", "gw1"], COMPILED),
        (["-n", "2", "-m", "gpu"], {"TRITON_INTERPRET": "1"}, ["gw0", "gw1"], INTERPRETED),
        (["-m", "gpu", "-p", "no:xdist"], {}, ["alone"], COMPILED),
        (["-s"], {}, ["alone"], INTERPRETED),
    ],
)
def test_every_process_of_a_run_is_set_up_alike(tmp_path, options, environment, workers, found):
    assert probe(tmp_path, *options, **environment) == dict.fromkeys(workers, found)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.skipif(conftest.available_cores() == 1, reason="one core")
def test_a_run_has_several_workers_where_there_are_cores(tmp_path):
    found = probe(tmp_path)
    assert len(found) > 1
    assert set(found.values()) == {INTERPRETED}
