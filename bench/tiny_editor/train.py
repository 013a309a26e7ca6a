"""Train the tiny editor: ``python -m bench.tiny_editor.train {vae,data,editor,export} ...``."""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from spotedit.tiny.pipeline import TinyKontextPipeline

from . import STARTED
from .ahead import FreshScenes, ScenesOnDevice, make_packed, write_scenes
from .architecture import LATENT_CHANNELS, build_tokenizer, build_vae
from .attention import MatmulAttnProcessor
from .editor import Editor, build_optimizers, flow_loss
from .examples import Draw, world_scenes
from .export import export
from .finish import finish
from .loop import Batch, Loop
from .pool import Pool, make_shard
from .vae import (
    calm_residuals,
    components,
    encode_linear,
    install_components,
    picture_bank,
    read_components,
    reconstruction_loss,
    steady_norms,
)


def flux_vae(filters: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    """Build the autoencoder with its final encoder and an untrained decoder."""
    vae = build_vae()
    calm_residuals(vae)
    steady_norms(vae)
    install_components(vae, filters, bias)
    return vae.to(memory_format=torch.channels_last)


def train_vae(
    args: argparse.Namespace,
    build: Callable[[torch.Tensor, torch.Tensor], nn.Module] = flux_vae,
    draw: Draw = world_scenes,
) -> None:
    """Fit the encoder in closed form, then train the decoder on square crops of drawn pictures.

    Args:
        args: those of the stage `vae`.
        build: makes a module from the encoder's filters and bias. Its `decoder` maps latents
            [N, C, h, w] to images.
        draw: draws the pictures.
    """
    torch.manual_seed(args.seed)
    args.folder.mkdir(parents=True, exist_ok=True)
    bank_file = args.folder / "pictures.npy"
    if not bank_file.exists():
        np.save(bank_file, picture_bank(draw, args.pictures, args.size))
    bank = torch.from_numpy(np.load(bank_file))
    file = args.folder / "components.pt"
    start = args.init and AutoencoderKL.from_pretrained(args.init / "vae", local_files_only=True)
    if start:
        torch.save(read_components(start, LATENT_CHANNELS), file)
    elif not file.exists():
        torch.save(components(bank[:1000].numpy() / 127.5 - 1, LATENT_CHANNELS), file)
    filters, bias = torch.load(file, weights_only=True)
    factor = filters.shape[-1]
    vae = build(filters, bias).to(args.device)
    if start:
        vae.load_state_dict(start.state_dict())
    filters, bias = filters.to(args.device), bias.to(args.device)

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([args.seed, step])
        rows = torch.from_numpy(rng.integers(len(bank), size=args.batch))
        top, left = (
            factor * rng.integers(0, (args.size - args.crop) // factor + 1, size=2)
        ).tolist()
        crops = bank[rows, top : top + args.crop, left : left + args.crop].to(args.device)
        images = crops.permute(0, 3, 1, 2).float() / 127.5 - 1
        flips = [dim for dim in (-2, -1) if rng.random() < 0.5]
        return (images.flip(flips),)

    def loss(batch: Batch, generator: torch.Generator) -> torch.Tensor:
        (images,) = batch
        return reconstruction_loss(vae, images, encode_linear(images, filters, bias), generator)

    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.01)
    loop = Loop("vae", vae, [optimizer], loss, batch, args.folder, seed=args.seed,
                decay=args.decay, decay_share=args.decay_share,
                save_every=args.save_every)  # fmt: skip
    loop.resume()
    loop.run(args.steps, args.until, deadline(args, 5.0))


def deadline(args: argparse.Namespace, set_aside: float) -> float | None:
    """Return the time at which training must end, on `time.monotonic`'s clock.

    This is `--set-aside` seconds before the end of `--seconds`; None without `--seconds`.
    `set_aside` is the stage's default for `--set-aside`.
    """
    if args.seconds is None:
        return None
    seconds_left = set_aside if args.set_aside is None else args.set_aside
    return args.started + args.seconds - seconds_left


def read_start(
    args: argparse.Namespace,
) -> tuple[TinyKontextPipeline | None, tuple[torch.Tensor, torch.Tensor]]:
    """Return the pipeline of `--init`, or None, and the encoder's filters and bias."""
    if not args.init:
        return None, torch.load(args.folder / "components.pt", weights_only=True)
    start = TinyKontextPipeline.from_pretrained(args.init, local_files_only=True)
    return start, read_components(start.vae, LATENT_CHANNELS)


def make_data(args: argparse.Namespace) -> None:
    """Make the scenes that the stage `editor` would make, and pack them for its `--data`."""
    file = args.folder / f"scenes-{args.size}.npz"
    pool = Pool(
        args.folder / f"pool-{args.size}", world_scenes, build_tokenizer(), read_start(args)[1],
        scenes=args.scenes, batch=args.shard, size=args.size, shard=args.shard,
        prefetch=args.prefetch,
    )  # fmt: skip
    count = args.scenes // args.shard
    write_scenes(file, (pool.load(i) for i in tqdm(range(count), desc="data", unit="shard")))
    pool.close()
    size = file.stat().st_size
    each = size / args.scenes
    print(f"{file}: {args.scenes} scenes, {size / 2**20:.1f} MiB, {each:.0f} bytes per scene")


def train_editor(args: argparse.Namespace) -> None:
    """Train the transformer and the text encoders on cached latents, or on those of `--data`."""
    torch.manual_seed(args.seed)
    on_cpu = torch.device(args.device).type == "cpu"
    if not on_cpu:
        torch.set_float32_matmul_precision("high")
    tokenizer = build_tokenizer()
    editor = Editor(len(tokenizer), dual=args.dual, single=args.single)
    start, components = read_start(args)
    if start:
        editor.copy_from(start)
    if on_cpu:
        editor.transformer.set_attn_processor(MatmulAttnProcessor())
    editor.to(args.device)
    if args.compile and on_cpu:
        editor.transformer.compile(dynamic=False)
    elif args.compile:  # much faster than to compile the whole transformer
        editor.transformer.compile_repeated_blocks(dynamic=False)
    make_batch, close = batches(args, tokenizer, components)
    loop = Loop(
        "editor", editor, build_optimizers(editor, args.lr, args.matrix_lr),
        partial(flow_loss, editor, early=args.early), make_batch, args.folder,
        average=args.average, seed=args.seed, decay=args.decay, decay_share=args.decay_share,
        save_every=args.save_every,
    )  # fmt: skip
    loop.resume()
    try:
        loop.run(args.steps, args.until, deadline(args, min(45.0, (args.seconds or 0) / 4)))
    finally:
        close()
    torch.set_float32_matmul_precision("highest")  # for the evaluation
    if args.seconds or args.out or args.pack:
        finish(args)


def batches(
    args: argparse.Namespace,
    tokenizer: PreTrainedTokenizerFast,
    components: tuple[torch.Tensor, torch.Tensor],
) -> tuple[Callable[[int], Batch], Callable[[], None]]:
    """Return a function that makes the batch of a step, and one that ends its processes."""
    if args.data:
        fresh = None
        if args.workers:
            size = args.sizes[-1][0]
            make = partial(
                make_shard, world_scenes, tokenizer, components, size=size, count=args.shard
            )
            fresh = FreshScenes(partial(make_packed, make), args.workers)
        scenes = ScenesOnDevice(
            args.data, batch=args.batch, device=args.device, seed=args.seed, fresh=fresh
        )
        return scenes.batch, scenes.close

    def pool(size: int) -> Pool:
        return Pool(
            args.folder / f"pool-{size}", world_scenes, tokenizer, components,
            scenes=args.scenes, batch=args.batch, size=size, shard=args.shard,
            device=args.device, prefetch=args.prefetch,
        )  # fmt: skip

    pools = [pool(size) for size, _ in args.sizes]

    def batch(step: int) -> Batch:
        start = 0  # the step at which the current size begins
        for pool_of_size, (_, end) in zip(pools[:-1], args.sizes, strict=False):
            if step < end:
                return pool_of_size.batch(step - start)
            start = end
        return pools[-1].batch(step - start)

    def close() -> None:
        for pool_of_size in pools:
            pool_of_size.close()

    return batch, close


def size_until(text: str) -> tuple[int, float]:
    """Parse ``SIDE:STEP``, or ``SIDE`` alone for the last size."""
    side, _, step = text.partition(":")
    return int(side), int(step) if step else math.inf


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    common = _common_options()
    scenes = argparse.ArgumentParser(add_help=False)
    scenes.add_argument("--shard", type=int, default=1024, help="scenes in a shard")
    scenes.add_argument(
        "--prefetch", action=argparse.BooleanOptionalAction, default=True,
        help="make the next shard in the background",
    )  # fmt: skip
    stages = parser.add_subparsers(required=True)
    vae = stages.add_parser("vae", parents=[common], help="train the autoencoder's decoder")
    vae.add_argument("--batch", type=int, default=16)
    vae.add_argument("--crop", type=int, default=96, help="side of the crops in pixels")
    vae.add_argument("--size", type=int, default=256, help="side of the pictures in pixels")
    vae.add_argument("--lr", type=float, default=2e-3)
    vae.add_argument("--pictures", type=int, default=3000)
    vae.set_defaults(run=train_vae)
    data = stages.add_parser(
        "data", parents=[common, scenes], help="make scenes ahead: FOLDER/scenes-SIZE.npz"
    )
    data.add_argument("--scenes", type=int, default=5120, help="number of scenes of about 6 kB")
    data.add_argument("--size", type=int, default=256, help="side of the scenes in pixels")
    data.set_defaults(run=make_data)
    editor = stages.add_parser(
        "editor", parents=[common, scenes], help="train the transformer and the text encoders"
    )
    _add_editor_options(editor)
    editor.set_defaults(run=train_editor)
    out = stages.add_parser("export", parents=[common], help="write a pipeline folder")
    out.add_argument("--out", type=Path, required=True, help="such as spotedit/tiny/weights")
    out.add_argument("--dual", type=int, default=1, help="number of dual-stream blocks")
    out.add_argument("--single", type=int, default=7, help="number of single-stream blocks")
    out.add_argument(
        "--last", action="store_true", help="take the editor's latest weights, not their average"
    )
    out.set_defaults(
        run=lambda args: export(args.folder, args.out, args.dual, args.single, args.last, args.init)
    )
    return parser


def _common_options() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--folder", type=Path, required=True, help="folder for caches, checkpoints and plots"
    )
    common.add_argument("--device", default="cpu")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--init", type=Path, help="pipeline folder with weights to start from")
    common.add_argument(
        "--steps", type=int, default=1500, help="planned number of steps; ignored with --seconds"
    )
    common.add_argument("--until", type=int, help="stop early, with the schedule of --steps")
    common.add_argument("--decay", type=int, default=600, help="steps of falling learning rate")
    common.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    common.add_argument(
        "--seconds", type=float, metavar="N",
        help="finish and write everything within N seconds of the start; the rate then follows the "
        "clock instead of --steps and --decay, and checkpoints are at most 30 s apart",
    )  # fmt: skip
    common.add_argument(
        "--decay-share", type=float, default=0.5,
        help="with --seconds: share of the training time, at its end, in which the rate falls; "
        "earlier runs in --folder are part of that time",
    )  # fmt: skip
    common.add_argument(
        "--set-aside", type=float,
        help="with --seconds: seconds for the work after the last step (vae: 5; editor: a quarter "
        "of N, but at most 45, for weights and held-out figures)",
    )  # fmt: skip
    return common


