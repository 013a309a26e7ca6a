"""Inpainting with FLUX.1-Kontext. The mask lets everything change."""

from dataclasses import replace

import torch
from diffusers import FluxKontextInpaintPipeline
from small_kontext import call_arguments, random_kontext

from .kontext import KONTEXT


def make(seed=0):
    pipe = FluxKontextInpaintPipeline(**random_kontext(seed).components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(seed=0, size=(48, 64), **extra):
    return {"mask_image": torch.ones(1, 1, *size), **call_arguments(seed, size, **extra)}


KONTEXT_INPAINT = {
    "FluxKontextInpaintPipeline": replace(
        KONTEXT["FluxKontextPipeline"], make=make, arguments=arguments, stock={}
    )
}
