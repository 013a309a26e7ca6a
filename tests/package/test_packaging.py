"""What the source tree and the distributions may and must hold."""

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


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[set[str], set[str]]:
    """Names in the wheel and in the sdist (without its top folder), built from a copy."""
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
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
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
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "spotedit",
        "spotedit_kernels",
    }


@pytest.mark.full
def test_every_module_and_data_file_is_in_both(distributions):
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
