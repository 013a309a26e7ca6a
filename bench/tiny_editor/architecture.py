"""Build the tiny editor's parts from stock classes, with random weights."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from spotedit.tiny.pipeline import PROMPT_TOKENS
from spotedit.tiny.world import vocabulary

LATENT_CHANNELS = 16
TOKEN = 16  # side of a token in pixels
TEXT_WIDTH = 128
POOLED_WIDTH = 64
_SPECIAL = ("<pad>", "</s>", "<unk>")
_SPELLINGS = {"color": "colour", "center": "middle", "centre": "middle"}


def build_vae(widths: tuple[int, ...] = (32, 48, 64, 64)) -> AutoencoderKL:
    """Build a factor-8 autoencoder with 16 channels, as FLUX has, but without attention.

    It has about 1 M parameters.
    """
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=256,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def build_transformer(
    heads: int = 3, head_dim: int = 64, dual: int = 1, single: int = 7
) -> FluxTransformer2DModel:
    """Build a FLUX transformer of width heads x head_dim; 5.3 M parameters by default."""
    rope_axis = 2 * (head_dim * 7 // 32)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=dual,
        num_single_layers=single,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(head_dim - 2 * rope_axis, rope_axis, rope_axis),
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token for each word of the instructions.

    It turns text into lower case and ends it with ``</s>``.
    """
    ids = {word: index for index, word in enumerate((*_SPECIAL, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    spellings = [normalizers.Replace(old, new) for old, new in _SPELLINGS.items()]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *spellings])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=PROMPT_TOKENS,
    )


def build_text_encoders(vocabulary: int) -> tuple[CLIPTextModel, T5EncoderModel]:
    """Build a one-layer CLIP for the pooled vector and a two-layer T5 for the prompt tokens."""
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=POOLED_WIDTH,
            intermediate_size=2 * POOLED_WIDTH,
            projection_dim=POOLED_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=PROMPT_TOKENS,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=2 * TEXT_WIDTH,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    return clip, t5


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Build FLUX's scheduler, whose shift is exp(0.5) at 256 image tokens and exp(1.15) at 4096."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def parameter_count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
