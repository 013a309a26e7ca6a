"""Pictures of every kind that people have: formats, depths, colour spaces, orientations, metadata.

`write_photographs` writes them; tests of `edit`, `batch` and of what is kept of a file read them.
"""

import functools
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

WIDTH, HEIGHT = 120, 88
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    b'syntax-ns#"><rdf:Description xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
DPI = 240
# Red, green and blue primaries, adapted to D50, as X, Y, Z.
_PRIMARIES = {
    "Adobe RGB": ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)),
    "Display P3": ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)),
}


@dataclass(frozen=True)
class Photograph:
    """A file, and what it is.

    Attributes:
        path: the file.
        is_lossless: whether its format can keep pixels exactly.
        depth: bits a channel.
        needs: packages without which the file is not kept as it is.
    """

    path: Path
    is_lossless: bool
    depth: int = 8
    needs: tuple[str, ...] = ()


def scene(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return a picture, float 0..1 [height, width, 3]: smooth, with an edge and some texture."""
    y, x = np.mgrid[0:height, 0:width]
    u, v = x / max(width - 1, 1), y / max(height - 1, 1)
    colours = np.stack([0.2 + 0.6 * u, 0.3 + 0.5 * v, 0.8 - 0.5 * u * v], axis=-1)
    colours[(u - 0.6) ** 2 + (v - 0.4) ** 2 < 0.05] = (0.75, 0.2, 0.15)
    texture = np.random.default_rng(0).normal(0, 0.03, (height, width, 1))
    return np.clip(colours + texture, 0, 1)


def scene_8_bit(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Return the same picture as a PIL image, RGB."""
    return Image.fromarray(np.rint(255 * scene(width, height)).astype(np.uint8))


@functools.cache
def icc(name: str) -> bytes:
    """Return an ICC profile: sRGB's with the primaries of another colour space."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    changed = bytearray(srgb)
    (num_tags,) = struct.unpack_from(">I", srgb, 128)
    for index in range(num_tags):
        tag, offset, size = struct.unpack_from(">4sII", srgb, 132 + 12 * index)
        if tag in (b"rXYZ", b"gXYZ", b"bXYZ"):
            xyz = _PRIMARIES[name][b"rgb".index(tag[:1])]
            struct.pack_into(">3i", changed, offset + 8, *(round(65536 * value) for value in xyz))
        if tag == b"desc":  # a text in UTF-16 that need not keep its length
            start = srgb.index("sRGB".encode("utf-16-be"), offset, offset + size)
            changed[start : start + 8] = name[:4].encode("utf-16-be")
    return bytes(changed)


def exif(orientation: int = 1) -> bytes:
    """Return EXIF data with a camera, an orientation, a place and a thumbnail's directory."""
    data = Image.Exif()
    data[0x010F], data[0x0110], data[0x0112] = "Maker", "Camera 1", orientation
    data[0x0132] = "2026:05:04 03:02:01"
    data.get_ifd(0x8769)[0x829A] = (1, 250)
    data.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 24.0), 3: "E", 4: (2.0, 21.0, 3.0)})
    return data.tobytes()


def write_png_16(path: Path, values: np.ndarray, *chunks: tuple[bytes, bytes]) -> None:
    """Write a PNG of uint16 [H, W, C], which Pillow cannot, with further chunks."""
    height, width, channels = values.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = values.astype(">u2").reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        checksum = zlib.crc32(kind + body)
        parts.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum))
    path.write_bytes(b"".join(parts))


def write_photographs(folder: Path) -> list[Photograph]:
    """Write about forty small pictures into a folder, and return what they are.

    Kinds that need an absent program or package are left out.
    """
    photographs: list[Photograph] = []
    for write in (_write_jpegs, _write_pngs, _write_tiffs, _write_others):
        write(folder, photographs)
    return photographs


def _add(
    photographs: list[Photograph], path: Path, write: Callable[[Path], object], **facts: Any
) -> None:
    write(path)
    photographs.append(Photograph(path, **facts))


