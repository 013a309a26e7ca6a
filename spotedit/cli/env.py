"""`spotedit env` prints what a bug report needs, without paths and without the host's name.

`torch.utils.collect_env` prints 60 lines more, among them paths and the name of the kernel, and
leaves out the versions of diffusers, transformers and the attention packages.
"""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
from torch.utils import collect_env

from .. import __version__
from .commands import EnvOptions

PACKAGES = (
    "torch", "triton", "diffusers", "transformers", "accelerate", "peft",
    "safetensors", "numpy", "pillow", "flash-attn", "sageattention", "xformers", "kernels",
)  # fmt: skip


def run(options: EnvOptions) -> None:
    """Print a line with the name and the value of every item."""
    for name, value in _items():
        print(f"{name:<14} {value}")


def _items() -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "spotedit", __version__  # known without an installation, unlike the others' versions
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"
    yield "cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        yield "runtime", _runtime()
        for i in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(i)
            memory = device.total_memory / 2**30
            yield f"cuda:{i}", f"{device.name}, {memory:.0f} GiB, sm_{device.major}{device.minor}"
        yield "sdpa", ", ".join(_fused_attention()) or "math only"
    else:
        yield "cuda", "not available"
    yield "mps", "available" if torch.backends.mps.is_available() else "not available"


def _runtime() -> str:
    if torch.version.hip:
        return f"HIP {torch.version.hip}"
    driver = collect_env.get_nvidia_driver_version(collect_env.run)  # None without nvidia-smi
    return f"CUDA {torch.version.cuda}, driver {driver or 'unknown'}"


def _fused_attention() -> list[str]:
    """Return the names of the fused kernels that PyTorch's attention may use."""
    cuda = torch.backends.cuda
    is_enabled = {
        "flash": cuda.flash_sdp_enabled,
        "memory-efficient": cuda.mem_efficient_sdp_enabled,
        "cudnn": cuda.cudnn_sdp_enabled,
    }
    return [name for name, check in is_enabled.items() if check()]
