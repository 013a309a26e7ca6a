"""What a figure depends on besides the code measured. Names no host, user or path."""

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
    """The machine, the versions and the weights, as text by name.

    Args:
        device: where the measurement runs.
        weights: folder whose safetensors files belong to the measurement.
    """
    device = torch.device(device)
    found = {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "commit": commit(),
        "device": "cpu",
        "cpu": f"{_cpu()}, {len(_cores())} cores, {torch.get_num_threads()} threads",
        "load": f"{os.getloadavg()[0]:.1f} runnable processes before",
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["driver"] = f"{_output('nvidia-smi', *_DRIVER) or 'unknown'}, CUDA {_runtime()}"
    found["spotedit"] = spotedit.__version__
    found |= {package: _version(package) for package in _PACKAGES}
    if weights is not None:
        found["weights"] = f"sha256 {sha256(weights)}"
    return found


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
    """Short hash of this checkout's commit, with "+" if files differ from it.

    In a copy without git, what the environment variable COMMIT says.
    """
    found = _output("git", "rev-parse", "--short=12", "HEAD")
    if not found:
        return os.environ.get("COMMIT", "unknown")
    return found + ("+" if _output("git", "status", "--porcelain") else "")


def sha256(folder: Path) -> str:
    """One hash of the folder's safetensors files, in the order of their names."""
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
    """What a command prints, without the last line break; empty where it fails."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True, cwd=here
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
