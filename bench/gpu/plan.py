"""List the parts of a visit: the commands in their order, each with a time limit."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

# tests of each operation in each dtype, of int8 attention, synchronisation and memory
SMOKE = (
    "tests/engine/test_gpu.py",
    "tests/kernels/test_triton_ops.py::test_kernels_agree_with_the_references",
    "tests/kernels/test_op_gathered_attention.py::test_int8_cache",
)
VERSIONS = """
import platform, sys, torch
from importlib.metadata import PackageNotFoundError, version
print("python", platform.python_version())
for name in "torch triton diffusers transformers numpy peft pytest pytest-xdist".split():
    try:
        print(name, version(name))
    except PackageNotFoundError:
        print(name, "IS MISSING")
if sys.argv[1] == "cuda":
    if not torch.cuda.is_available():
        sys.exit("no CUDA device that PyTorch can use here; nothing else is run")
    print(torch.cuda.get_device_properties(0), "CUDA", torch.version.cuda)
"""


@dataclass(frozen=True)
class Part:
    """A command of a visit.

    Attributes:
        name: name of the part.
        seconds: time limit.
        command: program and arguments.
        environment: further environment variables.
        needed: if True and the command exits with 1, nothing else is run.
        skipped: reason why the part is not run; "" if it is run.
    """

    name: str
    seconds: float
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    needed: bool = False
    skipped: str = ""


def parts(rehearse: bool, python: str, wheels: str, work: Path) -> list[Part]:
    """List the parts in their order: those that are worth most for their time come first.

    Args:
        rehearse: run on the CPU at tiny shapes, and only collect the tests.
        python: interpreter that runs the parts.
        wheels: folder of wheels to install, or "".
        work: folder for what the parts write.
    """
    device = "cpu" if rehearse else "cuda"

    def run(module: str, *options: str) -> list[str]:
        return [python, "-m", module, *" ".join(options).split()]

    def bench(module: str, visit: str, rehearsal: str) -> list[str]:
        options = rehearsal if rehearse else visit
        return [*run(module, f"--device {device}", options), "--out", str(work / "gpu")]

    def tests(num_workers: int, *selection: str) -> list[str]:
        collect = "--collect-only" if rehearse else ""
        return run("pytest", f"-m gpu -q -n {num_workers}", collect, *selection)

    wheel_files = sorted(map(str, Path(wheels).glob("*.whl"))) if wheels else []
    pip = run("pip", "install --quiet --no-compile --no-deps --no-index --target")
    ceilings = "--shapes --name ceilings"
    memcheck = run("bench", f"--device {device} --check --shapes odd")
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer and not rehearse:
        tool = "--tool memcheck --report-api-errors no --error-exitcode 1"
        memcheck = [sanitizer, *tool.split(), *memcheck]
    odd = "--shapes odd --repeats 2"
    listed = [
        Part("wheels", 30, [*pip, str(work / "packages"), *wheel_files],
             skipped="" if wheel_files else "WHEELS names no folder of wheels"),
        Part("versions", 45, [python, "-c", VERSIONS, device], needed=True),
        Part("ceilings", 40, bench("bench", ceilings, ceilings)),
        Part("smoke", 75, tests(8, *SMOKE)),
        Part("kernels", 80, bench(
            "bench", "--shapes kontext --no-compiled", f"{odd} --no-compiled",
        )),
        Part("pipeline", 240, bench(
            "bench.pipeline",
            "--ratio .05 .1 .2 1 --judge .2 --unfused .1 --profile .05 .2 --seconds 190",
            "--ratio .25 1 --judge .25 --unfused .25 --profile .25 --seconds 190 "
            "--size tiny --layers 1 1 --steps 4 --dtype float32 --backend eager",
        )),
        Part("tests", 100, tests(12, *(f"--deselect={name}" for name in SMOKE), "tests")),
        Part("kernels-others", 45, bench(
            "bench", "--shapes qwen-edit flux2-dev klein-4b klein-9b vae --name kernels-others",
            f"{odd} --name kernels-others",
        )),
        Part("kernels-compiled", 60, bench(
            "bench", "--shapes kontext --name kernels-compiled", f"{odd} --name kernels-compiled",
        )),
        # Without PyTorch's memory pool each tensor is a separate allocation with guarded ends.
        Part("memcheck", 60, memcheck, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
             skipped="" if rehearse or sanitizer else "compute-sanitizer is not on the PATH"),
        Part("speed", 45, bench(
            "bench.speed", "--dtype bfloat16 --sizes 256 512", "--sizes 64 --steps 4",
        )),
        Part("quality", 60, [*bench(
            "bench.quality", "--scenes 4 --variants default",
            "--scenes 1 --steps 6 --variants default",
        ), "--work", str(work / "quality")]),
    ]  # fmt: skip
    if rehearse:  # the limits are made for a GPU; on a CPU only the deadline limits a part
        return [replace(part, seconds=math.inf) for part in listed]
    return listed
