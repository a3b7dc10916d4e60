"""Images are stored upright, and nothing in them says otherwise."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from in21k.preprocess.images.image import ImageSettings, store_image

from .stored_images import KEEP, Decode, Draw, Encode, check_stored, difference, exif_of, with_segment


@pytest.mark.parametrize("size", [224, 32], ids=["same size", "resized"])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_stored_upright(
    draw: Draw, encode: Encode, decode: Decode, resizer: str, orientation: int, image_format: str, size: int
) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(draw(60, 40), image_format, exif=exif_of(orientation), **options)
    upright = ImageOps.exif_transpose(decode(data))
    stored = store_image(data, ImageSettings(size=size, resizer=resizer))
    picture = check_stored(stored)
    assert ("rotated" in stored.changes) == (orientation != 1)
    assert (stored.source_width, stored.source_height) == upright.size == ((60, 40) if orientation < 5 else (40, 60))
    wanted = upright if size == 224 else upright.resize((32, 32), Image.Resampling.BILINEAR)
    assert difference(picture, wanted) < 5


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_an_orientation_that_makes_no_sense_is_upright(draw: Draw, encode: Encode, orientation: int) -> None:
    stored = store_image(encode(draw(60, 40), exif=exif_of(orientation)), KEEP)
    assert (check_stored(stored).size, stored.changes) == ((60, 40), ["EXIF removed"])


XMP = b"http://ns.adobe.com/xap/1.0/\0"


def xmp_of(orientation: int | str, element: bool = False) -> bytes:
    if element:
        return f"<rdf:Description><tiff:Orientation>{orientation}</tiff:Orientation></rdf:Description>".encode()
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


@pytest.mark.parametrize("size", [224, 32], ids=["same size", "resized"])
@pytest.mark.parametrize("element", [False, True], ids=["attribute", "element"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_by_their_xmp_too(
    draw: Draw, encode: Encode, decode: Decode, resizer: str, orientation: int, element: bool, size: int
) -> None:
    plain = encode(draw(60, 40))
    upright = ImageOps.exif_transpose(decode(encode(draw(60, 40), exif=exif_of(orientation))))
    data = with_segment(plain, 0xE1, XMP + xmp_of(orientation, element))
    stored = store_image(data, ImageSettings(size=size, resizer=resizer))
    picture = check_stored(stored)
    assert ("rotated" in stored.changes) == (orientation != 1)
    assert (stored.source_width, stored.source_height) == upright.size
    assert difference(picture, upright if size == 224 else upright.resize((32, 32), Image.Resampling.BILINEAR)) < 5
    if orientation == 1 and size == 224:
        assert (stored.data, stored.changes) == (plain, ["XMP removed"])


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("by_exif", "by_xmp"), [(1, 6), (6, 1), (3, 8), (9, 6)])
def test_exif_goes_before_xmp(
    draw: Draw, encode: Encode, decode: Decode, resizer: str, by_exif: int, by_xmp: int, image_format: str
) -> None:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp_of(by_xmp).decode())
    options = {"PNG": {"pnginfo": info}, "WEBP": {"xmp": xmp_of(by_xmp), "lossless": True}}.get(image_format, {})
    data = encode(draw(60, 40), image_format, exif=exif_of(by_exif), **options)
    if image_format == "JPEG":
        data = with_segment(data, 0xE1, XMP + xmp_of(by_xmp))
    upright = ImageOps.exif_transpose(decode(data))
    assert (upright.size == (60, 40)) == (by_exif != 6)
    assert difference(check_stored(store_image(data, ImageSettings(resizer=resizer))), upright) < 5


def test_no_orientation_of_any_kind_is_left(draw: Draw, encode: Encode, resizer: str) -> None:
    """Also in Photoshop's data, where ImageMagick looks, and in segments that only their marker tells."""
    plain = encode(draw(60, 40), comment=b"drawn", icc_profile=b"a profile")
    tiff = exif_of(6).tobytes().removeprefix(b"Exif\0\0")
    photoshop = b"Photoshop 3.0\0" + b"8BIM\x04\x22\0\0" + len(tiff).to_bytes(4) + tiff
    data = with_segment(plain, 0xED, photoshop)
    data = with_segment(data, 0xE1, b"exif!\0" + tiff)
    data = with_segment(data, 0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + xmp_of(6))
    stored = store_image(data, ImageSettings(resizer=resizer))
    assert (stored.data, stored.changes) == (plain, ["Photoshop data removed", "XMP removed"])


@pytest.mark.parametrize("name", ["xmp6.jpg", "xmp6-exif1.jpg", "xmp-not-utf8.jpg"])
@pytest.mark.parametrize("resize", ["none", "squish"])
def test_real_files_with_xmp_are_stored_upright(data_folder: Path, resizer: str, name: str, resize: str) -> None:
    data = (data_folder / "faults" / name).read_bytes()
    stored = store_image(data, ImageSettings(resize=resize, resizer=resizer))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (stored.source_width, stored.source_height) == upright.size
    assert difference(check_stored(stored), upright.resize((stored.width, stored.height))) < 6


def test_exif_is_cut_out_without_touching_anything_else(draw: Draw, encode: Encode, resizer: str) -> None:
    """The thumbnail in the EXIF is a JPEG itself, with its own end-of-image marker."""
    exif = exif_of(1)
    exif[0x9286] = encode(draw(16, 16))
    options: dict[str, Any] = {"comment": b"drawn", "icc_profile": b"a profile", "progressive": True}
    data, plain = encode(draw(), exif=exif, **options), encode(draw(), **options)
    assert len(data) > len(plain)
    stored = store_image(data, ImageSettings(resizer=resizer))
    check_stored(stored)
    assert (stored.data, stored.changes) == (plain, ["EXIF removed"])


def test_fill_bytes_between_segments_are_no_exif(draw: Draw, encode: Encode) -> None:
    plain = encode(draw())
    data = plain[:2] + b"\xff" + plain[2:]
    stored = store_image(data, KEEP)
    assert (stored.data, stored.changes) == (data, [])


def test_unreadable_exif_is_a_warning(draw: Draw, encode: Encode) -> None:
    plain = encode(draw())
    segment = b"Exif\0\0" + b"II*\0\x08\0\0\0\xff\xff" + bytes(20)
    data = plain[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2) + segment + plain[2:]
    stored = store_image(data, KEEP)
    assert (stored.data, stored.changes[0]) == (plain, "EXIF removed")
    assert all(change.startswith("warning: ") for change in stored.changes[1:])
