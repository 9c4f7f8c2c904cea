"""Image files of every kind that people have, read as a network wants them, and those that cannot be."""

from __future__ import annotations

import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from conformer.image_files import FORMATS, png, read_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def halves(height: int, width: int) -> np.ndarray:
    """An image whose left half is red and whose right half is blue."""
    image = np.empty((height, width, 3), np.uint8)
    image[:, : width // 2], image[:, width // 2 :] = RED, BLUE
    return image


def test_an_image_of_the_right_size_is_read_as_it_is(tmp_path: Path):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    (tmp_path / "image.png").write_bytes(png(image))
    assert_array_equal(read_image(tmp_path / "image.png", (32, 32)), image)


def test_the_centre_of_a_wide_image_is_cut_out(tmp_path: Path):
    wide = np.full((16, 64, 3), 7, np.uint8)
    wide[:, 24:40] = halves(16, 16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    small = read_image(tmp_path / "wide.png", (8, 8))
    assert small.shape == (8, 8, 3)
    assert tuple(small[4, 1]) == RED
    assert tuple(small[4, 6]) == BLUE


def test_a_rectangle_is_given_as_height_and_width(tmp_path: Path):
    Image.fromarray(halves(40, 40)).save(tmp_path / "square.png")
    assert read_image(tmp_path / "square.png", (4, 8)).shape == (4, 8, 3)


def test_it_is_turned_as_the_camera_says(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    Image.fromarray(halves(32, 32)).save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png", (32, 32))
    assert (tuple(image[4, 16]), tuple(image[28, 16])) == (RED, BLUE)


def test_transparent_parts_are_white(tmp_path: Path):
    image = np.zeros((8, 8, 4), np.uint8)
    image[:, :4] = (*RED, 255)
    Image.fromarray(image).save(tmp_path / "alpha.png")
    palette = Image.fromarray(halves(8, 8)).quantize(2)
    palette.info["transparency"] = palette.getpixel((7, 0))
    palette.save(tmp_path / "palette.gif", transparency=palette.getpixel((7, 0)))
    for name in ("alpha.png", "palette.gif"):
        read = read_image(tmp_path / name, (8, 8))
        assert (tuple(read[0, 0]), tuple(read[0, 7])) == (RED, WHITE)


def test_grey_of_8_and_of_16_bits_is_read_alike(tmp_path: Path):
    grey = np.array([[0, 51], [102, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    for name in ("8.png", "16.png"):
        assert_array_equal(read_image(tmp_path / name, (2, 2)), np.repeat(grey[..., None], 3, axis=2))


def test_a_transparent_grey_of_16_bits_is_white(tmp_path: Path):
    grey = Image.fromarray(np.array([[0, 51], [102, 204]], np.uint16) * 257)
    grey.save(tmp_path / "16.png", transparency=51 * 257)
    assert_array_equal(read_image(tmp_path / "16.png", (2, 2))[..., 0], [[0, 255], [102, 204]])


@pytest.mark.parametrize("key", [(30000, 30001, 30002), (200, 100, 50)])
def test_a_transparent_colour_of_16_bits_is_white(key: tuple[int, ...], tmp_path: Path):
    """Pillow writes none of 16 bits a channel, so this one is made by hand: two pixels, of which the key names the second."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = struct.pack(">6H", 0x1111, 0x2222, 0x3333, *key)
    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)), chunk(b"tRNS", pixels[6:]), chunk(b"IDAT", zlib.compress(b"\0" + pixels))
    (tmp_path / "16.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b""))
    assert_array_equal(read_image(tmp_path / "16.png", (1, 2)), [[[0x11, 0x22, 0x33], WHITE]])


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "fractions"), (np.int32, "whole numbers of 32 bits")])
def test_pixels_of_unknown_range_are_refused(dtype: type, kind: str, tmp_path: Path):
    Image.fromarray(np.ones((8, 8), dtype)).save(tmp_path / "grey.tif")
    with pytest.raises(ValueError, match=f"grey.tif has {kind} as pixels, which may mean anything; save it with 8 or 16 bits each"):
        read_image(tmp_path / "grey.tif", (8, 8))


def test_what_is_no_image_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="cannot read .*nothing.png: No such file"):
        read_image(tmp_path / "nothing.png", (8, 8))
    with pytest.raises(IsADirectoryError, match="cannot read .*: Is a directory"):
        read_image(tmp_path, (8, 8))
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="text.png is not an image that can be read"):
        read_image(tmp_path / "text.png", (8, 8))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_images_cut_short_are_named(kind: str, tmp_path: Path):
    path = tmp_path / f"image.{kind}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    for length in (0, len(whole) // 4, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"image\.\w+ is (damaged|not an image)"):
            read_image(path, (8, 8))


@pytest.mark.parametrize("error", [RuntimeError("no frame"), NotImplementedError(), IndexError("out of range")])
def test_whatever_a_decoder_raises_the_image_is_named(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "image.png").write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    monkeypatch.setattr("conformer.image_files.ImageOps.exif_transpose", fail)
    with pytest.raises(ValueError, match=rf"image.png is damaged, or of a kind that cannot be read \({str(error) or 'NotImplementedError'}\)"):
        read_image(tmp_path / "image.png", (8, 8))


def test_a_kind_that_is_not_read_is_refused(tmp_path: Path):
    (tmp_path / "x.dds").write_bytes(b"DDS |\0\0\0" + bytes(120))
    with pytest.raises(ValueError, match=r"x.dds is not an image that can be read \(JPEG, PNG, WebP, GIF, BMP, TIFF and PPM can\)"):
        read_image(tmp_path / "x.dds", (8, 8))


def test_postscript_is_handed_to_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow would start Ghostscript, for a file that is called a JPEG."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # looked for once
    (tmp_path / "cat.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="cat.jpg is not an image that can be read"):
        read_image(tmp_path / "cat.jpg", (8, 8))
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])  # some cameras save JPEG with a second, small picture
def test_every_kind_that_is_named_is_read(kind: str, tmp_path: Path):
    Image.fromarray(halves(32, 32)).save(tmp_path / "image", format=kind, **({"save_all": True} if kind == "MPO" else {}))
    image = read_image(tmp_path / "image", (32, 32)).astype(int)
    assert np.abs(image - halves(32, 32))[:, [0, 8, 24, 31]].max() < 8


def test_a_grey_image_has_one_channel(tmp_path: Path):
    colours = np.zeros((4, 4, 4), np.uint8)
    colours[0], colours[1], colours[2] = (*RED, 255), (*BLUE, 255), (10, 10, 10, 255)  # the last row is transparent
    Image.fromarray(colours).save(tmp_path / "colours.png")
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    assert_array_equal(read_image(tmp_path / "colours.png", (4, 4), channels=1)[:, 0], [[76], [29], [10], [255]])
    for name in ("8.png", "16.png"):
        assert_array_equal(read_image(tmp_path / name, (4, 4), channels=1), grey[..., None])
    with pytest.raises(ValueError, match=r"read_image: channels is 4; an image is read with 3 \(colour\) or with 1 \(grey\)"):
        read_image(tmp_path / "8.png", (4, 4), channels=4)


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8, 1), (8, 8)])
def test_images_come_back_from_their_file(shape: tuple[int, ...], tmp_path: Path):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    (tmp_path / "image.png").write_bytes(png(image))
    assert_array_equal(read_image(tmp_path / "image.png", (8, 8), channels=1 if shape[2:] != (3,) else 3).reshape(shape), image)


def test_16_bits_take_little_memory(tmp_path: Path):
    Image.fromarray(np.zeros((500, 500), np.uint16)).save(tmp_path / "16.png")
    tracemalloc.start()
    read_image(tmp_path / "16.png", (8, 8))
    assert tracemalloc.get_traced_memory()[1] < 8 * 500 * 500  # bytes; in 64 bits a single copy has as many
    tracemalloc.stop()


def test_a_large_image_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "large.png").write_bytes(png(np.zeros((12, 12, 3), np.uint8)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(tmp_path / "large.png", (8, 8)).shape == (8, 8, 3)


def test_notes_that_are_damaged_do_not_matter(tmp_path: Path):
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x010F, 2, 100, 1000)  # the maker's name, beyond the end
    Image.fromarray(halves(16, 16)).save(tmp_path / "notes.jpg", exif=exif)
    with warnings.catch_warnings(action="error"):
        assert read_image(tmp_path / "notes.jpg", (8, 8)).shape == (8, 8, 3)


def test_an_image_of_absurd_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "large.png").write_bytes(png(np.zeros((40, 40, 3), np.uint8)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="large.png has too many pixels"):
        read_image(tmp_path / "large.png", (8, 8))
