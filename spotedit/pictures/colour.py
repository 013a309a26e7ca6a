"""Convert colours to sRGB, which edits have, and back to those of the edited picture."""

from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

# Both conversions use this intent, so that colours return as they were. Printers' profiles have
# other tables for the perceptual intent, with which a CMYK picture would come back darker.
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC


def _opened_profile(data: bytes | None) -> ImageCms.ImageCmsProfile | None:
    """Return the profile, or None if there is none, if it is sRGB, or if it cannot be read."""
    if not data:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(data))
        return None if "sRGB" in ImageCms.getProfileDescription(profile) else profile
    except (ImageCms.PyCMSError, OSError):
        return None


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an RGB or CMYK picture with this ICC profile to sRGB; others keep their numbers."""
    source = _opened_profile(profile) if image.mode in ("RGB", "CMYK") else None
    if source is not None:
        target = ImageCms.createProfile("sRGB")
        try:
            converted = ImageCms.profileToProfile(image, source, target, _INTENT, "RGB")
            image = converted or image  # None would mean a conversion in place, which this is not
        except (ImageCms.PyCMSError, OSError):
            pass  # the profile does not fit the picture, so the numbers are taken as they are
    return image.convert("RGB")


class ColourSpace:
    """The colours of a picture, for conversions from sRGB; the inverse of `to_srgb`.

    Args:
        mode: "L", "RGB" or "CMYK".
        dtype: uint8 or uint16.
        profile: the ICC profile, or None. Greys are taken for sRGB's, whatever their profile is.
    """

    def __init__(self, mode: str, dtype: np.dtype, profile: bytes | None) -> None:
        self.mode, self.dtype = mode, np.dtype(dtype)
        self._profile = profile if mode != "L" and _opened_profile(profile) else None

    def from_srgb(self, image: Image.Image) -> np.ndarray:
        """Return the picture in this colour space: [H, W, C] of `dtype`."""
        if self._profile is None:
            # PIL's grey of an sRGB picture, and its CMYK without black, have no profile either
            return self._scaled(np.asarray(image.convert(self.mode)))
        try:
            if self.dtype == np.uint16:
                return self._deep(image)
            return np.asarray(ImageCms.applyTransform(image, self._transform))
        except (ImageCms.PyCMSError, OSError, ValueError, RuntimeError):  # the last: imagecodecs
            self._profile = None  # `load_image` could not use the profile either
            return self.from_srgb(image)

    @cached_property
    def _transform(self) -> Any:
        target = ImageCms.ImageCmsProfile(BytesIO(self._profile or b""))
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(srgb, target, "RGB", self.mode, _INTENT)

    def _deep(self, image: Image.Image) -> np.ndarray:
        """Convert with 16 bits a channel, because 8 would show steps in linear colour spaces."""
        from imagecodecs import cms_profile, cms_transform

        colours = np.ascontiguousarray(np.asarray(image), dtype=np.uint16) * 257
        space = {"RGB": "rgb", "CMYK": "cmyk"}[self.mode]
        converted: np.ndarray = cms_transform(
            colours,
            cms_profile("srgb"),
            self._profile or b"",
            colorspace="rgb",
            outcolorspace=space,
            outdtype=self.dtype,
            intent=int(_INTENT),
        )
        return converted

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        """Return 8-bit values [H, W] or [H, W, C] as [H, W, C] of `dtype`."""
        values = values[..., None] if values.ndim == 2 else values
        return values if self.dtype == np.uint8 else values.astype(np.uint16) * 257
