"""Ordinary image files, to and from arrays. Needs pillow, an extra of the application."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["png", "read_image"]


def read_image(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Read an image as a network wants it: upright, transparent parts white, scaled until it just covers `size`, the centre cut out.

    Args:
        path: a file that pillow can read; of several frames the first is taken.
        size: height and width in pixels.

    Returns:
        uint8 (H, W, 3).

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is not an image, is damaged, or has too many pixels.
    """
    height, width = size
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if "A" in upright.getbands() or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                ground = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(ground, upright)
            elif upright.mode.startswith("I"):  # 16 bits of grey, which convert("RGB") would cut off at 255
                upright = Image.fromarray(np.clip(np.asarray(upright, np.int64) // 257, 0, 255).astype(np.uint8))
            fitted = ImageOps.fit(upright.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
            return np.array(fitted)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image that can be read (JPEG, PNG, WebP and GIF can)") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} has too many pixels ({error})") from error
    except OSError as error:
        if error.strerror:  # the system's own reason: missing, a folder, not permitted
            raise type(error)(error.errno, f"cannot read {path}: {error.strerror}") from error
        raise ValueError(f"{path} is damaged ({error})") from error  # pillow's: cut short
    except (SyntaxError, ValueError) as error:  # pillow's, for a broken PNG
        raise ValueError(f"{path} is damaged ({error})") from error


def png(image: np.ndarray) -> bytes:
    """An image uint8 (H, W, 3) as the content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()
