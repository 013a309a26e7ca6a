"""Tests of the toy world's editor: its weights load, are small, and know every word."""

import numpy as np
import pytest
import torch

from bench.edits import arguments, round_trip
from bench.tiny_editor.evaluate import WEIGHTS, edit_row, summary
from spotedit.tiny import PROMPT_TOKENS, TinyKontextPipeline
from spotedit.tiny.world import KINDS, make_scene, vocabulary


@pytest.fixture(scope="module")
def pipe():
    pipe = TinyKontextPipeline.from_pretrained(WEIGHTS, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_weights_are_small():
    size = sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file())
    assert size <= 14 * 2**20
    assert not [file for file in WEIGHTS.rglob("*") if file.suffix in (".bin", ".pt", ".pth")]


def test_every_word_has_its_token(pipe):
    for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):
        ids = tokenizer(" ".join(vocabulary())).input_ids
        assert tokenizer.unk_token_id not in ids
        assert len(set(ids[:-1])) == len(vocabulary())
    for kind in KINDS:
        for seed in range(10):
            words = make_scene(seed, kind, size=32).instruction
            assert len(pipe.tokenizer_2(words).input_ids) <= PROMPT_TOKENS


def test_the_autoencoder_keeps_pictures(pipe):
    errors = []
    for seed in range(6):
        source = make_scene(seed).source
        errors.append(np.square(source - round_trip(pipe, source).astype(float)).mean())
    assert 10 * np.log10(255**2 / np.mean(errors)) >= 29


def test_an_edit_keeps_what_it_does_not_touch(pipe):
    scene = make_scene(0, "remove")
    result = np.asarray(pipe(**arguments(scene, 0, steps=6)).images[0])
    far = np.ones_like(scene.mask)
    rows, columns = np.nonzero(scene.mask)
    far[rows.min() - 16 : rows.max() + 17, columns.min() - 16 : columns.max() + 17] = False
    error = np.abs(result.astype(int) - scene.source)[far].mean()
    assert error < 8
    again = np.asarray(pipe(**arguments(scene, 0, steps=6)).images[0])
    assert np.array_equal(result, again)


def test_figures_of_a_scene(pipe):
    row = edit_row(pipe, 1, "hard", steps=2)
    assert {"right", "edit_psnr", "elsewhere", "floor", "trip"} <= row.keys()
    text = summary({"hard": [row]}, 2, "0")
    assert f"| {row['case']} | 1 |" in text
    assert "| all | 1 |" in text
