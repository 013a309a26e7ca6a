"""Test the package as a whole: its names, its place, and what it imports."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import spotedit_kernels
import torch
from spotedit_kernels.impl import HAS_TRITON, choose_impl

PACKAGE = Path(spotedit_kernels.__file__).parent
OPS = [
    "gathered_attention",
    "kv_blend",
    "latent_distance",
    "qk_norm_rope",
    "select_tokens",
    "token_distance",
]


def test_exact_names():
    assert sorted(spotedit_kernels.__all__) == sorted([*OPS, "cosine_weight"])
    for name in spotedit_kernels.__all__:
        assert callable(getattr(spotedit_kernels, name))
        assert getattr(spotedit_kernels, name).__doc__


def test_source_root_does_not_shadow_the_hub_package():
    assert PACKAGE.parent.name == "kernels"
    assert not (PACKAGE.parent / "__init__.py").exists()
    assert not (Path(__file__).parent / "__init__.py").exists()
    assert not [p for p in PACKAGE.rglob("*") if p.stem == "triton"]
    assert (PACKAGE / "py.typed").exists()


def test_imports_and_runs_with_everything_else_blocked():
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("spotedit", "diffusers", "transformers", "triton")))
sys.path.insert(0, {str(PACKAGE.parent)!r})
import torch
from spotedit_kernels import gathered_attention
x = torch.ones(1, 3, 1, 8)
assert torch.equal(gathered_attention(x, x, x), x)
try:
    gathered_attention(x, x, x, impl="triton")
except RuntimeError as error:
    assert "Triton is not installed" in str(error), error
else:
    raise AssertionError("not refused")
assert not [m for m in sys.modules if m.startswith(("spotedit.", "diffusers.", "triton."))]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_import_costs_no_more_than_pytorch():
    """Triton and the parts of PyTorch that register an op come with the first call of a kernel."""
    code = """
import sys
import torch
before = set(sys.modules)
import spotedit_kernels
spotedit_kernels.gathered_attention(*torch.ones(3, 1, 2, 1, 8))  # takes the reference on a CPU
added = {module.partition(".")[0] for module in set(sys.modules) - before}
assert "triton" not in sys.modules
assert added <= {"spotedit_kernels", *sys.stdlib_module_names}, added
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *sys.path])}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


def test_a_foreign_model_in_an_environment_without_diffusers():
    example = PACKAGE.parent / "examples" / "small_dit.py"
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys(("spotedit", "diffusers", "transformers")))
sys.path.insert(0, {str(PACKAGE.parent)!r})
runpy.run_path({str(example)!r}, run_name="__main__")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    assert done.stdout.count("largest difference to the unpatched model") == 2


def test_the_examples_of_the_readme_run():
    readme = (PACKAGE.parent / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    assert len(blocks) == len(OPS)
    for block, op in zip(blocks, re.findall(r"^## (\w+_\w+)$", readme, re.M), strict=True):
        assert f"{op}(" in block
        exec(block, {})


def test_choice_of_an_implementation():
    cpu = torch.zeros(1)
    assert choose_impl("op", "auto", cpu) == "reference"
    assert choose_impl("op", "reference", cpu) == "reference"
    with pytest.raises(RuntimeError, match=r"op: impl='triton' was asked for.*fp64.*'reference'"):
        choose_impl("op", "triton", cpu.double())
    with pytest.raises(ValueError, match=r"op: impl must be one of .*got 'cuda'"):
        choose_impl("op", "cuda", cpu)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_triton_needs_a_gpu_or_its_interpreter():
    code = """
import torch
from spotedit_kernels.impl import HAS_TRITON, choose_impl
try:
    choose_impl("op", "triton", torch.zeros(1))
except RuntimeError as error:
    assert "run on a GPU and the tensors are on cpu" in str(error), error
else:
    raise AssertionError("not refused")
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), *sys.path])
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)