def _write_jpegs(folder: Path, photographs: list[Photograph]) -> None:
    rgb, xmp = scene_8_bit(), {"xmp": XMP}
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        f"orientation-{turn}": (rgb, {"exif": exif(turn), "quality": 90}) for turn in range(1, 9)
    }
    kinds |= {
        "444": (rgb, {"subsampling": 0, "quality": 92}),
        "420": (rgb, {"subsampling": 2, "quality": 80}),
        "422-progressive": (rgb, {"subsampling": 1, "progressive": True}),
        "restart": (rgb, {"restart_marker_rows": 1}),
        "odd": (scene_8_bit(101, 67), {"quality": 85}),
        "grey": (rgb.convert("L"), {"exif": exif()}),
        "cmyk": (_cmyk(), {"quality": 90, "subsampling": 0}),
        "rgb": (rgb, {"keep_rgb": True, "quality": 90}),
        "adobe-rgb": (rgb, {"icc_profile": icc("Adobe RGB"), "quality": 95}),
        "display-p3": (rgb, {"icc_profile": icc("Display P3"), "subsampling": 2}),
        "everything": (rgb, {"exif": exif(6), "dpi": (DPI, DPI), "comment": b"a word", **xmp}),
        "Größe 写真 ürün": (rgb, {}),
        "narrow": (scene_8_bit(33, 4000), {}),
    }
    for name, (image, options) in kinds.items():
        save = functools.partial(_save, image, "JPEG", options)
        _add(photographs, folder / f"{name}.jpg", save, is_lossless=False)
    if shutil.which("cjpeg"):
        for name, sampling in {"411": "4x1", "440": "1x2", "uneven": "2x2,2x1,1x2"}.items():
            command = ["cjpeg", "-sample", sampling]
            ppm = encoded(rgb, "PPM")
            done = subprocess.run(command, input=ppm, capture_output=True, check=True)
            write = functools.partial(_write_bytes, done.stdout)
            _add(photographs, folder / f"{name}.jpg", write, is_lossless=False)


def _write_pngs(folder: Path, photographs: list[Photograph]) -> None:
    rgb = scene_8_bit()
    palette = rgb.quantize(64)
    everything = {"exif": exif(8), "dpi": (DPI, DPI), "icc_profile": icc("Display P3")}
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb": (rgb, {}),
        "everything": (rgb, everything),
        "alpha": (_with_alpha(rgb), {}),
        "grey": (rgb.convert("L"), {}),
        "grey-alpha": (_with_alpha(rgb).convert("LA"), {}),
        "palette": (palette, {}),
        "palette-transparent": (palette, {"transparency": 3}),
        "one-colour-transparent": (rgb, {"transparency": rgb.getpixel((5, 5))}),
        "black-and-white": (rgb.convert("1"), {}),
        "narrow": (scene_8_bit(33, 4000), {}),
    }
    for name, (image, options) in kinds.items():
        save = functools.partial(_save, image, "PNG", options)
        _add(photographs, folder / f"{name}.png", save, is_lossless=True)
    for channels, name in enumerate(("grey", "grey-alpha", "rgb", "rgba"), 1):
        write = functools.partial(write_png_16, values=deep(channels))
        facts: dict[str, Any] = {"is_lossless": True, "depth": 16}
        if channels > 1:
            facts["needs"] = ("imagecodecs",)
        _add(photographs, folder / f"{name}-16.png", write, **facts)


def _write_tiffs(folder: Path, photographs: list[Photograph]) -> None:
    try:
        import tifffile
    except ImportError:
        return
    values = np.asarray(scene_8_bit())
    alpha = {"extrasamples": ["unassalpha"]}
    predicted = {"compression": "zlib", "predictor": True}
    cmyk = {"photometric": "separated"}
    kinds: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "plain": (values, {"rowsperstrip": 16}),
        "tiled": (values, {"tile": (32, 48), **predicted}),
        "planar": (values.transpose(2, 0, 1), {"planarconfig": "separate", "rowsperstrip": 8}),
        "grey-16": (deep(1)[..., 0], predicted),
        "rgb-16": (deep(3), {"rowsperstrip": 10, **predicted}),
        "rgb-16-big-endian": (deep(3), {"byteorder": ">", **predicted}),
        "rgba-16": (deep(4), {**alpha, **predicted}),
        "cmyk": (np.asarray(_cmyk()), cmyk),
    }
    for name, (array, options) in kinds.items():
        settings = {
            "photometric": "minisblack" if array.ndim == 2 else "rgb",
            "iccprofile": icc("Adobe RGB") if array.ndim == 3 and name != "cmyk" else None,
            "resolution": (DPI, DPI),
            "resolutionunit": "inch",
            "extratags": [(700, "B", len(XMP), XMP, True), (315, "s", 0, "An artist", True)],
            "metadata": None,
            **options,
        }
        write = functools.partial(tifffile.imwrite, data=array, **settings)
        depth = 8 * array.dtype.itemsize
        needs = ("tifffile", "imagecodecs")
        _add(photographs, folder / f"{name}.tif", write, is_lossless=True, depth=depth, needs=needs)
    for name, compression in {"lzw": "tiff_lzw", "packbits": "packbits"}.items():
        options = {"compression": compression, "tiffinfo": {274: 3}, "dpi": (DPI, DPI)}
        save = functools.partial(_save, scene_8_bit(), "TIFF", options)
        path = folder / f"{name}-orientation-3.tif"
        _add(photographs, path, save, is_lossless=True, needs=("tifffile", "imagecodecs"))


