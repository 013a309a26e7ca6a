"""The one table of shapes, for the benches and for the kernels' tests. Imports no package of ours.

Layouts: queries ``[B, M, H, D]``, keys and values ``[B, S, H, D]``, feature maps ``[C, H, W]``.
"""

from dataclasses import dataclass

Map = tuple[int, int, int]
LATENT_CHANNELS = 64  # of a token: 16 channels of the latents, packed 2 x 2
VAE_MAPS: tuple[Map, ...] = ((512, 128, 128), (512, 128, 128), (512, 256, 256))  # at 1024 px
ODD_MAPS = ((5, 6, 10), (3, 6, 10), (37, 11, 23), (4, 2, 3))  # of a grid's size, larger, smaller


@dataclass(frozen=True)
class Rows:
    """M query rows against S keys."""

    m: int
    s: int
    heads: int
    dim: int
    batch: int = 1

    @property
    def columns(self) -> dict[str, int]:
        """For the rows of a table."""
        return {"M": self.m, "S": self.s, "H": self.heads, "D": self.dim}


@dataclass(frozen=True)
class Layer:
    """An attention layer of an editor, with the maps that its pictures are judged by.

    Attributes:
        prompt: text tokens.
        grid: noise tokens (rows, columns); the condition picture has as many.
        maps: feature maps of a picture.
        sweep: numbers of rows to measure attention at, beside that of r = 10%.
    """

    prompt: int
    grid: tuple[int, int]
    heads: int
    dim: int
    maps: tuple[Map, ...] = VAE_MAPS
    sweep: tuple[int, ...] = ()

    @property
    def noise(self) -> int:
        return self.grid[0] * self.grid[1]

    def rows(self, ratio: float) -> int:
        """M of a spot step with `ratio` of the noise tokens active."""
        return self.prompt + round(ratio * self.noise)

    def attention(self, m: int) -> Rows:
        """`m` query rows against the prompt, the noise and the condition."""
        return Rows(m, self.prompt + 2 * self.noise, self.heads, self.dim)


LAYERS = {  # 1024 x 1024 pixels but for the last two
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
VAE_ATTENTION = Rows(128 * 128, 128 * 128, 1, 512)  # the decoder's middle block

ODD_ROWS = {  # two images and heads, as in the tests
    "no rows": Rows(0, 13, 2, 24, 2),
    "one row, one key": Rows(1, 1, 2, 24, 2),
    "one row": Rows(1, 17, 2, 40, 2),
    "odd rows": Rows(7, 13, 2, 24, 2),
    "all rows": Rows(13, 13, 2, 64, 2),
    "head dim below a block": Rows(5, 29, 2, 6, 2),
    "one row more than a block": Rows(17, 37, 2, 16, 2),
    "head dim 80": Rows(1, 41, 2, 80, 2),
    "head dim 128": Rows(2, 67, 2, 128, 2),
    "head dim 512": Rows(2, 19, 2, 512, 2),
}
ODD_HEAD_DIMS = (2, 6, 40)
ODD_ROW_COUNTS = (1, 17)
ODD_PATCHES = (((3, 5), 2), ((1, 1), 2), ((13, 11), 1), ((2, 13), 3), ((5, 1), 2))  # (grid, patch)
ODD_GRIDS = ((1, 1), (7, 1), (1, 300), (11, 13))
ODD_LATENTS = (  # images, tokens, channels; a block of the kernel has 16 tokens and 64 channels
    (1, 1, 1), (2, 1, 64), (1, 16, 64), (3, 17, 65), (2, 37, 5), (1, 7, 131), (2, 101, 1),
)  # fmt: skip
