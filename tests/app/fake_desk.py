"""A desk whose edits take no time: it stands in for the editor where a test needs no model."""

import threading
from types import SimpleNamespace

import numpy as np
from PIL import Image

from spotedit.app.job import Job
from spotedit.editor.crop import Detailed

GREEN = (0, 200, 0)


class FakeReport:
    """What the page reads of a report."""

    kinds = ("full", "spot", "spot")
    mean_ratio, flops_saved = 0.25, 0.5
    doubts: tuple[str, ...] = ()
    mask_note = None
    unedited = 0
    region = np.ones((2, 2), dtype=bool)

    def summary(self) -> str:
        return "the summary"

    def placed(self, picture: Image.Image):
        raise ValueError("a test made the edit")

    def overlay(self, image: Image.Image) -> Image.Image:
        return image


class FakeDesk:
    """Makes every picture green, in three steps.

    Attributes:
        orders: the orders that were carried out, with their sources.
        notes: what the edits say about their crops.
        error: raised in place of the second step, if it is set.
        go_on: every step waits for it.
    """

    model, preset, steps = "fake", "default", 3

    def __init__(self) -> None:
        self.orders: list = []
        self.notes: tuple[str, ...] = ()
        self.error: BaseException | None = None
        self.go_on = threading.Event()
        self.go_on.set()
        self.ended = threading.Event()

    def edit(self, source, order, job: Job) -> Detailed:
        job.check()
        self.orders.append((source, order))
        try:
            for index, kind in enumerate(FakeReport.kinds):
                self.go_on.wait(10)
                if index == 1 and self.error is not None:
                    raise self.error
                job.on_step(
                    SimpleNamespace(index=index, total=3, kind=kind, ratio=0.25, image=None)
                )
        finally:
            self.ended.set()
        picture = Image.new("RGB", source.size, GREEN)
        return Detailed(source.load(), picture, FakeReport(), 0.1, notes=self.notes)
