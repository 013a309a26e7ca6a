"""Train the tiny editor: ``python -m bench.tiny_editor.train {vae,editor,export} ...``."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from spotedit.tiny.pipeline import TinyKontextPipeline

from .architecture import LATENT_CHANNELS, build_tokenizer, build_vae
from .editor import Editor, build_optimizers, flow_loss
from .export import export
from .loop import Batch, Loop
from .photos import load_photos
from .pool import Pool
from .vae import (
    FACTOR,
    calm_residuals,
    components,
    encode_linear,
    install_components,
    picture_bank,
    read_components,
    reconstruction_loss,
)


def flux_vae(filters: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    """The autoencoder before its decoder's training."""
    vae = build_vae()
    calm_residuals(vae)
    install_components(vae, filters, bias)
    return vae.to(memory_format=torch.channels_last)


def train_vae(
    args: argparse.Namespace,
    build: Callable[[torch.Tensor, torch.Tensor], nn.Module] = flux_vae,
) -> None:
    """Fit the encoder in closed form, then train the decoder on square crops.

    `build` makes a module from filters and bias; its `decoder` maps latents [N, C, h, w] to images.
    """
    torch.manual_seed(args.seed)
    photos = load_photos(args.photos, args.folder)
    bank_file = args.folder / "pictures.npy"
    if not bank_file.exists():
        np.save(bank_file, picture_bank(photos, args.pictures, args.seed, 128))
    bank = torch.from_numpy(np.load(bank_file))
    file = args.folder / "components.pt"
    if not file.exists():
        torch.save(components(bank[:2000].numpy() / 127.5 - 1, LATENT_CHANNELS), file)
    filters, bias = torch.load(file, weights_only=True)
    vae = build(filters, bias).to(args.device)
    filters, bias = filters.to(args.device), bias.to(args.device)

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([args.seed, step])
        rows = torch.from_numpy(rng.integers(len(bank), size=args.batch))
        top, left = (FACTOR * rng.integers(0, (128 - args.crop) // FACTOR + 1, size=2)).tolist()
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
                decay=args.decay, save_every=args.save_every)  # fmt: skip
    loop.resume()
    loop.run(args.steps, args.until)


def train_editor(args: argparse.Namespace) -> None:
    """Train transformer and text encoders on cached latents: small pictures first, then native."""
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    editor = Editor(len(tokenizer), dual=args.dual, single=args.single)
    if args.init:
        start = TinyKontextPipeline.from_pretrained(args.init, local_files_only=True)
        for name, part in editor.named_children():
            part.load_state_dict(getattr(start, name).state_dict())
        components = read_components(start.vae, LATENT_CHANNELS)
    else:
        components = torch.load(args.folder / "components.pt", weights_only=True)
    editor.to(args.device)
    if args.compile:
        editor.transformer.compile()

    def pool(size: int) -> Pool:
        return Pool(
            args.folder / f"pool-{size}", args.photos, tokenizer, components,
            scenes=args.scenes, batch=args.batch, size=size, shard=args.shard,
            device=args.device, prefetch=args.prefetch,
        )  # fmt: skip

    coarse, native = pool(args.coarse_size), pool(args.size)

    def batch(step: int) -> Batch:
        small = step < args.coarse_steps
        return coarse.batch(step) if small else native.batch(step - args.coarse_steps)

    loop = Loop(
        "editor", editor, build_optimizers(editor, args.lr, args.matrix_lr),
        partial(flow_loss, editor, early=args.early, temper=args.temper), batch, args.folder,
        seed=args.seed, decay=args.decay, save_every=args.save_every,
    )  # fmt: skip
    loop.resume()
    loop.run(args.steps, args.until)
    coarse.close()
    native.close()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--photos", type=Path, nargs="+", default=[], help="folders of pictures")
    common.add_argument("--folder", type=Path, required=True, help="caches, checkpoints, plots")
    common.add_argument("--device", default="cpu")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--steps", type=int, default=1500)
    common.add_argument("--until", type=int, help="stop early, keeping the schedule of --steps")
    common.add_argument("--decay", type=int, default=600, help="steps of falling learning rate")
    common.add_argument("--save-every", type=int, default=100)
    stages = parser.add_subparsers(required=True)
    vae = stages.add_parser("vae", parents=[common])
    vae.add_argument("--batch", type=int, default=16)
    vae.add_argument("--crop", type=int, default=64)
    vae.add_argument("--lr", type=float, default=2e-3)
    vae.add_argument("--pictures", type=int, default=6000)
    vae.set_defaults(run=train_vae)
    editor = stages.add_parser("editor", parents=[common])
    editor.add_argument("--batch", type=int, default=16)
    editor.add_argument("--lr", type=float, default=1e-3, help="AdamW's peak")
    editor.add_argument("--matrix-lr", type=float, default=2e-3, help="Muon's peak")
    editor.add_argument("--scenes", type=int, default=24576, help="per picture size")
    editor.add_argument("--shard", type=int, default=1024)
    editor.add_argument("--size", type=int, default=128)
    editor.add_argument("--coarse-size", type=int, default=96)
    editor.add_argument("--coarse-steps", type=int, default=2000)
    editor.add_argument("--dual", type=int, default=1, help="dual-stream blocks")
    editor.add_argument("--single", type=int, default=7, help="single-stream blocks")
    editor.add_argument("--early", type=float, default=0.5, help="share of times above 0.75")
    editor.add_argument("--temper", type=float, default=0.0, help="share of the mean answer, 0..1")
    editor.add_argument("--compile", action="store_true", help="torch.compile the transformer")
    editor.add_argument("--init", type=Path, help="start from a pipeline folder's weights")
    editor.add_argument("--prefetch", action=argparse.BooleanOptionalAction, default=True)
    editor.set_defaults(run=train_editor)
    out = stages.add_parser("export", parents=[common])
    out.add_argument("--out", type=Path, required=True, help="e.g. spotedit/tiny/weights")
    out.add_argument("--dual", type=int, default=1)
    out.add_argument("--single", type=int, default=7)
    out.add_argument("--last", action="store_true", help="the editor's latest weights, unaveraged")
    out.add_argument("--init", type=Path, help="the pipeline folder that the editor started from")
    out.set_defaults(
        run=lambda args: export(args.folder, args.out, args.dual, args.single, args.last, args.init)
    )
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
