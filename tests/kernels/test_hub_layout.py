"""The layout for the kernels hub: its files, and a copy that runs beside the package."""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import spotedit_kernels
import torch
from kernel_oracle import NEEDS_INTERPRETER, NEEDS_TRITON

KERNELS = Path(spotedit_kernels.__file__).parents[1]
COPY = "spotedit_kernels_of_the_hub"  # a name that is not that of the package


def load(name: str, path: Path) -> ModuleType:
    """Import the file at `path` as `name`, as the kernels hub's loader does."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "spotedit-kernels"
    load("hub_script", KERNELS / "hub.py").write_layout(folder, "owner/spotedit-kernels")
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] in {"hub_script", COPY}]:
        del sys.modules[name]


def test_the_builder_finds_what_it_needs(layout):
    build = tomllib.loads((layout / "build.toml").read_text())
    assert set(build) == {"general", "torch-noarch"}
    general = build["general"]
    assert set(general) == {"name", "version", "license", "backends", "hub"}
    assert general["hub"] == {"repo-id": "owner/spotedit-kernels"}
    assert (layout / "torch-ext" / general["name"].replace("-", "_") / "__init__.py").exists()
    assert {path.name for path in layout.iterdir()} == {
        "build.toml", "flake.nix", "torch-ext", "README.md", "LICENSE",
    }  # fmt: skip


def test_the_package_can_be_loaded_under_any_name(layout):
    for path in layout.rglob("*.py"):
        assert "import spotedit_kernels" not in path.read_text()
        assert "from spotedit_kernels" not in path.read_text()
        assert not re.search(r"spotedit::|torch\.ops\.spotedit\b", path.read_text())


@NEEDS_TRITON
@NEEDS_INTERPRETER
def test_a_copy_runs_beside_the_package(layout):
    copy = load(COPY, layout / "torch-ext" / "spotedit_kernels" / "__init__.py")
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 17, 5, generator=generator) for _ in range(2))
    for implementation in ("reference", "triton"):
        results = [
            package.latent_distance(x, y, impl=implementation)
            for package in (copy, spotedit_kernels, copy)
        ]
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
    # the first calls have imported the kernels and registered the operations
    namespaces = [sys.modules[f"{name}._ops"].ops.name for name in (COPY, "spotedit_kernels")]
    assert re.fullmatch(r"_spotedit_kernels_[0-9a-f]{12}", namespaces[0])
    assert namespaces[1] == "spotedit"
    for name in namespaces:
        assert hasattr(getattr(torch.ops, name), "latent_distance")
    q = torch.randn(1, 7, 2, 16, generator=generator)
    torch.testing.assert_close(
        copy.gathered_attention(q, q, q, impl="triton"),
        copy.gathered_attention(q, q, q, impl="reference"),
    )


def test_a_folder_that_exists_is_not_overwritten(layout):
    with pytest.raises(FileExistsError):
        sys.modules["hub_script"].write_layout(layout)
