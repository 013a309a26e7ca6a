"""Write spotedit_kernels in the source layout of the Hugging Face kernels hub.

    python kernels/hub.py FOLDER --repo-id OWNER/spotedit-kernels
    cd FOLDER && git init && git add . && kernel-builder build-and-upload

`kernel-builder` comes from github.com/huggingface/kernels. It reads build.toml, makes one variant
of the package for every backend, and replaces `_ops.py` in each by one of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

SOURCE = Path(__file__).parent
PACKAGE = "spotedit_kernels"

# The hub's versions count incompatible interfaces; by convention, version 0 may still change.
# The kernels run on CUDA. On a CPU the package takes its PyTorch references.
BUILD = """\
[general]
name = "spotedit-kernels"
version = 0
license = "Apache-2.0"
backends = ["cpu", "cuda"]
{hub}
[torch-noarch]
"""

HUB = """
[general.hub]
repo-id = "{repo_id}"
"""

FLAKE = """\
{
  description = "Kernels of spatially selective image editing";

  inputs.kernel-builder.url = "github:huggingface/kernels";

  outputs =
    { self, kernel-builder }:
    kernel-builder.lib.genKernelFlakeOutputs {
      inherit self;
      path = ./.;
    };
}
"""

OPS = '''\
"""The namespace in `torch.ops` of this copy of the package."""

import torch

ops = torch.ops.{namespace}


def add_op_namespace_prefix(op_name: str) -> str:
    """Return the name under which to register the operation `op_name`."""
    return f"{namespace}::{{op_name}}"
'''


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the layout of the kernels hub.")
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--repo-id", help="the hub repository to upload to: OWNER/NAME")
    args = parser.parse_args()
    write_layout(args.folder, args.repo_id)


def write_layout(folder: Path, repo_id: str | None = None) -> Path:
    """Write the layout into `folder`, which must not exist, and return the package inside it.

    Raises:
        FileExistsError: `folder` exists.
    """
    folder.mkdir(parents=True)
    package = folder / "torch-ext" / PACKAGE
    shutil.copytree(SOURCE / PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "_ops.py").write_text(OPS.format(namespace=_namespace()))
    hub = HUB.format(repo_id=repo_id) if repo_id else ""
    (folder / "build.toml").write_text(BUILD.format(hub=hub))
    (folder / "flake.nix").write_text(FLAKE)
    for name in ("README.md", "LICENSE"):
        shutil.copy(SOURCE / name, folder)
    return package


def _namespace() -> str:
    """Return a name that differs between two versions of the package's sources."""
    digest = hashlib.sha256()
    for path in sorted((SOURCE / PACKAGE).rglob("*.py")):
        digest.update(path.read_bytes())
    return f"_{PACKAGE}_{digest.hexdigest()[:12]}"


if __name__ == "__main__":
    main()
