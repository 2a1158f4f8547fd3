"""Bytes of an image file to an array, by pillow.

bytes --open, turn as EXIF says, onto white--> shorter side to `size` (bicubic, antialiased) --> middle cut out

What is transparent is laid on white. More than 8 bits a channel are refused, as pillow cuts them in colour pictures.
"""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
_MODES = {1: "L", 3: "RGB"}
_BITS_PER_SAMPLE = 258  # a tag of TIFF
_MOST_PIXELS = 2**26  # 8192 x 8192: beyond, a small file may stand for more memory than there is


def decode_image(data: bytes, where: str, *, size: int | None, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """An image [h, w, c] of bytes.

    Args:
      data: of a file in one of FORMATS. Of a moving picture, the first frame.
      where: what the file is called in errors.
      size: pixels a side of the square that is cut from the middle, after the shorter side was scaled to it; None
        leaves the image as it is.
      channels: 3 (colours) or 1 (grey). Transparent parts are laid on white.

    Raises:
      ValueError: it cannot be decoded, is larger than 2^26 pixels, or has more than 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return prepare_image(image, size=size, channels=channels)
    except UnidentifiedImageError:  # its own text tells where in memory the bytes were
        raise ValueError(
            f"{where}: image cannot be decoded: it is none of {', '.join(FORMATS)}, or cut short"
        ) from None
    except Exception as error:  # a damaged file makes pillow's decoders raise nearly anything
        raise ValueError(f"{where}: image cannot be decoded: {error}") from error


def prepare_image(image: Image.Image, *, size: int | None, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """An opened image as an array [h, w, c]; arguments and errors as `decode_image`."""
    if image.width * image.height > _MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} is more than {_MOST_PIXELS:,} pixels")
    depth = _deeper(image)
    if depth is not None:
        raise ValueError(
            f"8 bits a channel are needed, got {depth}; convert it, or give floats in [-1, 1] in an .npz to keep them"
        )
    ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
    if size is not None and image.size != (size, size):
        image = _square(image, size)
    found = np.array(image)
    return found[..., None] if found.ndim == 2 else found


def _deeper(image: Image.Image) -> str | None:
    """What has more than 8 bits a channel in an image that was opened but not decoded yet; None where nothing has.

    Pillow decodes grey pictures of 16 bits into modes of their own, but keeps the high bytes alone of coloured ones.
    """
    if image.mode.startswith(("I", "F")):
        return f"pillow's mode {image.mode}"
    bits = max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,)))
    if bits > 8:
        return f"{bits}"
    for tile in getattr(image, "tile", ()):
        given = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        for part in given:
            if (isinstance(part, str) and ";16" in part and image.format == "PNG") or (
                isinstance(part, int) and part > 255 and image.format == "PPM"
            ):
                return "16"
    return None


def _square(image: Image.Image, size: int) -> Image.Image:
    """Scaled and cut in one go: the largest square in the middle, to size x size; pixels around it count at its rim."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
