"""The shapes of the benches and of the kernels' tests. Imports no package of ours.

Layouts: queries ``[B, M, H, D]``, keys and values ``[B, S, H, D]``, feature maps ``[C, H, W]``.
"""

from dataclasses import dataclass

Map = tuple[int, int, int]
LATENT_CHANNELS = 64  # channels of a token: 16 channels of the latents, packed 2 x 2
VAE_MAPS: tuple[Map, ...] = ((512, 128, 128), (512, 128, 128), (512, 256, 256))  # at 1024 px
ODD_MAPS = ((5, 6, 10), (3, 6, 10), (37, 11, 23), (4, 2, 3))  # the size of a grid, larger, smaller


@dataclass(frozen=True)
class AttentionShape:
    """The shape of an attention: M query rows against S keys."""

    m: int
    s: int
    heads: int
    dim: int
    batch: int = 1

    @property
    def columns(self) -> dict[str, int]:
        """The shape as columns of a table of rows."""
        return {"M": self.m, "S": self.s, "H": self.heads, "D": self.dim}


@dataclass(frozen=True)
class Layer:
    """An attention layer of an editor, and the feature maps by which its pictures are judged.

    Attributes:
        num_prompt: number of prompt tokens.
        grid: token grid of the noise (rows, columns); the condition's is equal.
        maps: feature maps of a picture.
        sweep: further numbers of query rows at which attention is measured.
    """

    num_prompt: int
    grid: tuple[int, int]
    heads: int
    dim: int
    maps: tuple[Map, ...] = VAE_MAPS
    sweep: tuple[int, ...] = ()

    @property
    def num_noise(self) -> int:
        """Number of noise tokens."""
        return self.grid[0] * self.grid[1]

    def query_rows(self, ratio: float) -> int:
        """Return M of a spot step in which `ratio` of the noise tokens is active."""
        return self.num_prompt + round(ratio * self.num_noise)

    def attention(self, m: int) -> AttentionShape:
        """Return the shape of `m` query rows against prompt, noise and condition."""
        return AttentionShape(m, self.num_prompt + 2 * self.num_noise, self.heads, self.dim)


LAYERS = {  # all but the last two are for pictures of 1024 x 1024 pixels
    # 717, 922, 1331, 2150 and 4608 rows are r = 5, 10, 20, 40 and 100%; 640 and 1408 are padded
    "kontext": Layer(
        512, (64, 64), 24, 128, sweep=(640, 717, 922, 1331, 1408, 2150, 4608)
    ),  # FLUX.1-Kontext
    "qwen-edit": Layer(1400, (64, 64), 24, 128),  # Qwen-Image-Edit
    "flux2-dev": Layer(512, (64, 64), 48, 128),
    "klein-4b": Layer(512, (64, 64), 24, 128),
    "klein-9b": Layer(512, (64, 64), 32, 128),
    "tiny": Layer(  # the tiny editor at 256 x 256 pixels
        16, (32, 32), 3, 64, ((96, 64, 64), (96, 64, 64), (96, 128, 128)), (67, 221, 426, 1040)
    ),
    # a prime number of keys, a head dim that is no power of two
    "odd": Layer(3, (5, 7), 3, 40, ODD_MAPS),
}
VAE_ATTENTION = AttentionShape(128 * 128, 128 * 128, 1, 512)  # the decoder's middle block

ODD_ROWS = {  # two images and two heads each, as in the tests
    "no rows": AttentionShape(0, 13, 2, 24, 2),
    "one row, one key": AttentionShape(1, 1, 2, 24, 2),
    "one row": AttentionShape(1, 17, 2, 40, 2),
    "odd rows": AttentionShape(7, 13, 2, 24, 2),
    "all rows": AttentionShape(13, 13, 2, 64, 2),
    "head dim below a block": AttentionShape(5, 29, 2, 6, 2),
    "one row more than a block": AttentionShape(17, 37, 2, 16, 2),
    "head dim 80": AttentionShape(1, 41, 2, 80, 2),
    "head dim 128": AttentionShape(2, 67, 2, 128, 2),
    "head dim 512": AttentionShape(2, 19, 2, 512, 2),
}
ODD_HEAD_DIMS = (2, 6, 40)
ODD_ROW_COUNTS = (1, 17)
ODD_PATCHES = (((3, 5), 2), ((1, 1), 2), ((13, 11), 1), ((2, 13), 3), ((5, 1), 2))  # (grid, patch)
ODD_GRIDS = ((1, 1), (7, 1), (1, 300), (11, 13))
ODD_LATENTS = (  # images, tokens, channels; a block of the kernel has 16 tokens and 64 channels
    (1, 1, 1), (2, 1, 64), (1, 16, 64), (3, 17, 65), (2, 37, 5), (1, 7, 131), (2, 101, 1),
)  # fmt: skip
