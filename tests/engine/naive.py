"""The method written down without buffers, gathers or kernels, to check the real one against.

Every step runs the stock transformer on all rows. On a spot step the attention sees, for reused and
condition tokens, stored or blended keys and values; as an attention row depends on the others only
through their keys and values, the active rows come out as if they alone had been computed.
"""

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import _get_qkv_projections
from torch.nn.functional import scaled_dot_product_attention


class NaiveProcessor:
    _attention_backend = _parallel_config = None

    def __init__(self, state):
        self.state, self.last, self.condition = state, {}, {}

    def __call__(
        self,
        attn,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        image_rotary_emb=None,
    ):
        state, prompt, noise = self.state, self.state.prompt, self.state.noise
        q, k, v, *text = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        q, k, v = (x.unflatten(-1, (-1, attn.head_dim)) for x in (q, k, v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        if encoder_hidden_states is not None:
            tq, tk, tv = (x.unflatten(-1, (-1, attn.head_dim)) for x in text)
            q, k, v = (
                torch.cat(p, 1)
                for p in ((attn.norm_added_q(tq), q), (attn.norm_added_k(tk), k), (tv, v))
            )
        cos, sin = image_rotary_emb
        as_noise = [
            torch.cat([x[: prompt + noise], x[prompt : prompt + noise]]) for x in (cos, sin)
        ]
        moved = apply_rotary_emb(k, as_noise, sequence_dim=1)[:, prompt + noise :]
        q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
        if state.active is None:  # full
            self.last[state.branch] = k.clone(), v.clone(), moved
        else:
            last_k, last_v, moved = self.last[state.branch]
            fresh = torch.zeros(k.shape[1], dtype=torch.bool)
            fresh[:prompt] = True
            fresh[prompt : prompt + noise] = state.active
            last_k[:, fresh], last_v[:, fresh] = k[:, fresh], v[:, fresh]
            w = state.weight
            blended_k = w * last_k[:, prompt : prompt + noise] + (1 - w) * moved
            blended_v = (
                w * last_v[:, prompt : prompt + noise] + (1 - w) * last_v[:, prompt + noise :]
            )
            k, v = last_k.clone(), last_v.clone()
            reused = ~state.active
            k[:, prompt : prompt + noise][:, reused] = blended_k[:, reused]
            v[:, prompt : prompt + noise][:, reused] = blended_v[:, reused]
        out = (
            scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
            .transpose(1, 2)
            .flatten(2)
        )
        if encoder_hidden_states is None:
            return out
        image = attn.to_out[0](out[:, prompt:])
        return image, attn.to_add_out(out[:, :prompt])


class NaiveState:
    active, weight, branch = None, 1.0, 0


@torch.no_grad()
def naive_edit(pipe, arguments, kinds, actives, weights):
    """Latents of an edit of one image, with the given kind, active set [N] and weight of each step.

    `arguments`: `prompt_embeds`, `pooled_prompt_embeds`, optionally negative ones and
    `true_cfg_scale`, `latents` [1, N, C] and `y` [1, N, C], `img_ids` [2N, 3], `sigmas` [T + 1].
    """
    state, transformer = NaiveState(), pipe.transformer
    x, y = arguments["latents"], arguments["y"]
    state.prompt, state.noise = arguments["prompt_embeds"].shape[1], x.shape[1]
    stock = transformer.attn_processors
    transformer.set_attn_processor({name: NaiveProcessor(state) for name in stock})
    scale = arguments.get("true_cfg_scale", 1.0)
    prompts = [(arguments["prompt_embeds"], arguments["pooled_prompt_embeds"])]
    if scale > 1:
        prompts.append(
            (arguments["negative_prompt_embeds"], arguments["negative_pooled_prompt_embeds"])
        )
    for kind, active, weight, t, after in zip(
        kinds, actives, weights, arguments["sigmas"], arguments["sigmas"][1:], strict=False
    ):
        state.active, state.weight = (None if kind == "full" else active), weight
        velocities = []
        for state.branch, (prompt, pooled) in enumerate(prompts):
            v = transformer(
                hidden_states=torch.cat([x, y], 1),
                timestep=torch.tensor([t]),
                pooled_projections=pooled,
                encoder_hidden_states=prompt,
                txt_ids=torch.zeros(prompt.shape[1], 3),
                img_ids=arguments["img_ids"],
            ).sample[:, : state.noise]
            velocities.append(v if kind == "full" else torch.where(active[:, None], v, (x - y) / t))
        v = velocities[0] if scale <= 1 else velocities[1] + scale * (velocities[0] - velocities[1])
        x = x + (after - t) * v
    transformer.set_attn_processor(dict(stock))
    return torch.where(active[:, None], x, y)
