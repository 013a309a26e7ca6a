"""Decide what a distribution of `spotedit` holds and depends on; the rest is in pyproject.toml.

A clone has kernels/ beside this file: it installs both packages, `spotedit` and `spotedit_kernels`,
as one distribution. An sdist, and so the wheel that is built from it, holds `spotedit` alone and
depends on the distribution `spotedit-kernels` of the same version.
"""

import re
import sys
import tomllib
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
KERNELS = ROOT / "kernels"

init = (ROOT / "spotedit" / "__init__.py").read_text()
version = re.search(r'^__version__ = "(.+)"$', init, re.MULTILINE)[1]
packages = find_packages(include=["spotedit", "spotedit.*"])
package_dir = {}
dependencies = [
    "torch>=2.6",  # the first with torch.library.triton_op
    "diffusers>=0.42",
    "transformers>=5.6",  # before, the tiny editor gets a random text encoder
    "accelerate>=1.2",  # offload, and what diffusers 0.42 imports
    "safetensors",
    "numpy",
    "pillow>=11",
    "matplotlib>=3.9",
    "tqdm",
    "tyro>=1.0",  # makes the command line
    "jinja2>=3.1",  # makes the contact sheet
    "pyyaml",  # settings files
]

if KERNELS.exists() and "sdist" not in sys.argv:
    packages += find_packages("kernels", include=["spotedit_kernels", "spotedit_kernels.*"])
    package_dir["spotedit_kernels"] = "kernels/spotedit_kernels"
    kernels_project = tomllib.loads((KERNELS / "pyproject.toml").read_text())["project"]
    dependencies += [item for item in kernels_project["dependencies"] if item not in dependencies]
else:
    dependencies.append(f"spotedit-kernels=={version}")

setup(
    version=version,
    packages=packages,
    package_dir=package_dir,
    install_requires=dependencies,
)
