"""Define the tiny Qwen editor's pipeline and load it."""

import functools
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from PIL.Image import Image
from transformers import PreTrainedTokenizerFast

from spotedit import tiny

WEIGHTS = Path(__file__).parent / "weights"


class TinyQwenPipeline(QwenImageEditPipeline):
    """The stock pipeline with the tiny Kontext editor's T5 instead of Qwen2.5-VL.

    The condition picture keeps its size, rounded down to multiples of 8 px, while the stock
    pipeline scales it to about 1024 x 1024 px.
    """

    @functools.wraps(QwenImageEditPipeline.__call__)
    def __call__(self, image: Image, *args: Any, **kwargs: Any) -> Any:
        width, height = (side // 8 * 8 for side in image.size)
        size = (width, height, None)
        with patch.object(pipeline_qwenimage_edit, "calculate_dimensions", lambda *_: size):
            return super().__call__(image, *args, **kwargs)

    def _get_qwen_prompt_embeds(
        self, prompt: str | list[str], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return T5's output [B, 16, C], and a mask int64 [B, 16] that is 0 at the padding."""
        prompts = [prompt] if isinstance(prompt, str) else prompt
        ids = prompt_ids(self.tokenizer, prompts).to(self.text_encoder.device)
        with torch.no_grad():
            return self.text_encoder(ids)[0], (ids != self.tokenizer.pad_token_id).long()


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> torch.Tensor:
    """Return the token ids int64 [B, 16], padded."""
    return tokenizer(
        prompts, padding="max_length", max_length=tiny.PROMPT_TOKENS, truncation=True,
        return_tensors="pt",
    ).input_ids  # fmt: skip


def prompt(pipe: TinyQwenPipeline, text: str, negative: bool = False) -> dict[str, torch.Tensor]:
    """Return the text as the call's `prompt_embeds` and `prompt_embeds_mask`.

    With `negative`, these are `negative_prompt_embeds` and `negative_prompt_embeds_mask`.
    """
    prefix = "negative_" if negative else ""
    embeds, mask = pipe._get_qwen_prompt_embeds(text)
    return {f"{prefix}prompt_embeds": embeds, f"{prefix}prompt_embeds_mask": mask}


def load(
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    folder: Path = WEIGHTS,
) -> TinyQwenPipeline:
    """Load the tiny Qwen editor without progress bars. Its prompts can be text."""
    kontext = tiny.load(dtype)
    options = {"torch_dtype": dtype, "local_files_only": True}
    pipe = TinyQwenPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=AutoencoderKLQwenImage.from_pretrained(folder / "vae", **options),
        text_encoder=kontext.text_encoder_2,
        tokenizer=kontext.tokenizer_2,
        processor=None,
        transformer=QwenImageTransformer2DModel.from_pretrained(folder / "transformer", **options),
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe
