"""Ways to offload a pipeline. Here the weights go from the CPU to the CPU or to files."""

import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch


def model(pipe: Any, family: Any = None) -> dict:
    pipe.enable_model_cpu_offload(device="cpu")
    return {}


def group(level: str, to_disk: bool = False) -> Callable[..., dict]:
    """Make a function that offloads the transformer and the VAE by groups, as diffusers does."""

    def offload(pipe: Any, family: Any = None) -> dict:
        # Each component gets its own folder, because diffusers names files by layers and keeps
        # existing ones.
        pipe._folders = []
        for component in (pipe.transformer, pipe.vae):
            options: dict[str, Any] = {"offload_type": level}
            if level == "block_level":
                options["num_blocks_per_group"] = 1
            if to_disk:
                if component is pipe.vae and not decodes_from_disk(pipe.vae, level):
                    continue
                pipe._folders.append(tempfile.TemporaryDirectory())
                options["offload_to_disk_path"] = pipe._folders[-1].name
            component.enable_group_offload(onload_device=torch.device("cpu"), **options)
        return {}

    return offload


def decodes_from_disk(vae: Any, level: str) -> bool:
    """Return whether the stock pipeline works with a VAE that is offloaded to files.

    FLUX.2 reads the statistics of `vae.bn` without calling it, so they are not loaded. A VAE that
    does not name its blocks is loaded by its `forward`, which no pipeline calls.
    """
    return not hasattr(vae, "bn") and (
        level == "leaf_level" or bool(getattr(vae, "_group_offload_block_modules", None))
    )


OFFLOAD: dict[str, Callable[..., dict]] = {
    "model offload": model,
    "group offload, leaf level": group("leaf_level"),
    "group offload, block level": group("block_level"),
    "group offload, leaf level, to disk": group("leaf_level", to_disk=True),
    "group offload, block level, to disk": group("block_level", to_disk=True),
}
ONE_PER_VAE = ["FluxKontextPipeline", "QwenImageEditPipeline", "Flux2KleinPipeline"]
SOON = ("FluxKontextPipeline", "group offload, leaf level")  # in the default run

each_vae_and_way_to_offload = pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(
            name, how, id=f"{name}-{how}", marks=[] if (name, how) == SOON else [pytest.mark.full]
        )
        for name in ONE_PER_VAE
        for how in OFFLOAD
    ],
)
