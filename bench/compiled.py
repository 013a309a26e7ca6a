"""Compile every Triton schedule ahead of time, without a GPU: ``python -m bench.compiled``.

Prints, for each target and each schedule that runs there, a row with the registers per thread, the
spilled bytes and the shared memory. Exits with 1 if a schedule spills or needs more shared memory
than the target has.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import triton
from spotedit_kernels.schedules import TARGETS, Schedule, schedules
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spotedit.pictures.images import atomic_write

from .rows import table

COLUMNS = ("schedule", "target", "registers", "spilled bytes", "shared memory", "wgmma")
# bytes of shared memory that a block can have
SHARED_LIMIT = {"sm_80": 166912, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448,
                "gfx942": 65536}  # fmt: skip


@dataclass(frozen=True)
class Usage:
    """What a compiled schedule needs.

    Attributes:
        registers: registers per thread.
        spilled: bytes per thread.
        shared: bytes of shared memory per block.
        wgmma: whether the code has a wgmma instruction.
    """

    registers: int
    spilled: int
    shared: int
    wgmma: bool


def gpu_target(name: str) -> GPUTarget:
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    return GPUTarget("hip", name, 64)


def compile_schedule(schedule: Schedule, target: str) -> Usage:
    """Compile `schedule` for `target`, a key of `TARGETS`."""
    kernel = schedule.kernel
    types, constants, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in schedule.constants:
            types[name], constants[(position,)] = "constexpr", schedule.constants[name]
        else:
            types[name] = schedule.types.get(name, "i32")
            if types[name].startswith("*") or name in schedule.aligned:
                attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, types, constants, attributes)
    options = {"num_warps": schedule.num_warps, "num_stages": schedule.num_stages}
    compiled = triton.compile(source, target=gpu_target(target), options=options)
    if target.startswith("sm_"):
        registers, spilled = _nvidia_usage(compiled.asm["cubin"])
        return Usage(registers, spilled, compiled.metadata.shared, "wgmma" in compiled.asm["ptx"])
    assembly = compiled.asm["amdgcn"]
    registers = int(re.search(r"\.vgpr_count:\s+(\d+)", assembly)[1])  # type: ignore[index]
    spilled = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", assembly)[1])  # type: ignore[index]
    return Usage(registers, 4 * spilled, compiled.metadata.shared, False)


def _nvidia_usage(cubin: bytes) -> tuple[int, int]:
    """Return the registers and the bytes of local memory per thread, as cuobjdump reports them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        output = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", output)
    assert usage is not None, output
    registers, stack, local = map(int, usage.groups())
    return registers, stack + local


def usages(targets: list[str], name: str = "") -> Iterator[tuple[Schedule, str, Usage]]:
    """Compile the schedules of `targets` whose name contains `name`."""
    pairs = [(s, target) for target in targets for s in schedules(target) if name in s.name]
    for schedule, target in tqdm(pairs, desc="compile", unit="schedule"):
        yield schedule, target, compile_schedule(schedule, target)


def faults(schedule: Schedule, target: str, usage: Usage) -> list[str]:
    """Return what is wrong with a compiled schedule."""
    wrong = []
    if usage.spilled:
        wrong.append(f"spills {usage.spilled} bytes")
    if usage.shared > SHARED_LIMIT[target]:
        limit = SHARED_LIMIT[target]
        wrong.append(f"needs {usage.shared} bytes of shared memory; the limit is {limit}")
    if schedule.tensor_cores and target == "sm_90" and not usage.wgmma:
        wrong.append("has no wgmma instruction")
    return [f"{schedule.name} on {target} {fault}" for fault in wrong]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--name", default="", help="only schedules whose name contains this")
    parser.add_argument("--out", type=Path, help="folder for the table")
    args = parser.parse_args(argv)
    if args.out:  # fail here, before the minutes that the work takes
        args.out.mkdir(parents=True, exist_ok=True)
    wrong: list[str] = []
    lines = []
    for schedule, target, usage in usages(args.targets, args.name):
        wrong += faults(schedule, target, usage)
        figures = map(str, (usage.registers, usage.spilled, usage.shared))
        lines.append([schedule.name, target, *figures, "yes" if usage.wgmma else ""])
    title = f"Triton {triton.__version__}, ahead of time, no GPU: `python -m bench.compiled`."
    text = f"{title}\n\n{table(COLUMNS, lines)}\n"
    if args.out:
        with atomic_write(args.out / f"compiled-triton-{triton.__version__}.md") as temporary:
            temporary.write_text(text)
    print(text)
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
