"""A toy world that is drawn by code, with edits whose right answers are known."""

from .edits import CASES, LOCAL_KINDS, WHOLE_KINDS
from .fit import Fit, Open
from .picture import World, render
from .scenes import KINDS, SPLITS, Scene, make_scene
from .words import vocabulary

__all__ = [
    "CASES",
    "KINDS",
    "LOCAL_KINDS",
    "SPLITS",
    "WHOLE_KINDS",
    "Fit",
    "Open",
    "Scene",
    "World",
    "make_scene",
    "render",
    "vocabulary",
]
