"""Describe what a figure depends on besides the code. Names no host, user or path."""

import datetime
import hashlib
import os
import platform
import subprocess
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import spotedit

_PACKAGES = ("torch", "triton", "diffusers", "transformers", "numpy")
_DRIVER = ("--query-gpu=driver_version", "--format=csv,noheader", "--id=0")


def describe(device: torch.device | str = "cpu", weights: Path | None = None) -> dict[str, str]:
    """Return the machine, the versions and the weights as texts, by name.

    Args:
        device: where the measurement runs.
        weights: folder of the safetensors files that the measurement uses.
    """
    device = torch.device(device)
    facts = {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "commit": commit(),
        "device": "cpu",
        "cpu": f"{_cpu()}, {len(_cores())} cores, {torch.get_num_threads()} threads",
        "load": f"{os.getloadavg()[0]:.1f} runnable processes before",
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
        facts["driver"] = f"{_output('nvidia-smi', *_DRIVER) or 'unknown'}, CUDA {_runtime()}"
    facts["spotedit"] = spotedit.__version__
    facts |= {package: _version(package) for package in _PACKAGES}
    if weights is not None:
        facts["weights"] = f"sha256 {sha256(weights)}"
    return facts


def _runtime() -> str:
    return torch.version.cuda or f"(HIP {torch.version.hip})"


def _cores() -> Collection[int]:
    available = getattr(os, "sched_getaffinity", None)  # Linux only
    return available(0) if available else range(os.cpu_count() or 1)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def commit() -> str:
    """Return what the environment variable COMMIT says, or else the short hash of the checkout.

    The hash has a "+" if files differ from the commit. COMMIT counts more because a copied working
    tree may lie in a repository with another HEAD.
    """
    if os.environ.get("COMMIT"):
        return os.environ["COMMIT"]
    head = _output("git", "rev-parse", "--short=12", "HEAD") or "unknown"
    return head + ("+" if _output("git", "status", "--porcelain") else "")


def sha256(folder: Path) -> str:
    """Return one hash of the folder's safetensors files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _output(*command: str) -> str:
    """Return what a command prints, without the last line break; "" if it fails."""
    here = Path(__file__).parent
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True, cwd=here
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return process.stdout.strip()