def _add_editor_options(editor: argparse.ArgumentParser) -> None:
    editor.add_argument("--batch", type=int, default=16)
    editor.add_argument("--lr", type=float, default=1e-3, help="peak rate of AdamW")
    editor.add_argument("--matrix-lr", type=float, default=2e-3, help="peak rate of Muon")
    editor.add_argument("--scenes", type=int, default=65536, help="number of scenes of each size")
    editor.add_argument(
        "--sizes", type=size_until, nargs="+", default=[(128, 3000), (192, 6000), (256, math.inf)],
        metavar="SIDE:STEP", help="sides of the scenes in pixels, each with the step at which the "
        "next one begins; with --data, only the last side counts, for --workers",
    )  # fmt: skip
    editor.add_argument("--dual", type=int, default=1, help="number of dual-stream blocks")
    editor.add_argument("--single", type=int, default=7, help="number of single-stream blocks")
    editor.add_argument(
        "--average", type=float, default=0.998, help="decay per step of the weights' average"
    )
    editor.add_argument("--early", type=float, default=0.5, help="share of times above 0.75")
    editor.add_argument("--compile", action="store_true", help="torch.compile the transformer")
    editor.add_argument("--data", type=Path, help="train on the scenes in this file of `data`")
    editor.add_argument(
        "--workers", type=int, default=0,
        help="with --data: number of processes that replace its scenes by new ones",
    )  # fmt: skip
    editor.add_argument(
        "--out", type=Path,
        help="folder for the weights, held-out figures and loss at the end (default with --seconds "
        "or --pack: FOLDER/result)",
    )  # fmt: skip
    editor.add_argument("--pack", type=Path, help="also pack that folder into this .tgz file")
    editor.add_argument("--heldout", type=int, default=64, help="largest number of held-out scenes")


def main(argv: list[str] | None = None, started: float | None = None) -> None:
    """Run one stage.

    `--seconds` counts from `started`, on `time.monotonic`'s clock; None stands for now.
    """
    args = _parser().parse_args(argv)
    args.started = time.monotonic() if started is None else started
    args.run(args)


if __name__ == "__main__":
    main(started=STARTED)
