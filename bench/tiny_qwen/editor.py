"""Define the modules that are trained: the transformer with its frozen T5, and the autoencoder."""

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
    """The transformer and its frozen text encoder, from prompt ids to the velocity."""

    def __init__(self, transformer: nn.Module, text_encoder: T5EncoderModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder.requires_grad_(False)
        self.transformer.set_attn_processor(MatmulAttnProcessor())

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
        return self.transformer(
            hidden_states=torch.cat([x_t, source], dim=1),
            timestep=t,
            encoder_hidden_states=self.text_encoder(ids)[0],
            encoder_hidden_states_mask=ids != PAD,
            img_shapes=[[(1, side, side)] * 2] * len(x_t),
            return_dict=False,
        )[0][:, : x_t.shape[1]]


class MatmulAttnProcessor:
    """Joint attention by plain matrix products and real rotations.

    The result is that of the stock processor. On a CPU, training is several times as fast.
    """

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
        """Attend over all rows that the mask does not hide.

        Args:
            hidden_states: [B, N, width].
            encoder_hidden_states: [B, P, width].
            encoder_hidden_states_mask: bool [B, P], False at the padding.
        """
        heads = (attn.heads, -1)
        image, text = hidden_states, encoder_hidden_states
        freqs = torch.cat([image_rotary_emb[1], image_rotary_emb[0]])
        cos, sin = freqs.real[:, None], freqs.imag[:, None]
        value = torch.cat([attn.add_v_proj(text), attn.to_v(image)], dim=1).unflatten(-1, heads)
        text_query = attn.norm_added_q(attn.add_q_proj(text).unflatten(-1, heads))
        text_key = attn.norm_added_k(attn.add_k_proj(text).unflatten(-1, heads))
        image_query = attn.norm_q(attn.to_q(image).unflatten(-1, heads))
        image_key = attn.norm_k(attn.to_k(image).unflatten(-1, heads))
        query = torch.cat([text_query, image_query], dim=1)
        key = torch.cat([text_key, image_key], dim=1)
        query, key = (_rotate(x, cos, sin).to(value.dtype) for x in (query, key))
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        scores = (query * key.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # [B, H, P + N, P + N]
        padding_bias = encoder_hidden_states_mask.logical_not().to(scores.dtype) * -1e4
        scores = scores + nn.functional.pad(padding_bias, (0, image.shape[1]))[:, None, None]
        attended = (torch.softmax(scores, dim=-1) @ value).transpose(1, 2).flatten(2)
        text, image = attended.split([text.shape[1], image.shape[1]], dim=1)
        return attn.to_out[1](attn.to_out[0](image)), attn.to_add_out(text)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs in x [B, T, H, D] by angles with cos and sin [T, 1, D / 2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def forget_words(batch: Batch, empty: torch.Tensor) -> Batch:
    """Replace the last scene of a batch by the one before it, with an empty prompt.

    From the same target without its words, the editor learns the unconditional velocity that
    guidance needs.

    Args:
        batch: target, source, changed and ids.
        empty: token ids [L] of the empty prompt.
    """
    rows = list(range(len(batch[0])))
    rows[-1] = rows[-2]
    target, source, changed, ids = (field[rows] for field in batch)
    ids[-1] = empty
    return target, source, changed, ids


class StillVae(nn.Module):
    """An autoencoder with a decoder for latents without a time axis, which is faster to train.

    A causal convolution over a single frame sees zeros before it, so only its last tap in time
    has an effect.
    """

    def __init__(self, vae: AutoencoderKLQwenImage) -> None:
        super().__init__()
        self.vae = vae
        for module in vae.decoder.modules():
            if isinstance(module, QwenImageCausalConv3d):
                module.forward = partial(_still_convolution, module)  # type: ignore[method-assign]

    def decoder(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents [N, C, h, w] to images [N, 3, 4h, 4w]."""
        return self.vae.decoder(latents[:, :, None])[:, :, 0]


def _still_convolution(conv: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """Apply the last tap in time of a causal convolution to x [N, C, 1, h, w]."""
    weight = conv.weight[:, :, -1]
    padding = weight.shape[-1] // 2
    return nn.functional.conv2d(x[:, :, 0], weight, conv.bias, padding=padding)[:, :, None]
