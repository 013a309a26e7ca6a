"""Stage 2: train the FLUX transformer and its two text encoders together by flow matching."""

import math
from functools import lru_cache

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from spotedit.tiny.pipeline import TinyKontextPipeline

from .architecture import build_text_encoders, build_transformer
from .loop import Batch

_INITIAL_GATE = 0.3
_MEAN_LOGIT = 0.5  # mean logit of the times; exp(0.5) is the scheduler's shift at 256 tokens
_EARLY = 0.75  # times above this are early: the prompt decides, not the noisy picture
_EDIT_WEIGHT = 8.0  # weight of tokens that the edit touches; other tokens have weight 1


class Editor(nn.Module):
    """The transformer and its text encoders, from prompt ids to the velocity of noise tokens."""

    def __init__(self, vocabulary: int, **transformer: int) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = build_text_encoders(vocabulary)
        self.transformer = build_transformer(**transformer)
        start_calm(self.transformer)

    def copy_from(self, pipe: TinyKontextPipeline) -> None:
        """Copy the weights of a pipeline."""
        for name, part in self.named_children():
            part.load_state_dict(getattr(pipe, name).state_dict())

    def forward(
        self, x_t: torch.Tensor, source: torch.Tensor, t: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """Predict the velocity [B, N, C].

        Args:
            x_t, source: noise and condition tokens [B, N, C] of square pictures.
            t: times [B] in 0..1.
            ids: token ids of the prompts [B, L].
        """
        side = math.isqrt(x_t.shape[1])
        prompt = self.text_encoder_2(ids)[0]
        return self.transformer(
            hidden_states=torch.cat([x_t, source], dim=1),
            timestep=t,
            pooled_projections=self.text_encoder(ids).pooler_output,
            encoder_hidden_states=prompt,
            txt_ids=torch.zeros(ids.shape[1], 3, device=ids.device),
            img_ids=image_ids(side, side, ids.device),
            return_dict=False,
        )[0][:, : x_t.shape[1]]


@lru_cache(maxsize=4)  # without it, a copy to the GPU would wait for the GPU in every step
def image_ids(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Return the positions [2 * rows * columns, 3] of the noise and then the condition tokens.

    The first coordinate is 0 for noise tokens and 1 for condition tokens.
    """
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    grid = torch.stack([torch.zeros_like(y), y, x], dim=-1).reshape(-1, 3)
    return torch.cat([grid, grid + torch.tensor([1, 0, 0])]).float().to(device)


@torch.no_grad()
def start_calm(transformer: FluxTransformer2DModel) -> None:
    """Start the training without modulation, with small constant gates and a zero velocity."""
    width = transformer.inner_dim
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            _constant_gates(norm.linear, width, (2, 5))
    for block in transformer.single_transformer_blocks:
        _constant_gates(block.norm.linear, width, (2,))
    for linear in (transformer.norm_out.linear, transformer.proj_out):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


def _constant_gates(linear: nn.Linear, width: int, gates: tuple[int, ...]) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    for gate in gates:
        linear.bias[gate * width : (gate + 1) * width] = _INITIAL_GATE


def build_optimizers(editor: Editor, lr: float, matrix_lr: float) -> list[Optimizer]:
    """Build Muon for the blocks' matrices and AdamW for all other parameters."""
    blocks = ("transformer.transformer_blocks", "transformer.single_transformer_blocks")
    matrices, others = [], []
    for name, parameter in editor.named_parameters():
        in_block = name.startswith(blocks) and parameter.ndim == 2
        (matrices if in_block else others).append(parameter)
    return [
        Muon(matrices, lr=matrix_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=others[0].is_cuda or None),
    ]


def sample_times(
    count: int, generator: torch.Generator, device: torch.device, early: float
) -> torch.Tensor:
    """Sample times [count] in 0..1 from evenly spread quantiles.

    A share `early` of them is uniform above `_EARLY`, the others are logit-normal.
    """
    u = torch.rand(count, generator=generator, device=device)
    u = (torch.randperm(count, generator=generator, device=device) + u) / count
    normal = torch.sigmoid(torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4)) + _MEAN_LOGIT)
    is_early = torch.rand(count, generator=generator, device=device) < early
    return torch.where(is_early, _EARLY + (1 - _EARLY) * u, normal)


def flow_loss(
    editor: nn.Module,
    batch: Batch,
    generator: torch.Generator,
    *,
    early: float = 0.5,
) -> torch.Tensor:
    """Return the weighted mean squared error of the velocity x_1 - x_0.

    Tokens that the edit touches have a larger weight.
    """
    target, source, changed, ids = batch
    noise = torch.randn(target.shape, generator=generator, device=target.device)
    t = sample_times(len(target), generator, target.device, early)
    velocity = _velocity(editor, torch.lerp(target, noise, t[:, None, None]), source, t, ids)
    weight = 1 + (_EDIT_WEIGHT - 1) * (changed > 0)
    error = (velocity - (noise - target)).square().mean(dim=-1)
    return (weight * error).mean() / weight.mean()


def _velocity(editor: nn.Module, x_t: torch.Tensor, *arguments: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x_t.device.type, torch.bfloat16):
        return editor(x_t, *arguments).float()
