"""What the source tree and the distributions must contain, and what they must not."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

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
    spotedit, _ = PACKAGES
    weights = list(spotedit.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) <= MAX_WEIGHTS_BYTES
    suffixes = {path.suffix for path in spotedit.rglob("*")}
    assert suffixes.isdisjoint({".bin", ".ckpt", ".pt", ".pth"})  # these may hold pickles


def test_ci_runs_the_readmes_test_command():
    command = 'pip install -e ".[test]" && pytest'
    assert command in (ROOT / "README.md").read_text()
    assert command in (ROOT / ".ci" / "run").read_text()


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[set[str], set[str]]:
    """Build both from a copy of the tree; return the files in the wheel and in the sdist.

    Names in the sdist are without its top folder.
    """
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = out.glob("*-py3-none-any.whl")
    (sdist,) = out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        members = [member.name for member in archive.getmembers() if member.isfile()]
    return in_wheel, {name.split("/", 1)[1] for name in members}


@pytest.mark.full
def test_the_wheel_holds_the_two_packages_and_their_data(distributions):
    wheel, _ = distributions
    folders = {name.split("/")[0] for name in wheel}
    packages = {folder for folder in folders if not folder.endswith(".dist-info")}
    assert packages == {"spotedit", "spotedit_kernels"}


@pytest.mark.full
def test_every_module_and_data_file_is_in_both_distributions(distributions):
    wheel, sdist = distributions
    for package in PACKAGES:
        for path in package.rglob("*"):
            hidden = any(part.startswith((".", "__pycache__")) for part in path.parts[-3:])
            if path.is_file() and not hidden:
                assert str(path.relative_to(package.parent)) in wheel
                assert str(path.relative_to(ROOT)) in sdist


@pytest.mark.full
def test_the_sdist_holds_nothing_else(distributions):
    _, sdist = distributions
    allowed = re.compile(
        r"(spotedit|kernels/spotedit_kernels|spotedit\.egg-info)/.*"
        r"|setup\.py|setup\.cfg|pyproject\.toml|MANIFEST\.in|PKG-INFO|README\.md|LICENSE|CHANGELOG\.md"
    )
    assert {name for name in sdist if not allowed.fullmatch(name)} == set()
