"""Tests of timed training of the tiny editor: deadlines, interruptions, scenes made ahead."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.tiny_editor import ahead, loop
from bench.tiny_editor.ahead import FreshScenes, ScenesOnDevice
from bench.tiny_editor.loop import Loop

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "spotedit" / "tiny" / "weights"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    """Return a pipeline folder after one training step of the autoencoder and the editor."""
    from bench.tiny_editor.train import main

    folder = tmp_path_factory.mktemp("untrained")
    common = ["--folder", str(folder), "--steps", "1", "--batch", "2"]
    main(["vae", *common, "--crop", "16", "--size", "64", "--pictures", "8"])
    small = ["--shard", "4", "--scenes", "4", "--sizes", "32", "--no-prefetch"]
    main(["editor", *common, *small, "--single", "1"])
    main(["export", "--folder", str(folder), "--out", str(folder / "weights"), "--single", "1"])
    return folder / "weights"


def small_loop(folder: Path, batch=None, **settings) -> Loop:
    """Make a loop that fits a linear layer to random numbers; batches depend on the step only."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def random_batch(step: int) -> tuple[torch.Tensor]:
        return (torch.randn(4, 3, generator=torch.Generator().manual_seed(step)),)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    settings = {"warmup": 0, **settings}
    return Loop(
        "small", model, [optimizer], lambda batch, _: (model(batch[0]) - 1).square().mean(),
        batch or random_batch, folder, **settings,
    )  # fmt: skip


class Clock:
    """A clock that the test sets and that replaces `time.monotonic`."""

    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(loop.time, "monotonic", lambda: self.now)


def test_training_stops_before_the_deadline_with_a_low_rate(tmp_path, monkeypatch):
    clock, rates, saved = Clock(monkeypatch), [], []

    def batch(step: int) -> tuple[torch.Tensor]:
        clock.now += 10.0 if step == 0 else 1.0  # the first step compiles
        rates.append(trained.optimizers[0].param_groups[0]["lr"])
        return (torch.ones(1, 3),)

    trained = small_loop(tmp_path, batch, decay_share=0.5)
    monkeypatch.setattr(trained, "plot", lambda: saved.append(trained.step))
    trained.run(steps=3, deadline=1000.0 + 40.5)  # a deadline overrides `steps`
    assert 1037.0 <= clock.now <= 1040.5
    assert trained.step == len(rates)
    assert rates[:8] == [1e-2] * 8
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.15 * 1e-2
    assert saved[-1] == trained.step
    assert max(np.diff([0, *saved])) <= 10
    assert torch.load(trained.checkpoint, weights_only=True)["step"] == trained.step


def test_the_rate_of_a_resumed_run_falls_over_a_share_of_the_whole_time(tmp_path, monkeypatch):
    clock, rates = Clock(monkeypatch), []
    monkeypatch.setattr(Loop, "plot", lambda self: None)

    def batch(step: int) -> tuple[torch.Tensor]:
        clock.now += 1.0
        rates.append(trained.optimizers[0].param_groups[0]["lr"])
        return (torch.ones(1, 3),)

    trained = small_loop(tmp_path, batch, decay_share=0.5)
    trained.run(steps=0, until=30, deadline=clock.now + 60)
    assert rates[-1] == 1e-2
    trained = small_loop(tmp_path, batch, decay_share=0.5)
    trained.resume()
    trained.run(steps=0, deadline=clock.now + 30)
    assert trained.step == len(rates) >= 58
    assert rates[45] == pytest.approx(0.5 * 1e-2, rel=0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_training_with_a_checkpoint_of_whole_steps(tmp_path, number):
    whole = small_loop(tmp_path / "whole")
    whole.run(6)

    def batch(step: int) -> tuple[torch.Tensor]:
        if step == 3:
            os.kill(os.getpid(), number)
        return whole.batch(step)

    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        small_loop(tmp_path / "halves", batch).run(6)
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) is handler
    again = small_loop(tmp_path / "halves")
    again.resume()
    assert again.step == 4
    again.run(6)
    assert torch.equal(again.model.weight, whole.model.weight)


