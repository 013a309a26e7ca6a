"""`spotedit env`: what a bug report needs. Nothing personal: no paths, no host name."""

import argparse
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = (
    "spotedit", "torch", "triton", "diffusers", "transformers", "accelerate", "peft",
    "safetensors", "numpy", "pillow", "flash-attn", "sageattention", "xformers", "kernels",
)  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Print a `name  value` line for every item."""
    for name, value in _lines():
        print(f"{name:<14} {value}")


def _lines() -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"
    yield "cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        yield "runtime", f"HIP {torch.version.hip}" if torch.version.hip else _cuda()
        for i in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(i)
            memory = device.total_memory / 2**30
            yield f"cuda:{i}", f"{device.name}, {memory:.0f} GiB, sm_{device.major}{device.minor}"
        yield "sdpa", ", ".join(_sdpa()) or "math only"
    else:
        yield "cuda", "not available"
    yield "mps", "available" if torch.backends.mps.is_available() else "not available"


def _cuda() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return f"CUDA {torch.version.cuda}, driver {driver.stdout.split()[0]}"
    except (OSError, subprocess.SubprocessError, IndexError):
        return f"CUDA {torch.version.cuda}, driver unknown"


def _sdpa() -> list[str]:
    """Fused kernels that PyTorch's attention may use."""
    cuda = torch.backends.cuda
    switches = {
        "flash": cuda.flash_sdp_enabled,
        "memory-efficient": cuda.mem_efficient_sdp_enabled,
        "cudnn": cuda.cudnn_sdp_enabled,
    }
    return [name for name, enabled in switches.items() if enabled()]
