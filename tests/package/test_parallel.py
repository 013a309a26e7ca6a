"""conftest.py sets up every process of a test run: interpreted kernels, workers and threads."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from spotedit_kernels.impl import HAS_TRITON

TESTS = Path(__file__).parents[1]
# other folders of tests have a `conftest` as well, so the name could mean theirs
CONFTEST = runpy.run_path(str(TESTS / "conftest.py"))
PROBE = """
import os, pathlib, pytest, triton

@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("marked", [0, pytest.param(1, marks=pytest.mark.gpu)])
def test_probe(number, marked):
    @triton.jit
    def kernel():
        pass

    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    observed = f"{type(kernel).__name__}, {os.environ['OMP_NUM_THREADS']} thread"
    pathlib.Path("observed", worker).write_text(observed)
"""
INTERPRETED = "InterpretedFunction, 1 thread"
COMPILED = "JITFunction, 1 thread"


def probe(folder: Path, *options: str, **environment: str) -> dict[str, str]:
    """Run the probe with our settings; return what each worker observed, by the worker's name."""
    shutil.copy(TESTS / "conftest.py", folder)
    (folder / "test_probe.py").write_text(PROBE)
    (folder / "observed").mkdir()
    set_by_this_run = ("TRITON_INTERPRET", "OMP_NUM_THREADS", "PYTEST_XDIST_WORKER")
    clean = {name: value for name, value in os.environ.items() if name not in set_by_this_run}
    clean["PYTHONPATH"] = os.pathsep.join(sys.path)
    settings = ["-c", str(TESTS.parent / "pyproject.toml"), "-p", "no:cacheprovider"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *settings, *options, "--rootdir", folder, "test_probe.py"],
        cwd=folder, env=clean | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 passed" in result.stdout
    assert "warning" not in result.stdout
    return {path.name: path.read_text() for path in (folder / "observed").iterdir()}


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize(
    ("options", "environment", "workers", "observed"),
    [
        (["-n", "2"], {}, ["gw0", "gw1"], INTERPRETED),
        (["-n", "2", "-m", "gpu"], {}, ["gw0", "gw1"], COMPILED),
        pytest.param(
            ["-n", "2", "-m", "gpu"],
            {"TRITON_INTERPRET": "1"},
            ["gw0", "gw1"],
            INTERPRETED,
            marks=pytest.mark.full,
        ),
        (["-m", "gpu", "-p", "no:xdist"], {}, ["alone"], COMPILED),
        (["-s"], {}, ["alone"], INTERPRETED),
    ],
)
def test_all_processes_of_a_run_are_set_up_alike(tmp_path, options, environment, workers, observed):
    assert probe(tmp_path, *options, **environment) == dict.fromkeys(workers, observed)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.skipif(CONFTEST["available_cores"]() == 1, reason="one core")
def test_a_run_has_several_workers_if_there_are_several_cores(tmp_path):
    observed = probe(tmp_path)
    assert len(observed) > 1
    assert set(observed.values()) == {INTERPRETED}
