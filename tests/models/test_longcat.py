"""LongCat-Image-Edit: the output follows the picture, whatever its shape."""

import numpy as np
import torch
from families import FAMILIES
from PIL import Image

import spotedit
from spotedit.cli.edit import _size_arguments

FAMILY = FAMILIES["LongCatImageEditPipeline"]


def test_a_mask_may_have_the_size_of_a_tall_picture_or_of_the_output():
    pipe = FAMILY.make()
    handle = spotedit.enable(pipe)
    picture = Image.new("RGB", (30, 60), "teal")
    for height, width in ((60, 30), (11 * 128, 5 * 128)):
        mask = torch.zeros(height, width)
        mask[: 2 * height // 11] = 1
        handle.set_mask(mask, mode="replace")
        pipe(**FAMILY.arguments(image=picture))
        expected = np.zeros((11, 5), dtype=bool)
        expected[:2] = True
        assert handle.report.reason is None
        assert np.array_equal(handle.report.region, expected)


def test_the_command_line_gives_it_no_size():
    assert _size_arguments(FAMILY.make(), Image.new("RGB", (64, 48))) == {}
