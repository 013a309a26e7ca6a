"""Tests of the tiny editor: loading, scenes, weights, and a short training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image

from spotedit import tiny
from spotedit.tiny.shapes import COLOURS

WEIGHTS = Path(tiny.__file__).parent / "weights"


@pytest.fixture(scope="module")
def pipe() -> tiny.TinyKontextPipeline:
    pipe = tiny.load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _edit(pipe: tiny.TinyKontextPipeline, image: Image.Image, prompt: str, **kwargs) -> Image.Image:
    kwargs |= {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    return pipe(image=image, prompt=prompt, **kwargs).images[0]


def test_loads_without_network_and_takes_a_prompt_string(pipe, monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("used the network"))
    again = tiny.load()
    again.set_progress_bar_config(disable=True)
    assert isinstance(again, FluxKontextPipeline)
    scene = tiny.make_scene(0)
    one, two = (_edit(p, scene.source_image, scene.instruction) for p in (pipe, again))
    assert one.size == (128, 128)
    assert np.array_equal(np.asarray(one), np.asarray(two))


def test_default_call_equals_the_stock_call_with_explicit_arguments(pipe):
    scene = tiny.make_scene(1)
    explicit = FluxKontextPipeline.__call__(
        pipe,
        scene.source_image,
        scene.instruction,
        height=128,
        width=128,
        max_area=128 * 128,
        _auto_resize=False,
        max_sequence_length=tiny.PROMPT_TOKENS,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    default = _edit(pipe, scene.source_image, scene.instruction)
    assert np.array_equal(np.asarray(default), np.asarray(explicit))


@pytest.mark.parametrize("size", [(64, 64), (136, 96), (72, 200)])
def test_other_sizes_run(pipe, size):
    height, width = size
    image = tiny.make_scene(2, size=size).source_image
    edited = _edit(pipe, image, "remove the red circle", height=height, width=width)
    assert edited.size == (width, height)


def test_runs_in_bfloat16():
    pipe = tiny.load(torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    scene = tiny.make_scene(3, size=64)
    edited = _edit(pipe, scene.source_image, scene.instruction, height=64, width=64)
    assert np.asarray(edited).std() > 5


def test_autoencoder_keeps_heldout_photographs(pipe):
    from bench.tiny_qwen.evaluate import vae_rows

    assert np.mean(vae_rows(pipe, 1)) >= 27


def test_weights_are_small_and_safe():
    files = [f for f in WEIGHTS.rglob("*") if f.is_file()]
    assert {f.suffix for f in files} <= {".safetensors", ".json"}
    assert sum(f.stat().st_size for f in files) <= 16 * 2**20


def test_native_size_has_256_tokens(pipe):
    side = tiny.NATIVE_SIZE // (2 * pipe.vae_scale_factor)
    assert side * side == 256


def test_scenes_are_deterministic_and_masks_exact():
    kinds = set()
    for seed in range(40):
        scene, again = tiny.make_scene(seed), tiny.make_scene(seed)
        kinds.add(scene.kind)
        assert np.array_equal(scene.source, again.source)
        assert np.array_equal(scene.target, again.target)
        assert scene.instruction == again.instruction
        assert np.array_equal(scene.mask, (scene.source != scene.target).any(axis=-1))
        assert 0.01 < scene.mask.mean() < 0.3
    assert kinds == set(tiny.KINDS)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_kind_and_words(pipe, kind):
    for seed in range(30):
        scene = tiny.make_scene(seed, kind=kind, size=(96, 160))
        assert scene.kind == kind
        assert scene.source.shape == scene.target.shape == (96, 160, 3)
        ids = pipe.tokenizer_2(scene.instruction).input_ids
        assert len(ids) <= tiny.PROMPT_TOKENS
        assert pipe.tokenizer_2.unk_token_id not in ids


def test_area_is_that_of_the_edited_object():
    kinds = ("recolour", "remove", "replace")
    for area in (0.02, 0.1, 0.6):
        scenes = [tiny.make_scene(seed, kinds[seed % 3], area=area) for seed in range(30)]
        assert np.median([scene.mask.mean() for scene in scenes]) == pytest.approx(area, rel=0.25)
    wide = tiny.make_scene(0, "remove", size=(96, 160), area=0.6)
    assert wide.mask.mean() == pytest.approx(0.6 * 96 / 160, rel=0.35)
    for wrong in (0.0, 0.61, float("nan")):
        with pytest.raises(ValueError, match=r"at most 0\.6"):
            tiny.make_scene(0, area=wrong)


def test_recolouring_changes_the_colour_clearly():
    for seed in range(30):
        words = tiny.make_scene(seed, kind="recolour").instruction.split()
        old, new = (np.array(COLOURS[word]) for word in (words[2], words[-1]))
        assert np.linalg.norm(old - new) >= 150


def test_splits_differ_and_training_needs_photographs():
    photos = tiny.heldout_photos()
    train = tiny.make_scene(0, split="train", photos=photos)
    assert not np.array_equal(train.source, tiny.make_scene(0, photos=photos).source)
    with pytest.raises(ValueError, match="photos"):
        tiny.make_scene(0, split="train")
    with pytest.raises(ValueError, match="unknown kind"):
        tiny.make_scene(0, kind="blur")


def test_encoder_is_the_linear_map_it_was_given():
    from bench.tiny_editor.architecture import LATENT_CHANNELS, build_vae
    from bench.tiny_editor.vae import (
        components,
        encode_linear,
        install_components,
        read_components,
    )
    from spotedit.tiny.world import make_scene

    pictures = np.stack([make_scene(seed, size=64).source for seed in range(8)]) / 127.5 - 1
    filters, bias = components(pictures, LATENT_CHANNELS)
    vae = build_vae()
    install_components(vae, filters, bias)
    images = torch.from_numpy(pictures).float().permute(0, 3, 1, 2)
    expected = encode_linear(images, filters, bias)
    with torch.no_grad():
        encoded = vae.encode(images).latent_dist.mode()
    assert torch.allclose(encoded, expected, atol=2e-3, rtol=1e-3)
    assert abs(float(expected.var()) - 1) < 0.2
    again = read_components(vae, LATENT_CHANNELS)
    assert torch.allclose(encode_linear(images, *again), expected, atol=5e-3, rtol=1e-3)


def test_matmul_attention_equals_the_stock_processor():
    from bench.tiny_editor.architecture import build_transformer
    from bench.tiny_editor.attention import MatmulAttnProcessor
    from bench.tiny_editor.editor import image_ids

    torch.manual_seed(0)
    transformer = build_transformer(dual=1, single=1).eval()
    inputs = {
        "hidden_states": torch.randn(2, 24, 64),
        "timestep": torch.tensor([0.3, 0.9]),
        "pooled_projections": torch.randn(2, 64),
        "encoder_hidden_states": torch.randn(2, 5, 128),
        "txt_ids": torch.zeros(5, 3),
        "img_ids": image_ids(3, 4, torch.device("cpu")),
        "return_dict": False,
    }
    with torch.no_grad():
        stock = transformer(**inputs)[0]
        transformer.set_attn_processor(MatmulAttnProcessor())
        ours = transformer(**inputs)[0]
    assert torch.allclose(ours, stock, atol=1e-5)


@pytest.mark.full
def test_training_resumes_exactly(tmp_path):
    from bench.tiny_editor.train import main

    def train(folder: Path, *extra: str) -> None:
        common = ["--folder", str(folder), "--steps", "4", "--batch", "2"]
        main(["vae", *common, "--crop", "16", "--size", "64", "--pictures", "8", *extra])
        small = ["--shard", "4", "--scenes", "8", "--single", "1", "--no-prefetch"]
        main(["editor", *common, *small, "--sizes", "32:2", "48", *extra])

    train(tmp_path / "whole")
    train(tmp_path / "halves", "--until", "3")
    train(tmp_path / "halves")
    for stage in ("vae", "editor"):
        states = [
            torch.load(tmp_path / name / f"{stage}.pt", weights_only=True)
            for name in ("whole", "halves")
        ]
        assert [s["step"] for s in states] == [4, 4]
        for part in ("model", "averaged"):
            for key, value in states[0][part].items():
                assert torch.equal(value, states[1][part][key]), key
    out = tmp_path / "weights"
    main(["export", "--folder", str(tmp_path / "whole"), "--out", str(out), "--single", "1"])
    assert (out / "transformer" / "diffusion_pytorch_model.safetensors").exists()
    assert (tmp_path / "whole" / "vae.json").exists()
    common = ["--folder", str(tmp_path / "more"), "--steps", "1", "--batch", "2", "--sizes", "32"]
    small = ["--shard", "4", "--scenes", "4", "--single", "1", "--no-prefetch"]
    main(["editor", "--init", str(out), *common, *small])
    assert (tmp_path / "more" / "editor.pt").exists()
