"""The buffers that keep keys and values between steps, for each guidance branch and layer."""

from dataclasses import dataclass

import torch
from spotedit_kernels import kv_blend
from spotedit_kernels.impl import Impl
from spotedit_kernels.rows import gather_rows, scatter_rows
from torch import Tensor


@dataclass
class CachedRows:
    """Keys or values of the joint sequence or a part of it.

    Attributes:
        data: [B, S, H, D], in the model's dtype or in int8.
        scale: fp32 [B, S, H] if `data` is int8, else None.
    """

    data: Tensor
    scale: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return the tensors that hold the rows."""
        return [self.data] if self.scale is None else [self.data, self.scale]

    def part(self, rows: slice) -> "CachedRows":
        """Return a view of a range of rows."""
        return CachedRows(self.data[:, rows], None if self.scale is None else self.scale[:, rows])

    def read(self, index: Tensor) -> Tensor:
        """Return a copy of the indexed rows, [B, M, H, D]; in fp32 if they are kept in int8."""
        data = gather_rows(self.data, index)
        if self.scale is None:
            return data
        return data.float() * gather_rows(self.scale, index)[..., None]

    def write(self, index: Tensor, values: Tensor) -> None:
        """Overwrite the indexed rows with `values` [B, M, H, D]."""
        if self.scale is None:
            scatter_rows(index, (self.data, values))
        else:
            data, scale = quantise(values)
            scatter_rows(index, (self.data, data), (self.scale, scale))

    def fill(self, values: Tensor) -> None:
        """Overwrite all rows with `values` [B, S, H, D]."""
        self.copy_from(CachedRows(values) if self.scale is None else CachedRows(*quantise(values)))

    def copy_from(self, other: "CachedRows") -> None:
        """Overwrite all rows with those of `other`."""
        for target, values in zip(self.tensors(), other.tensors(), strict=True):
            target.copy_(values)


def quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round to int8 [B, S, H, D] with fp32 scales [B, S, H], one for each row and head."""
    scale = values.abs().amax(dim=-1).float() / 127
    safe = scale.clamp(min=torch.finfo(torch.float32).tiny)
    return (values.float() / safe[..., None]).round_().to(torch.int8), scale


@dataclass
class BlendInputs:
    """The cached and the source's keys and values, which are blended in the reused rows.

    The paper calls the blend SpotFusion (see `fusion`). The rows are in the noise tokens' order.

    Attributes:
        k, v: keys and values of each noise token at the last step that computed it.
        k_ref: the source's keys, rotated to the noise tokens' positions. Rows after the first N
            belong to condition images that follow the source; they are written in the same kernel
            call, and not read. There is no `v_ref`, because values
            are not rotated: `LayerCache.v` holds them.
    """

    k: CachedRows
    v: CachedRows
    k_ref: CachedRows


@dataclass
class LayerCache:
    """Buffers of one attention layer in one guidance branch, for the S tokens of the sequence.

    Attributes:
        k, v: what attention reads, S rows each in the order [prompt, noise, conditions].
        blend_inputs: what is blended into the reused rows. None if reused tokens always take their
            cached rows, unblended: `k` and `v` hold these already.
        has_run: whether the layer ran in the last forward, and so wrote its rows.
    """

    k: CachedRows
    v: CachedRows
    blend_inputs: BlendInputs | None
    has_run: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        buffers = [self.k, self.v]
        if self.blend_inputs is not None:
            buffers += [self.blend_inputs.k, self.blend_inputs.v, self.blend_inputs.k_ref]
        return sum(tensor.nbytes for rows in buffers for tensor in rows.tensors())


@dataclass(frozen=True)
class SequenceLayout:
    """The places of the parts of the joint sequence [prompt, noise, conditions].

    Attributes:
        num_prompt: number of prompt tokens.
        num_noise: number of noise tokens. The source has as many.
        source_start: index of the source's first token among the image tokens.
        num_tokens: number of all tokens, S.
    """

    num_prompt: int
    num_noise: int
    source_start: int
    num_tokens: int

    @property
    def noise(self) -> slice:
        """The rows of the noise tokens."""
        return slice(self.num_prompt, self.num_prompt + self.num_noise)

    @property
    def source(self) -> slice:
        """The rows of the source's tokens."""
        start = self.num_prompt + self.source_start
        return slice(start, start + self.num_noise)


def allocate(
    batch: int,
    layout: SequenceLayout,
    head_shape: tuple[int, int],
    needs_blend: bool,
    int8: bool,
    like: Tensor,
) -> LayerCache:
    """Make the buffers of a layer, without initial values.

    Args:
        batch: number of images.
        head_shape: number of heads, and the dim of a head.
        needs_blend: whether reused rows are ever blended.
        int8: keep the rows in int8.
        like: gives the device, and the dtype unless `int8`.
    """

    def empty(num_rows: int) -> CachedRows:
        shape = (batch, num_rows, *head_shape)
        if not int8:
            return CachedRows(like.new_empty(shape))
        scale = like.new_empty(shape[:-1], dtype=torch.float32)
        return CachedRows(like.new_empty(shape, dtype=torch.int8), scale)

    cache = LayerCache(empty(layout.num_tokens), empty(layout.num_tokens), blend_inputs=None)
    if needs_blend:
        num_reference = layout.num_tokens - layout.source.start
        cache.blend_inputs = BlendInputs(
            empty(layout.num_noise), empty(layout.num_noise), empty(num_reference)
        )
    return cache


def remember_noise_rows(cache: LayerCache, layout: SequenceLayout) -> None:
    """Remember the noise tokens' keys and values after a full forward."""
    if cache.blend_inputs is not None:
        cache.blend_inputs.k.copy_from(cache.k.part(layout.noise))
        cache.blend_inputs.v.copy_from(cache.v.part(layout.noise))


def blend(
    cache: LayerCache,
    layout: SequenceLayout,
    dropped_index: Tensor,
    stale_index: Tensor,
    weight: float,
    impl: Impl,
) -> None:
    """Bring the reused rows up to date before a spot forward.

    Args:
        dropped_index: noise tokens that the previous step computed, and that are reused from now
            on. The rows that it wrote become their cached keys and values.
        stale_index: noise tokens whose rows must be blended again.
        weight: weight of the cached value.
        impl: which kernels run.
    """
    inputs = cache.blend_inputs
    if inputs is None:
        return
    k, v = cache.k.part(layout.noise), cache.v.part(layout.noise)
    if dropped_index.numel():
        inputs.k.write(dropped_index, k.read(dropped_index))
        inputs.v.write(dropped_index, v.read(dropped_index))
    if not stale_index.numel():
        return
    k_ref, v_ref = inputs.k_ref.part(slice(layout.num_noise)), cache.v.part(layout.source)
    if cache.k.scale is None:
        kv_blend(
            k.data,
            v.data,
            inputs.k.data,
            inputs.v.data,
            k_ref.data,
            v_ref.data,
            stale_index,
            weight=weight,
            impl=impl,
        )
        return
    # kv_blend does not take int8
    for out, cached, reference in ((k, inputs.k, k_ref), (v, inputs.v, v_ref)):
        blended = reference.read(stale_index).lerp_(cached.read(stale_index), weight)
        out.write(stale_index, blended)
