"""Train the tiny Qwen editor: ``python -m bench.tiny_qwen.train {vae,editor,export} ...``."""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import nn

from spotedit import tiny

from ..tiny_editor.architecture import build_scheduler
from ..tiny_editor.editor import build_optimizers, flow_loss
from ..tiny_editor.export import trained_state
from ..tiny_editor.loop import Batch, Loop
from ..tiny_editor.pool import Pool
from ..tiny_editor.train import train_vae
from ..tiny_editor.vae import calm_residuals, read_components
from .architecture import (
    KEPT,
    LATENT_CHANNELS,
    build_transformer,
    build_vae,
    convert,
    install_components,
)
from .editor import Editor, StillVae, forget_words
from .photos import PhotoScenes
from .pipeline import WEIGHTS, prompt_ids

FACTOR = 4  # pixels along a latent's side
# One scene of this many loses its words; those with an empty prompt in the pool are among them.
_WORDLESS_EVERY = 16


def still_vae(filters: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    """Build the autoencoder with its final encoder and an untrained decoder."""
    vae = build_vae()
    calm_residuals(vae)
    install_components(vae, filters, bias)
    return StillVae(vae)


def train_decoder(args: argparse.Namespace) -> None:
    """Train the decoder as `bench.tiny_editor` does, with the packaged editor's encoder."""
    args.folder.mkdir(parents=True, exist_ok=True)
    components = read_components(tiny.load().vae, LATENT_CHANNELS, FACTOR)
    torch.save(components, args.folder / "components.pt")
    train_vae(args, still_vae, PhotoScenes(tuple(args.photos), args.folder))


def train_editor(args: argparse.Namespace) -> None:
    """Train the converted transformer on cached latents; one scene in 16 has no words."""
    torch.manual_seed(args.seed)
    start = tiny.load()
    pool = Pool(
        args.folder / f"pool-{args.size}", PhotoScenes(tuple(args.photos), args.folder),
        start.tokenizer_2, read_components(start.vae, LATENT_CHANNELS, FACTOR),
        scenes=args.scenes, batch=args.batch, size=args.size, shard=args.shard,
        prefetch=args.prefetch,
    )  # fmt: skip
    ids = torch.cat([pool.batch(step)[3] for step in range(16)])
    with torch.no_grad():
        prompts, pooled = start.text_encoder_2(ids)[0], start.text_encoder(ids).pooler_output
    editor = Editor(convert(start.transformer, prompts, pooled), start.text_encoder_2)
    if args.compile:
        editor.transformer.compile_repeated_blocks()
    empty = prompt_ids(start.tokenizer_2, [""])[0]

    def batch(step: int) -> Batch:
        scenes, num_seen = pool.batch(step), (step + 1) * args.batch
        return forget_words(scenes, empty) if num_seen % _WORDLESS_EVERY == 0 else scenes

    loop = Loop(
        "editor", editor, build_optimizers(editor, args.lr, args.matrix_lr),
        partial(flow_loss, editor, early=args.early), batch, args.folder,
        seed=args.seed, decay=args.decay, save_every=args.save_every,
    )  # fmt: skip
    loop.resume()
    loop.run(args.steps, args.until)
    pool.close()


def export(args: argparse.Namespace) -> None:
    """Write the checkpoints' autoencoder and transformer in float16, and the scheduler."""
    still = StillVae(build_vae())
    still.load_state_dict(trained_state(args.folder / "vae.pt"))
    state = trained_state(args.folder / "editor.pt", args.last)
    prefix = "transformer."
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    transformer = build_transformer(tiny.load().transformer, 1 + len(KEPT))
    transformer.load_state_dict(state)
    build_scheduler().save_pretrained(args.out / "scheduler")
    still.vae.half().save_pretrained(args.out / "vae")
    transformer.half().save_pretrained(args.out / "transformer")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--photos", type=Path, nargs="+", default=[], help="folders with photographs"
    )
    common.add_argument(
        "--folder", type=Path, required=True, help="folder for caches, checkpoints and plots"
    )
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--batch", type=int, default=16)
    common.add_argument("--steps", type=int, default=3000)
    common.add_argument("--until", type=int, help="stop early, with the schedule of --steps")
    common.add_argument("--decay", type=int, default=2000, help="steps of falling learning rate")
    common.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    stages = parser.add_subparsers(required=True)
    vae = stages.add_parser("vae", parents=[common], help="train the autoencoder's decoder")
    vae.add_argument("--crop", type=int, default=64, help="side of the crops in pixels")
    vae.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    vae.add_argument("--lr", type=float, default=2e-3)
    vae.add_argument("--pictures", type=int, default=6000)
    # options of `bench.tiny_editor` that `train_vae` reads and this command does not offer
    vae.set_defaults(device="cpu", init=None, seconds=None, decay_share=0.0, run=train_decoder)
    editor = stages.add_parser("editor", parents=[common], help="train the transformer")
    editor.add_argument("--lr", type=float, default=1e-3, help="peak rate of AdamW")
    editor.add_argument("--matrix-lr", type=float, default=2e-3, help="peak rate of Muon")
    editor.add_argument("--scenes", type=int, default=81920)
    editor.add_argument("--shard", type=int, default=1024, help="scenes in a shard")
    editor.add_argument(
        "--prefetch", action=argparse.BooleanOptionalAction, default=True,
        help="make the next shard in the background",
    )  # fmt: skip
    editor.add_argument("--size", type=int, default=128, help="side of the scenes in pixels")
    editor.add_argument("--early", type=float, default=0.5, help="share of times above 0.75")
    editor.add_argument("--compile", action="store_true", help="torch.compile the blocks")
    editor.set_defaults(run=train_editor)
    out = stages.add_parser("export", parents=[common], help="write the pipeline's folder")
    out.add_argument("--out", type=Path, default=WEIGHTS)
    out.add_argument(
        "--last", action="store_true", help="take the editor's latest weights, not their average"
    )
    out.set_defaults(run=export)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
