"""Several placed edits act as if they were pasted one after the other."""

import numpy as np
import pytest
from PIL import Image

from spotedit.pictures.composite import PlacedEdit, composite
from spotedit.pictures.layers import Layers

SIZE = (90, 60)
BOXES = [(0.0, 0.0, 1.0, 1.0), (0.25, 0.1, 0.75, 0.8), (0.6, 0.5, 1.0, 1.0)]


def placed(seed: int, box=(0.0, 0.0, 1.0, 1.0)) -> PlacedEdit:
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(90, 166, (32, 48, 3), dtype=np.uint8))
    return PlacedEdit(picture, rng.random((4, 6)) < 0.3, box)


@pytest.fixture
def original() -> Image.Image:
    pixels = np.random.default_rng(9).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def in_turn(original: Image.Image, edits) -> np.ndarray:
    for edit in edits:
        original = composite(original, edit)
    return np.asarray(original, dtype=int)


def test_layers_equal_edits_that_are_pasted_in_turn(original):
    edits = tuple(placed(seed, box) for seed, box in enumerate(BOXES))
    together = np.asarray(composite(original, Layers(edits)), dtype=int)
    expected = in_turn(original, edits)
    assert np.abs(together - expected).max() <= 2  # each paste rounds
    changed = (expected != np.asarray(original)).any(axis=-1)
    assert np.array_equal(together[~changed], np.asarray(original)[~changed])
    assert (Layers(edits).opacity(SIZE, (0, 0, *SIZE)) > 0)[changed].all()


def test_one_layer_equals_its_edit(original):
    edit = placed(0, BOXES[1])
    one = composite(original, Layers((edit,)))
    assert np.array_equal(np.asarray(one), np.asarray(composite(original, edit)))


def test_a_part_of_the_layers_is_the_part_of_the_whole():
    layers = Layers(tuple(placed(seed, box) for seed, box in enumerate(BOXES)))
    box = (20, 13, 77, 41)
    whole = layers.opacity(SIZE, (0, 0, *SIZE))
    assert np.allclose(layers.opacity(SIZE, box), whole[13:41, 20:77])
    shown = layers.opacity(SIZE, box) > 0
    colours = np.asarray(layers.colours(SIZE, (0, 0, *SIZE)), dtype=int)[13:41, 20:77]
    part = np.asarray(layers.colours(SIZE, box), dtype=int)
    assert np.abs(part - colours)[shown].max() <= 2


@pytest.mark.parametrize("method", list(Image.Transpose))
def test_turned_layers_give_the_turned_picture(original, method):
    layers = Layers(tuple(placed(seed, box) for seed, box in enumerate(BOXES)))
    turned = composite(original.transpose(method), layers.transposed(method))
    expected = composite(original, layers).transpose(method)
    assert np.abs(np.asarray(turned, dtype=int) - np.asarray(expected)).max() <= 2


def test_layers_without_an_edit_change_nothing(original):
    nothing = PlacedEdit(original, np.zeros((4, 6), dtype=bool), BOXES[0])
    for layers in (Layers(()), Layers((nothing,))):
        assert layers.is_empty
        assert layers.extent(SIZE) == (0, 0, 0, 0)
        assert np.array_equal(np.asarray(composite(original, layers)), np.asarray(original))
