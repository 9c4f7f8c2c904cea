"""Ordinary image files, to and from arrays. Needs pillow, an extra of the application."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["png", "read_image"]

FORMATS = "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"
"""What is read, whatever a file is called. Not what else pillow knows: PostScript, for one, it hands to a program."""
SIXTEEN_BITS = "PNG", "PPM"
"""Formats whose images of the mode "I" (32 bits) have numbers from 0 to 65,535; of others the range is not known."""


class _Unclear(ValueError):
    """The pixels have no range that could be scaled to 8 bits."""


def read_image(path: str | Path, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """Read an image as a network wants it: upright, transparent parts white, scaled until it just covers `size`, the centre cut out.

    Args:
        path: a file of one of the `FORMATS`; of several frames the first is taken.
        size: height and width in pixels.
        channels: 3 for red, green and blue, 1 for grey.

    Returns:
        uint8 (H, W, channels).

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is not an image, is damaged, has too many pixels, or numbers for pixels whose range it does not say; or other channels.
    """
    if channels not in (1, 3):
        raise ValueError(f"read_image: channels is {channels}; an image is read with 3 (colour) or with 1 (grey)")
    height, width = size
    try:
        # Pillow warns of many pixels, and of notes in a file (EXIF) that it cannot read: neither keeps an image from being read.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            if image.mode == "F" or (image.mode == "I" and image.format not in SIXTEEN_BITS):
                kind = "fractions" if image.mode == "F" else "whole numbers of 32 bits"
                raise _Unclear(f"{path} has {kind} as pixels, which may mean anything; save it with 8 or 16 bits each")
            sixteen_bits = any("16" in str(tile[3]) for tile in image.tile)  # a channel, in the file
            ImageOps.exif_transpose(image, in_place=True)
            opaque = _opaque(image, sixteen_bits)
            fitted = ImageOps.fit(opaque.convert("RGB" if channels == 3 else "L"), (width, height), Image.Resampling.BICUBIC)
            return np.array(fitted).reshape(height, width, channels)
    except (_Unclear, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image that can be read (JPEG, PNG, WebP, GIF, BMP, TIFF and PPM can)") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} has too many pixels ({error})") from error
    except OSError as error:
        if error.strerror:  # the system's own reason: missing, a folder, not permitted
            raise type(error)(error.errno, f"cannot read {path}: {error.strerror}") from error
        raise _damaged(path, error) from error  # pillow's: cut short
    except Exception as error:  # each of pillow's decoders has its own: SyntaxError, RuntimeError, NotImplementedError, struct.error, ...
        raise _damaged(path, error) from error


def _opaque(image: Image.Image, sixteen_bits: bool) -> Image.Image:
    """The image in 8 bits a channel, its transparent parts white."""
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would cut off at 255
        grey = np.asarray(image).astype(np.uint16, copy=False)
        levels = (grey // 257).astype(np.uint8)
        levels[grey == image.info.get("transparency", -1)] = 255
        return Image.fromarray(levels)
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    key = image.info.get("transparency")
    if isinstance(key, tuple) and sixteen_bits:  # of which pillow has cut the pixels to 8, but not the key
        image.info["transparency"] = tuple([part >> 8 for part in key])
    upon = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", upon.size, "white"), upon)


def _damaged(path: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged, or of a kind that cannot be read ({str(error) or type(error).__name__})")


def png(image: np.ndarray) -> bytes:
    """An image uint8 (H, W, 3), or a grey one (H, W, 1) or (H, W), as the content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(file, format="PNG")
    return file.getvalue()
