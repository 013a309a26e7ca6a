"""Pictures as arrays, with all their channels and all their bits."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .images import grey_16_bit

_KEPT_MODES = ("L", "LA", "RGB", "RGBA", "CMYK")
# What other modes become. Modes of 16 bits are handled apart.
_CONVERTED = {"1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA", "RGBX": "RGB"}


@dataclass
class Pixels:
    """The pixels of a picture.

    Attributes:
        values: uint8 or uint16 [H, W, C].
        mode: "L", "LA", "RGB", "RGBA" or "CMYK": what the channels are, whatever their depth is.
            In "CMYK", 0 means no ink.
        profile: the ICC profile, or None.
    """

    values: np.ndarray
    mode: str
    profile: bytes | None = None

    @property
    def has_alpha(self) -> bool:
        return self.mode in ("LA", "RGBA")

    @property
    def colours(self) -> str:
        """The mode without alpha."""
        return self.mode.removesuffix("A")

    @property
    def white(self) -> int:
        """The highest value of a channel."""
        return int(np.iinfo(self.values.dtype).max)

    @property
    def is_deep(self) -> bool:
        """Whether a channel has more than 8 bits."""
        return self.values.dtype == np.uint16

    def to_image(self) -> Image.Image:
        """Return the picture. Only grey without alpha can have 16 bits a channel in Pillow.

        Raises:
            ValueError: other channels have 16 bits.
        """
        values = self.values[..., 0] if self.mode == "L" else self.values
        if self.is_deep and self.mode != "L":
            raise ValueError("a PIL image cannot hold 16 bits a channel of colours")
        image = Image.fromarray(values)
        return (
            Image.frombytes("CMYK", image.size, values.tobytes()) if self.mode == "CMYK" else image
        )

    def to_8_bit(self) -> "Pixels":
        """Return the same pixels with 8 bits a channel."""
        if not self.is_deep:
            return self
        values = ((self.values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return Pixels(values, self.mode, self.profile)


def pixels_of(image: Image.Image) -> Pixels:
    """Return the pixels of a PIL image.

    Grey, RGB and CMYK, with or without alpha, stay as they are. A palette becomes RGB, or RGBA if
    it has transparency; black and white becomes grey; other colour spaces become RGB.

    Raises:
        ImageError: the pixels are floats, or integers outside 0..65535.
    """
    profile = image.info.get("icc_profile")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Pixels(grey_16_bit(image)[..., None], "L", profile)
    if image.mode not in _KEPT_MODES:
        otherwise = "RGBA" if image.has_transparency_data else "RGB"
        image = image.convert(_CONVERTED.get(image.mode, otherwise))
    elif "transparency" in image.info and image.mode in ("L", "RGB"):
        image = image.convert(image.mode + "A")  # one colour is transparent
    values = np.array(image)
    return Pixels(values[..., None] if values.ndim == 2 else values, image.mode, profile)
