"""A trained tiny editor with Qwen-Image-Edit's architecture."""

from .pipeline import WEIGHTS, TinyQwenPipeline, load, prompt

__all__ = ["WEIGHTS", "TinyQwenPipeline", "load", "prompt"]