@pytest.mark.full
def test_a_killed_run_resumes_from_its_checkpoint(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_tiny_training import small_loop\n"
        "trained = small_loop(Path(sys.argv[1]), save_every=1)\n"
        "trained.plot = lambda: None\n"
        "trained.run(10**6)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "killed"), str(Path(__file__).parent)]
    child = subprocess.Popen(command, cwd=ROOT)
    log = tmp_path / "killed" / "small.json"
    try:
        limit = time.monotonic() + 120
        while not log.exists():
            assert child.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    again = small_loop(tmp_path / "killed", save_every=10**6)
    again.resume()
    assert again.step >= 1
    last = again.step + 3
    whole = small_loop(tmp_path / "whole", save_every=10**6)
    for trained in (again, whole):
        trained.run(10**6, until=last)
        assert trained.step == last
    assert torch.equal(again.model.weight, whole.model.weight)


def random_shard(index: int, count: int = 6) -> dict[str, torch.Tensor]:
    """Make scenes of 5 tokens, whose targets differ from the sources only in changed tokens."""
    generator = torch.Generator().manual_seed(index)
    source = torch.randn(count, 5, 4, generator=generator)
    changed = torch.randint(0, 65, (count, 5), generator=generator) / 64
    changed[:, 0] = 0
    other = 20 * torch.randn(count, 5, 4, generator=generator)
    return {
        "source": source.half(),
        "target": torch.where(changed[..., None] > 0, other, source).half(),
        "changed": changed.half(),
        "ids": torch.randint(0, 60, (count, 16), generator=generator),
    }


def test_scenes_made_ahead_are_those_of_the_shards(tmp_path):
    shards = [random_shard(0), random_shard(1)]
    file = tmp_path / "scenes.npz"
    ahead.write_scenes(file, shards)
    whole = {name: torch.cat([s[name] for s in shards]) for name in shards[0]}
    stored = ahead.read_scenes(file)
    assert torch.equal(stored["ids"], whole["ids"])
    assert torch.equal(stored["changed"] > 0, whole["changed"] > 0)
    assert (stored["changed"] - whole["changed"]).abs().max() <= 1 / 255
    largest = torch.cat([whole["source"], whole["target"]], dim=1).float().abs()
    largest = largest.amax(dim=1, keepdim=True)  # determines the quantisation step
    for name in ("source", "target"):
        assert stored[name].dtype == torch.float16
        error = (stored[name].float() - whole[name].float()).abs()
        assert (error <= torch.maximum(largest / 254, torch.tensor(0.03)) + 0.02).all()
    untouched = whole["changed"] == 0
    assert torch.equal(stored["target"][untouched], stored["source"][untouched])


def test_batches_go_through_all_scenes_in_a_new_order_each_round(tmp_path):
    file = tmp_path / "scenes.npz"
    ahead.write_scenes(file, [random_shard(0, 7)])
    ids = ahead.read_scenes(file)["ids"]

    def rows(scenes: ScenesOnDevice, step: int) -> list[int]:
        return [(ids == row).all(dim=1).nonzero().item() for row in scenes.batch(step)[3]]

    scenes = ScenesOnDevice(file, batch=2, device="cpu", seed=0)
    steps = [rows(scenes, step) for step in range(9)]
    rounds = [steps[i] + steps[i + 1] + steps[i + 2] for i in (0, 3, 6)]
    for rows_of_round in rounds:
        assert len(set(rows_of_round)) == 6
    assert rounds[0] != rounds[1]
    assert rounds[1] != rounds[2]
    again = ScenesOnDevice(file, batch=2, device="cpu", seed=0)
    assert rows(again, 4) == rows(scenes, 4)  # the batch depends on the step alone
    with pytest.raises(ValueError, match="holds 7"):
        ScenesOnDevice(file, batch=8, device="cpu", seed=0)


def test_fresh_scenes_replace_the_oldest(tmp_path):
    shards = [random_shard(index, 4) for index in (1, 2)]
    ready = SimpleNamespace(take=lambda: shards and ahead.pack_scenes(shards.pop(0)))
    file = tmp_path / "scenes.npz"
    ahead.write_scenes(file, [random_shard(0, 7)])
    scenes = ScenesOnDevice(file, batch=2, device="cpu", seed=0, fresh=ready)
    old = scenes.fields["ids"].clone()
    scenes.batch(0)
    assert torch.equal(scenes.fields["ids"], torch.cat([random_shard(1, 4)["ids"], old[4:]]))
    scenes.batch(1)
    new = [random_shard(1, 4)["ids"], random_shard(2, 4)["ids"][:3]]
    assert torch.equal(scenes.fields["ids"], torch.cat(new))


@pytest.mark.full
def test_a_failing_process_ends_fresh_scenes_only(capsys):
    def first_shard(fresh: FreshScenes) -> object:
        limit = time.monotonic() + 120
        while time.monotonic() < limit and fresh.pending:
            if shard := fresh.take():
                return shard
            time.sleep(0.05)
        return None

    fresh = FreshScenes(partial(divmod, 7), workers=1)  # `divmod` instead of making a shard
    assert first_shard(fresh) == (0, 7)
    fresh.close()
    fresh = FreshScenes(partial(divmod, None), workers=1)
    assert first_shard(fresh) is None
    assert "no more fresh scenes" in capsys.readouterr().err
    fresh.close()


@pytest.mark.full
def test_a_timed_run_leaves_weights_and_figures(untrained, tmp_path):
    from bench.tiny_editor.train import main
    from spotedit import tiny

    data, run, archive = tmp_path / "data", tmp_path / "run", tmp_path / "packed.tgz"
    init = ["--init", str(untrained)]
    small = ["--scenes", "8", "--shard", "4", "--no-prefetch", "--size", "32"]
    main(["data", *init, *small, "--folder", str(data)])
    timed = ["--seconds", "5", "--set-aside", "4", "--batch", "2", "--heldout", "64"]
    files = ["--data", str(data / "scenes-32.npz"), "--folder", str(run), "--pack", str(archive)]
    started = time.monotonic()
    main(["editor", *init, *files, *timed, "--single", "1"])
    assert time.monotonic() - started < 60  # the default 1500 steps and 64 scenes take minutes
    result = run / "result"
    rows = json.loads((result / "rows-easy.json").read_text())["rows"]
    assert 1 <= len(rows) < 64
    assert "Held-out scenes" in (result / "summary.md").read_text()
    log = json.loads((result / "editor.json").read_text())
    assert log["loss"][-1][0] == log["step"] >= 1
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    unpacked = tmp_path / "unpacked" / "tiny_editor"
    assert archive.stat().st_size < 16 * 2**20
    assert (unpacked / "summary.md").exists()
    trained, before = (
        tiny.TinyKontextPipeline.from_pretrained(folder, local_files_only=True)
        .transformer.transformer_blocks[0].attn.to_q.weight
        for folder in (unpacked / "weights", untrained)
    )  # fmt: skip
    assert not torch.equal(trained.float(), before.float())


class Waits(TorchDispatchMode):
    """Collect operations that make the host wait for a GPU: reading a scalar, or a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors}
        is_copy = isinstance(out, torch.Tensor) and devices and out.device.type not in devices
        if is_copy or len(devices) > 1 or "local_scalar" in str(func):
            self.operations.append(str(func))
        return out


def test_the_loss_does_not_wait_for_the_gpu():
    """Fake tensors take the place of a GPU's. Only the first step copies the positions there."""
    from bench.tiny_editor.editor import Editor, flow_loss, image_ids

    image_ids.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        editor = Editor(60, single=1)
        tokens, ids = torch.randn(4, 36, 64), torch.randint(0, 40, (4, 16))
        batch = (tokens, tokens, torch.rand(4, 36), ids)
        for copies in (1, 0):
            with Waits() as waits:
                flow_loss(editor, batch, None)
            assert len(waits.operations) == copies, waits.operations
    image_ids.cache_clear()  # it holds fake tensors
