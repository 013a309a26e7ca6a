"""The method written down without buffers, gathers or kernels, to check the real one against.

Every step runs the stock transformer on all rows. In a spot step, the attention layers replace the
keys and values of reused and condition tokens by stored or blended ones. A row of attention depends
on the other rows only through their keys and values, so the active rows come out as if they alone
had been computed.
"""

from dataclasses import dataclass

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import _get_qkv_projections
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass
class ForwardState:
    """What the attention layers need to know about the forward that is running."""

    num_prompt: int  # tokens; in a sequence come prompt, noise and then condition tokens
    num_noise: int
    branch: int = 0  # guidance branch: 0 for the prompt, 1 for the negative prompt
    active: Tensor | None = None  # bool [num_noise]; None in a full step
    weight: float = 1.0  # of the stored keys and values in a blend


class NaiveProcessor:
    _attention_backend = _parallel_config = None  # diffusers expects these of a processor

    def __init__(self, state: ForwardState):
        self.state = state
        self.stored = {}  # branch -> last keys, last values, condition keys at noise positions

    def __call__(
        self,
        attn,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        image_rotary_emb=None,
    ):
        state = self.state
        q, k, v = joint_projections(attn, hidden_states, encoder_hidden_states)
        unrotated_k = k
        q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
        if state.active is None:
            moved_k = self.condition_keys_at_noise_positions(unrotated_k, image_rotary_emb)
            self.stored[state.branch] = k.clone(), v.clone(), moved_k
        else:
            k, v = self.spot_keys_and_values(k, v)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return out
        prompt, image = out[:, : state.num_prompt], out[:, state.num_prompt :]
        return attn.to_out[0](image), attn.to_add_out(prompt)

    def condition_keys_at_noise_positions(self, k, image_rotary_emb):
        """Rotate the condition keys as if they stood where their noise tokens stand."""
        start, end = self.state.num_prompt, self.state.num_prompt + self.state.num_noise
        rotary_emb = [torch.cat([x[:end], x[start:end]]) for x in image_rotary_emb]
        return apply_rotary_emb(k, rotary_emb, sequence_dim=1)[:, end:]

    def spot_keys_and_values(self, k, v):
        """Store the new rows, then return all keys and values with blended ones in reused rows."""
        state = self.state
        stored_k, stored_v, moved_k = self.stored[state.branch]
        noise = slice(state.num_prompt, state.num_prompt + state.num_noise)
        condition = slice(noise.stop, None)
        computed = torch.zeros(k.shape[1], dtype=torch.bool)
        computed[: state.num_prompt] = True
        computed[noise] = state.active
        stored_k[:, computed], stored_v[:, computed] = k[:, computed], v[:, computed]

        weight, reused = state.weight, ~state.active
        blended_k = weight * stored_k[:, noise] + (1 - weight) * moved_k
        blended_v = weight * stored_v[:, noise] + (1 - weight) * stored_v[:, condition]
        k, v = stored_k.clone(), stored_v.clone()
        k[:, noise][:, reused] = blended_k[:, reused]
        v[:, noise][:, reused] = blended_v[:, reused]
        return k, v


def joint_projections(attn, hidden_states, encoder_hidden_states):
    """Project and norm q, k and v [B, S, H, D]; a separate prompt comes first in the sequence."""

    def split_heads(x):
        return x.unflatten(-1, (-1, attn.head_dim))

    projections = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
    q, k, v = map(split_heads, projections[:3])
    q, k = attn.norm_q(q), attn.norm_k(k)
    if encoder_hidden_states is None:
        return q, k, v
    text_q, text_k, text_v = map(split_heads, projections[3:])
    return (
        torch.cat([attn.norm_added_q(text_q), q], dim=1),
        torch.cat([attn.norm_added_k(text_k), k], dim=1),
        torch.cat([text_v, v], dim=1),
    )


@torch.no_grad()
def naive_edit(pipe, arguments, kinds, actives, weights):
    """Return the latents of an edit of one image.

    Args:
        arguments: `prompt_embeds`, `pooled_prompt_embeds`, optionally negative ones and
            `true_cfg_scale`, `latents` [1, N, C] and `y` [1, N, C], `img_ids` [2N, 3], `sigmas`
            [T + 1].
        kinds: "full" or "spot" for each step.
        actives: bool [N] for each step; not read in full steps.
        weights: of the stored keys and values in each step.
    """
    transformer = pipe.transformer
    x, y, sigmas = arguments["latents"], arguments["y"], arguments["sigmas"]
    state = ForwardState(num_prompt=arguments["prompt_embeds"].shape[1], num_noise=x.shape[1])
    stock_processors = transformer.attn_processors
    transformer.set_attn_processor({name: NaiveProcessor(state) for name in stock_processors})
    scale = arguments.get("true_cfg_scale", 1.0)
    prompts = [(arguments["prompt_embeds"], arguments["pooled_prompt_embeds"])]
    if scale > 1:
        prompts.append(
            (arguments["negative_prompt_embeds"], arguments["negative_pooled_prompt_embeds"])
        )
    steps = zip(kinds, actives, weights, sigmas[:-1], sigmas[1:], strict=True)
    for kind, active, weight, sigma, next_sigma in steps:
        state.active = None if kind == "full" else active
        state.weight = weight
        velocities = []
        for branch, (prompt, pooled) in enumerate(prompts):
            state.branch = branch
            v = transformer(
                hidden_states=torch.cat([x, y], 1),
                timestep=torch.tensor([sigma]),
                pooled_projections=pooled,
                encoder_hidden_states=prompt,
                txt_ids=torch.zeros(prompt.shape[1], 3),
                img_ids=arguments["img_ids"],
            ).sample[:, : state.num_noise]
            if kind == "spot":
                v = torch.where(active[:, None], v, (x - y) / sigma)
            velocities.append(v)
        v = velocities[0]
        if scale > 1:
            negative = velocities[1]
            v = negative + scale * (v - negative)
        x = x + (next_sigma - sigma) * v
    transformer.set_attn_processor(dict(stock_processors))
    return torch.where(active[:, None], x, y)
