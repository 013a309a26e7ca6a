"""The dual-stream transformer behind the tiny editor's frozen T5, as training sees it."""

import math
from functools import partial

import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from torch import nn
from transformers import T5EncoderModel

from ..tiny_editor.loop import Batch

PAD = 0


class Editor(nn.Module):
    """Prompt ids, noisy target and source in; velocity of the target's tokens out."""

    def __init__(self, transformer: nn.Module, text_encoder: T5EncoderModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder.requires_grad_(False)
        self.transformer.set_attn_processor(MatmulAttnProcessor())

    def forward(
        self, x_t: torch.Tensor, source: torch.Tensor, t: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """x_t, source [B, N, C]; t [B] in 0..1; ids [B, L]. Returns [B, N, C]."""
        side = math.isqrt(x_t.shape[1])
        return self.transformer(
            hidden_states=torch.cat([x_t, source], dim=1),
            timestep=t,
            encoder_hidden_states=self.text_encoder(ids)[0],
            encoder_hidden_states_mask=ids != PAD,
            img_shapes=[[(1, side, side)] * 2] * len(x_t),
            return_dict=False,
        )[0][:, : x_t.shape[1]]


class MatmulAttnProcessor:
    """Joint attention by plain matrix products and real rotations: on a CPU several times as fast
    to train as the stock processor, with its weights and result."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor,
        attention_mask: None = None,
        *,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden_states [B, N, width]; encoder_hidden_states [B, P, width], its mask [B, P]."""
        heads = (attn.heads, -1)
        image, text = hidden_states, encoder_hidden_states
        freqs = torch.cat([image_rotary_emb[1], image_rotary_emb[0]])
        cos, sin = freqs.real[:, None], freqs.imag[:, None]
        value = torch.cat([attn.add_v_proj(text), attn.to_v(image)], dim=1).unflatten(-1, heads)
        query, key = (
            torch.cat([text_norm(of_text(text).unflatten(-1, heads)),
                       norm(of_image(image).unflatten(-1, heads))], dim=1)
            for text_norm, of_text, norm, of_image in (
                (attn.norm_added_q, attn.add_q_proj, attn.norm_q, attn.to_q),
                (attn.norm_added_k, attn.add_k_proj, attn.norm_k, attn.to_k),
            )
        )  # fmt: skip
        query, key = (_rotate(x, cos, sin).to(value.dtype) for x in (query, key))
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        scores = (query * key.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # [B, H, P + N, P + N]
        open_ = encoder_hidden_states_mask.logical_not().to(scores.dtype) * -1e4
        scores = scores + nn.functional.pad(open_, (0, image.shape[1]))[:, None, None]
        mixed = (torch.softmax(scores, dim=-1) @ value).transpose(1, 2).flatten(2)
        text, image = mixed.split([text.shape[1], image.shape[1]], dim=1)
        return attn.to_out[1](attn.to_out[0](image)), attn.to_add_out(text)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, T, H, D] by the angles [T, 1, D / 2] of neighbouring pairs."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def forget_words(batch: Batch, empty: torch.Tensor) -> Batch:
    """The batch with its last scene replaced by its last but one, told nothing: `empty` ids [L].

    The same target without its words is what teaches the unconditional velocity of guidance.
    """
    order = [*range(len(batch[0]) - 1), len(batch[0]) - 2]
    target, source, changed, ids = (field[order] for field in batch)
    ids[-1] = empty
    return target, source, changed, ids


class StillVae(nn.Module):
    """An autoencoder whose decoder takes pictures without a time axis, and is fast to train so.

    A causal convolution over one frame sees zeros before it: only its last tap in time counts.
    """

    def __init__(self, vae: AutoencoderKLQwenImage) -> None:
        super().__init__()
        self.vae = vae
        for module in vae.decoder.modules():
            if isinstance(module, QwenImageCausalConv3d):
                module.forward = partial(_still_convolution, module)  # type: ignore[method-assign]

    def decoder(self, latents: torch.Tensor) -> torch.Tensor:
        """[N, C, h, w] -> [N, 3, 4h, 4w]."""
        return self.vae.decoder(latents[:, :, None])[:, :, 0]


def _still_convolution(conv: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    weight = conv.weight[:, :, -1]
    same = weight.shape[-1] // 2
    return nn.functional.conv2d(x[:, :, 0], weight, conv.bias, padding=same)[:, :, None]
