"""What the source tree must contain, and what it must not."""

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
MAX_WEIGHTS_BYTES = 16 * 2**20


@pytest.mark.parametrize("folder", ["kernels", "tests/kernels"])
def test_folders_named_kernels_are_no_packages(folder):
    """As a package, `kernels` would shadow the one that transformers and diffusers look for."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_diffusers_imports_where_our_folders_come_first():
    program = "import sys; sys.path[:0] = sys.argv[1:]\n"
    program += "from diffusers import FluxPipeline; print(FluxPipeline.__name__)"
    command = [sys.executable, "-c", program, ROOT, ROOT / "tests"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout == "FluxPipeline\n", result.stderr


def test_nothing_in_a_package_is_named_triton():
    paths = [path for package in PACKAGES for path in package.rglob("triton*")]
    assert [path for path in paths if path.stem == "triton"] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_environment_variable_is_read(path):
    assert not re.search(r"\benviron\b|\bgetenv\b", path.read_text())


def test_the_kernels_import_neither_spotedit_nor_diffusers():
    _, kernels = PACKAGES
    for path in kernels.rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (spotedit|diffusers)\b", path.read_text(), re.M)


def test_weights_are_small_and_in_safetensors_files():
    package, _ = PACKAGES
    weights = list(package.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) <= MAX_WEIGHTS_BYTES
    suffixes = {path.suffix for path in package.rglob("*")}
    assert suffixes.isdisjoint({".bin", ".ckpt", ".pt", ".pth"})  # these may hold pickles


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
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == f"{spotedit.__version__} False\n"


def test_both_distributions_have_the_same_licence():
    assert (ROOT / "kernels" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_workflow_tests_the_python_versions_that_the_distributions_name():
    workflow = (ROOT / ".github" / "workflows" / "checks.yml").read_text()
    tested = re.findall(r'"([\d.]+)"', re.search(r"python: \[(.*)\]", workflow)[1])
    for folder in (ROOT, ROOT / "kernels"):
        project = (folder / "pyproject.toml").read_text()
        assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project) == tested