def _write_others(folder: Path, photographs: list[Photograph]) -> None:
    rgb, data = scene_8_bit(), {"exif": exif(5), "xmp": XMP, "icc_profile": icc("Display P3")}
    lossless = {"lossless": True, "exact": True}
    alpha = _with_alpha(rgb)
    save = functools.partial
    transparent = save(_save, alpha, "WEBP", lossless)
    _add(photographs, folder / "lossless.webp", transparent, is_lossless=True)
    everything = save(_save, rgb, "WEBP", data | lossless)
    _add(photographs, folder / "everything.webp", everything, is_lossless=True)
    lossy = save(_save, rgb, "WEBP", {"quality": 90})
    _add(photographs, folder / "lossy.webp", lossy, is_lossless=False)
    _add(photographs, folder / "rgb.bmp", save(_save, rgb, "BMP", {}), is_lossless=True)
    avif = save(_save, rgb, "AVIF", {"quality": 85} | data)
    _add(photographs, folder / "photo.avif", avif, is_lossless=False)
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()
    heic = save(_save, rgb, "HEIF", {"quality": 90, "exif": exif(1), "xmp": XMP})
    _add(photographs, folder / "photo.heic", heic, is_lossless=False, needs=("pillow_heif",))


def write_large(folder: Path, suffix: str = ".jpg") -> Path:
    """Write a picture of 24 megapixels."""
    small = scene_8_bit(1500, 1000)
    path = folder / f"large{suffix}"
    small.resize((6000, 4000), Image.Resampling.BICUBIC).save(path, quality=92, exif=exif(1))
    return path


def write_broken(folder: Path) -> list[Path]:
    """Write files that are no pictures, or are damaged."""
    contents = {
        "empty.jpg": b"",
        "text.png": b"not a picture",
        "cut.jpg": encoded(scene_8_bit(), "JPEG")[:900],
        "cut.png": encoded(scene_8_bit(), "PNG")[:2000],
        "cut.webp": encoded(scene_8_bit(), "WEBP")[:500],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def deep(channels: int) -> np.ndarray:
    """Return the picture as uint16 [H, W, channels]; an even number has alpha as the last one."""
    values = scene()
    if channels < 3:
        values = values.mean(axis=-1, keepdims=True)
    if channels in (2, 4):
        values = np.concatenate([values, _alpha()[..., None]], axis=-1)
    return np.rint(65535 * values).astype(np.uint16)


def _alpha() -> np.ndarray:
    """Return an alpha channel, 0..1: opaque on the left, transparent at the right edge."""
    alpha = np.clip(np.linspace(1.6, -0.1, WIDTH), 0, 1)
    return np.broadcast_to(alpha, (HEIGHT, WIDTH))


def _with_alpha(rgb: Image.Image) -> Image.Image:
    result = rgb.copy()
    result.putalpha(Image.fromarray(np.rint(255 * _alpha()).astype(np.uint8)))
    return result


def _cmyk() -> Image.Image:
    """Return the picture in CMYK, with black."""
    ink = 1 - scene()
    black = 0.7 * ink.min(axis=-1, keepdims=True)
    values = np.concatenate([(ink - black) / (1 - black), black], axis=-1)
    data = np.rint(255 * values).astype(np.uint8).tobytes()
    return Image.frombytes("CMYK", (WIDTH, HEIGHT), data)


def _save(image: Image.Image, image_format: str, options: dict[str, Any], path: Path) -> None:
    image.save(path, image_format, **options)


def _write_bytes(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def encoded(image: Image.Image, image_format: str) -> bytes:
    """Return the bytes of a picture's file."""
    file = BytesIO()
    image.save(file, image_format)
    return file.getvalue()
