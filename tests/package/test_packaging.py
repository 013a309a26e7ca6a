"""What the source tree may and must hold."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import spotedit_kernels

import spotedit

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "spotedit", ROOT / "kernels" / "spotedit_kernels")
SOURCES = [path for package in PACKAGES for path in package.rglob("*.py")]
WEIGHTS_LIMIT = 16 * 2**20


@pytest.mark.parametrize("folder", ["kernels", "tests/kernels"])
def test_source_roots_named_kernels_are_no_packages(folder):
    # an importable `kernels` would shadow the one that transformers and diffusers look for
    assert not (ROOT / folder / "__init__.py").exists()


def test_diffusers_imports_where_our_folders_come_first():
    program = "import sys; sys.path[:0] = sys.argv[1:]\n"
    program += "from diffusers import FluxPipeline; print(FluxPipeline.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program, ROOT, ROOT / "tests"], capture_output=True, text=True
    )
    assert done.stdout == "FluxPipeline\n", done.stderr


def test_nothing_in_a_package_is_named_triton():
    named = [path for package in PACKAGES for path in package.rglob("triton*")]
    assert [path for path in named if path.stem == "triton"] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_environment_variable_is_read(path):
    assert not re.search(r"\benviron\b|\bgetenv\b", path.read_text())


def test_kernels_import_neither_spotedit_nor_diffusers():
    for path in PACKAGES[1].rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (spotedit|diffusers)\b", path.read_text(), re.M)


def test_weights_fit():
    weights = list(PACKAGES[0].rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) <= WEIGHTS_LIMIT
    pickles = {path.suffix for path in PACKAGES[0].rglob("*")} & {".bin", ".ckpt", ".pt", ".pth"}
    assert pickles == set()


def test_ci_runs_the_readmes_test_command():
    command = 'pip install -e ".[test]" && pytest'
    assert command in (ROOT / "README.md").read_text()
    assert command in (ROOT / ".ci" / "run").read_text()


def test_both_packages_have_one_version():
    assert spotedit.__version__ == spotedit_kernels.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {spotedit.__version__}\n" in citation


def test_the_version_is_known_without_pytorch():
    program = "import spotedit, sys; print(spotedit.__version__, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{spotedit.__version__} False\n"


def test_both_distributions_have_the_same_licence():
    assert (ROOT / "kernels" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_workflow_tests_the_python_versions_that_the_distributions_name():
    workflow = (ROOT / ".github" / "workflows" / "checks.yml").read_text()
    tested = re.findall(r'"([\d.]+)"', re.search(r"python: \[(.*)\]", workflow)[1])
    for folder in (ROOT, ROOT / "kernels"):
        project = (folder / "pyproject.toml").read_text()
        assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project) == tested
