"""What the two distributions hold, and that they and a clone install."""

import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import pytest
from PIL import Image

import spotedit

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "spotedit": ROOT / "spotedit",
    "spotedit-kernels": ROOT / "kernels" / "spotedit_kernels",
}
WHEEL_LIMITS = {"spotedit": 14 * 2**20, "spotedit-kernels": 128 * 2**10}  # bytes
BUILD_FILES = {
    "spotedit": {"setup.py", "MANIFEST.in", "CHANGELOG.md", "CITATION.cff"},
    "spotedit-kernels": set(),
}
COMMON_BUILD_FILES = {"pyproject.toml", "setup.cfg", "PKG-INFO", "README.md", "LICENSE"}
EACH = pytest.mark.parametrize("name", PACKAGES)


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a program without PYTHONPATH and return what it printed. It must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- the files


@dataclass
class Built:
    """A wheel and an sdist, and their contents by name, without the sdist's top folder."""

    wheel: Path
    sdist: Path
    in_wheel: dict[str, bytes]
    in_sdist: dict[str, bytes]

    @property
    def metadata(self) -> Message:
        (name,) = (name for name in self.in_wheel if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(self.in_wheel[name])


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """Return a copy of the files that git knows or would add."""
    folder = tmp_path_factory.mktemp("clone")
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def distributions(clone, tmp_path_factory) -> dict[str, Built]:
    """Build both distributions as a release does: an sdist each, and a wheel from it."""
    built = {}
    for name, source in (("spotedit", clone), ("spotedit-kernels", clone / "kernels")):
        out = tmp_path_factory.mktemp(name)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
        (wheel,) = out.glob("*-py3-none-any.whl")
        (sdist,) = out.glob("*.tar.gz")
        with zipfile.ZipFile(wheel) as archive:
            in_wheel = {member: archive.read(member) for member in archive.namelist()}
        with tarfile.open(sdist) as archive:
            files = [member for member in archive.getmembers() if member.isfile()]
            in_sdist = {
                member.name.split("/", 1)[1]: archive.extractfile(member).read() for member in files
            }
        built[name] = Built(wheel, sdist, in_wheel, in_sdist)
    return built


def files_of(package: Path) -> set[str]:
    """Return the files of a package, as paths that start with the package's name."""
    paths = [path for path in package.rglob("*") if path.is_file()]
    names = [path.relative_to(package.parent) for path in paths]
    return {
        str(name)
        for name in names
        if not any(part.startswith((".", "__pycache__")) for part in name.parts)
    }


@EACH
def test_a_wheel_holds_its_package_and_nothing_else(name, distributions):
    built = distributions[name]
    in_wheel = {file for file in built.in_wheel if not re.match(r"[^/]+\.dist-info/", file)}
    assert in_wheel == files_of(PACKAGES[name])
    assert built.wheel.stat().st_size <= WHEEL_LIMITS[name]


@EACH
def test_an_sdist_holds_its_package_and_what_builds_it(name, distributions):
    in_sdist = {
        file for file in distributions[name].in_sdist if not re.match(r"[^/]+\.egg-info/", file)
    }
    assert in_sdist == files_of(PACKAGES[name]) | COMMON_BUILD_FILES | BUILD_FILES[name]


def test_spotedit_depends_on_the_kernels_of_its_version(distributions):
    required = distributions["spotedit"].metadata.get_all("Requires-Dist")
    assert f"spotedit-kernels=={spotedit.__version__}" in required
    kernels = distributions["spotedit-kernels"].metadata
    assert kernels["Version"] == spotedit.__version__
    assert {re.match(r"[\w-]+", item)[0] for item in kernels.get_all("Requires-Dist")} == {
        "torch",
        "triton",
    }
    assert not [item for item in required if "@" in item or "file:" in item]


@EACH
def test_no_distribution_names_a_folder_of_the_machine(name, clone, distributions):
    built = distributions[name]
    for folder in (ROOT, clone, Path.home()):
        for contents in (built.in_wheel, built.in_sdist):
            assert [file for file in contents if f"{folder}/".encode() in contents[file]] == []


# -- installation


class Environment:
    """A new virtual environment that also sees the packages installed beside the tests.

    It does not process the .pth files there, so a clone that is installed there is not seen.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / "bin" / "python"
        self.command = folder / "bin" / "spotedit"
        (self.site,) = folder.glob("lib/python*/site-packages")
        (self.site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, *arguments: object) -> None:
        pip = (sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet")
        alone = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
        run(*pip, *alone, *arguments)

    def places(self, cwd: Path) -> list[Path]:
        """Return where the two packages are imported from."""
        program = "import spotedit, spotedit_kernels as k; print(spotedit.__file__, k.__file__)"
        return [Path(place) for place in run(self.python, "-c", program, cwd=cwd).split()]


@pytest.fixture
def environment(tmp_path) -> Environment:
    return Environment(tmp_path / "environment")


def test_the_wheels_install_and_edit(distributions, environment, tmp_path):
    environment.install(*(built.wheel for built in distributions.values()))
    for place in environment.places(tmp_path):
        assert place.is_relative_to(environment.site)
    assert f"\nspotedit       {spotedit.__version__}\n" in run(environment.command, "env")

    Image.new("RGB", (64, 64), "grey").save(tmp_path / "in.png")
    instruction = ("add a red circle", "-o", "out.png", "--model", "tiny", "--steps", "2")
    run(environment.command, "edit", "in.png", *instruction, cwd=tmp_path)
    assert (tmp_path / "out.png").exists()


def test_the_kernels_install_alone(distributions, environment, tmp_path):
    environment.install(distributions["spotedit-kernels"].wheel)
    program = """
import importlib.util, spotedit_kernels, torch
assert importlib.util.find_spec("spotedit") is None
x = torch.ones(1, 3, 1, 8)
assert torch.equal(spotedit_kernels.gathered_attention(x, x, x), x)
"""
    run(environment.python, "-c", program, cwd=tmp_path)


@pytest.mark.parametrize("editable", [False, True], ids=["copied", "editable"])
def test_a_clone_installs_both_packages(editable, clone, environment, tmp_path):
    environment.install(*(["--editable"] if editable else []), clone)
    for place in environment.places(tmp_path):
        assert place.is_relative_to(clone if editable else environment.site)
    program = "import importlib.metadata as m; print(*m.requires('spotedit'), sep='\\n')"
    required = run(environment.python, "-c", program, cwd=tmp_path).splitlines()
    assert not [item for item in required if item.startswith("spotedit-kernels")]
    assert [item for item in required if item.startswith("triton")]
