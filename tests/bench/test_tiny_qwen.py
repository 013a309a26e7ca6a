"""Tests of the tiny Qwen editor: its weights, and the parts that its training adds."""

import numpy as np
import pytest
import torch
from PIL import Image

from bench import tiny_qwen
from bench.tiny_qwen import edits
from bench.tiny_qwen.architecture import build_vae, install_components
from bench.tiny_qwen.editor import Editor, StillVae, forget_words
from bench.tiny_qwen.train import main
from spotedit import tiny


@pytest.fixture(scope="module")
def pipe():
    return tiny_qwen.load()


@pytest.fixture(scope="module")
def scene():
    return tiny.make_scene(0, kind="recolour", size=64)


def test_weights_are_small():
    size = sum(file.stat().st_size for file in tiny_qwen.WEIGHTS.rglob("*") if file.is_file())
    assert size <= 12 * 2**20


def test_an_edit_is_finite_deterministic_and_guided(pipe, scene):
    def edit(guidance):
        arguments = edits.arguments(scene, 0, steps=2, guidance=guidance)
        return pipe(**arguments, output_type="np").images[0]

    guided = edit(1.5)
    assert guided.shape == (64, 64, 3)
    assert np.isfinite(guided).all()
    assert np.array_equal(guided, edit(1.5))
    assert not np.allclose(guided, edit(1.0), atol=1e-3)


def test_a_prompt_can_be_given_as_embeddings(pipe, scene):
    arguments = edits.arguments(scene, 0, steps=1)
    with_text = pipe(**arguments, output_type="np").images
    text, negative = arguments.pop("prompt"), arguments.pop("negative_prompt")
    arguments |= tiny_qwen.prompt(pipe, text) | tiny_qwen.prompt(pipe, negative, negative=True)
    arguments["generator"].manual_seed(0)
    assert np.array_equal(pipe(**arguments, output_type="np").images, with_text)
    assert arguments["prompt_embeds_mask"].sum() == len(text.split()) + 1


def test_the_training_editor_equals_the_pipelines_transformer(pipe):
    x_t, source = torch.randn(2, 2, 16, 32, generator=torch.Generator().manual_seed(0))
    t, ids = torch.tensor([0.3, 0.9]), torch.tensor([[5, 6, 1, 0], [1, 0, 0, 0]])
    with torch.no_grad():
        stock = pipe.transformer(
            hidden_states=torch.cat([x_t, source], dim=1),
            timestep=t,
            encoder_hidden_states=pipe.text_encoder(ids)[0],
            encoder_hidden_states_mask=ids != 0,
            img_shapes=[[(1, 4, 4)] * 2] * 2,
        ).sample[:, :16]
        processors = dict(pipe.transformer.attn_processors)
        ours = Editor(pipe.transformer, pipe.text_encoder)(x_t, source, t, ids)
    pipe.transformer.set_attn_processor(processors)
    assert torch.allclose(ours, stock, atol=1e-4)


def test_the_encoder_is_the_components_and_the_still_decoder_the_stock_one():
    filters, bias = torch.randn(8, 3, 4, 4) / 7, torch.randn(8)
    vae, images = build_vae(), torch.rand(2, 3, 24, 16) * 2 - 1
    install_components(vae, filters, bias)
    expected = torch.nn.functional.conv2d(images, filters, bias, stride=4)
    with torch.no_grad():
        latents = vae.encode(images[:, :, None]).latent_dist.mode()
        decoded = vae.decode(latents).sample[:, :, 0]
        still = StillVae(vae).decoder(latents[:, :, 0])
    assert torch.allclose(latents[:, :, 0], expected, atol=1e-3)
    assert torch.allclose(still.clamp(-1, 1), decoded, atol=1e-5)


@pytest.mark.full
def test_training_makes_weights_that_load(tmp_path):
    for i, photo in enumerate(tiny.heldout_photos()[:2]):
        Image.fromarray(photo).resize((360, 260)).save(tmp_path / f"{i}.png")
    common = ["--photos", str(tmp_path), "--folder", str(tmp_path / "run"), "--batch", "2"]
    main(["vae", *common, "--steps", "1", "--crop", "16", "--pictures", "2"])
    small = ["--size", "32", "--shard", "4", "--scenes", "4", "--no-prefetch"]
    main(["editor", *common, *small, "--steps", "1"])
    main(["export", "--folder", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    exported = tiny_qwen.load(folder=tmp_path / "out")
    checkpoint = torch.load(tmp_path / "run/editor.pt")
    for name, value in exported.transformer.state_dict().items():
        expected = checkpoint["averaged"]["transformer." + name]
        assert torch.allclose(value, expected, rtol=1e-3, atol=1e-6), name


def test_the_last_scene_of_a_batch_keeps_its_target_and_loses_its_words():
    batch = (*(torch.arange(4.0)[:, None] + k for k in (0, 10, 20)), torch.arange(8).view(4, 2))
    target, source, changed, ids = forget_words(batch, torch.tensor([1, 0]))
    assert target.flatten().tolist() == [0, 1, 2, 2]
    assert source.flatten().tolist() == [10, 11, 12, 12]
    assert changed.flatten().tolist() == [20, 21, 22, 22]
    assert ids.tolist() == [[0, 1], [2, 3], [4, 5], [1, 0]]
