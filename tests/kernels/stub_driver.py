"""Run Triton's real compiler and launcher without a GPU; only the launch itself is left out.

`install` puts Triton's own CUDA driver on top of a stub of libcuda (stub_libcuda.c). Kernels are
then compiled for the target through `kernel[grid](...)`, and Triton's launcher converts and checks
every argument, on CPU tensors. Nothing runs: outputs keep what was in their memory. It needs a C
compiler, as Triton does on a GPU, and a process in which TRITON_INTERPRET was not set at import.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from spotedit_kernels import impl
from spotedit_kernels.gathered_attention import kernel as attention
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver

HERE = Path(__file__).parent
MULTIPROCESSORS = 132
SHARED_MEMORY = {80: 166912, 89: 101376, 90: 232448}  # most bytes of a block, by capability


class Launch(NamedTuple):
    """A launch that the stub took: the kernel's name and its compile-time arguments."""

    kernel: str
    constants: dict[str, Any]


def install(capability: int) -> list[Launch]:
    """Make `capability` (80 for sm_80) Triton's target; return the list that records launches."""
    assert not impl.is_interpreted(), "unset TRITON_INTERPRET before Triton is imported"
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)  # not before: Triton 3.6 links each launcher to the stub
    library = _build_stub(Path(folder))
    library.stub_configure(SHARED_MEMORY[capability], capability)
    triton.knobs.nvidia.libcuda_path = folder
    launches: list[Launch] = []
    triton.runtime.driver.set_active(_driver(capability, launches))
    impl._obstacle = lambda like: None  # CPU tensors stand in for a GPU's
    attention.device_target = lambda device: (f"sm_{capability}", MULTIPROCESSORS)
    return launches


def _build_stub(folder: Path) -> ctypes.CDLL:
    """Compile the stub under libcuda's name and load it, so that links to that name find it."""
    include = Path(driver.__file__).parent / "include"
    file = folder / "libcuda.so.1"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "Triton needs a C compiler for its launchers, and found none"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", f"-I{include}",
         HERE / "stub_libcuda.c", "-o", file],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)


def _driver(capability: int, launches: list[Launch]) -> driver.CudaDriver:
    """Make Triton's CUDA driver for `capability`, whose launchers append to `launches`."""
    active = driver.CudaDriver()
    active.get_device_capability = lambda device: divmod(capability, 10)
    # Triton caches compiled kernels by device, so each capability needs a different number.
    active.get_current_device = lambda: capability
    active.get_current_stream = lambda device: 0
    active.get_current_target = lambda: GPUTarget("cuda", capability, 32)
    active.get_active_torch_device = lambda: torch.device("cpu")

    class Launcher(driver.CudaLauncher):
        def __init__(self, source: Any, metadata: Any) -> None:
            super().__init__(source, metadata)
            names = source.fn.arg_names
            constants = {names[path[0]]: value for path, value in source.constants.items()}
            self.record = Launch(source.fn.__name__, constants)

        def __call__(self, *arguments: Any) -> None:
            super().__call__(*arguments)
            launches.append(self.record)

    active.launcher_cls = Launcher
    return active
