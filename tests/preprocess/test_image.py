from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import re
import subprocess
import sys
import tarfile
import warnings
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from in21k.preprocess import image as image_module
from in21k.preprocess import jpeg
from in21k.preprocess.image import ImageSettings, RejectedImageError, StoredImage, store_image
from in21k.preprocess.resize import PillowResizer, fit, get_resizer

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]
Decode = Callable[[bytes], Image.Image]

ORIENTATION = 0x0112
KEEP = ImageSettings(resize="none")


@pytest.fixture(params=["pillow", "opencv"])
def resizer(request: pytest.FixtureRequest) -> str:
    if request.param == "opencv":
        pytest.importorskip("cv2", reason="OpenCV is not installed")
    return request.param


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010E] = "a caption"
    return exif


def difference(one: Image.Image, two: Image.Image) -> float:
    """Mean absolute difference of pixels, 0 to 255."""
    assert one.size == two.size
    return float(np.abs(np.asarray(one.convert("RGB"), float) - np.asarray(two.convert("RGB"), float)).mean())


def check_stored(stored: StoredImage) -> Image.Image:
    """Hold a stored image against what all of them are: a JPEG, RGB or L, upright, without EXIF, of the size said."""
    picture = Image.open(io.BytesIO(stored.data))
    picture.load()
    assert (picture.format, picture.size) == ("JPEG", (stored.width, stored.height))
    assert picture.mode in ("RGB", "L")
    assert not {"exif", "xmp", "photoshop"} & picture.info.keys()
    assert len(picture.getexif()) == 0
    return picture


@given(
    st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(["squish", "short-edge", "none"]), st.integers(1, 512)
)
def test_images_fit_the_size_and_smaller_ones_stay(width: int, height: int, resize: str, size: int) -> None:
    target = fit(width, height, resize, size)
    if resize == "none" or max(width, height) < size:
        assert target == (width, height, None)
    elif resize == "squish":
        assert target == (size, size, None)
    else:
        assert min(target.size) == size
        assert target.scale == size / min(width, height)
        assert abs(max(target.size) - max(width, height) * target.scale) <= 0.5
        assert target.size == fit(height, width, resize, size).size[::-1]


@settings(max_examples=400)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 300))
def test_sizes_of_the_short_edge_are_those_that_cv2_rounds_to(width: int, height: int, size: int) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    target = fit(width, height, "short-edge", size)
    if target.scale and max(target.size) < 20_000:
        pixels = cv2.resize(np.zeros((height, width), np.uint8), None, None, fx=target.scale, fy=target.scale)
        assert target.size == pixels.shape[::-1]


@pytest.mark.parametrize(
    ("resize", "source", "wanted"),
    [
        ("squish", (100, 60), (48, 48)),
        ("squish", (48, 20), (48, 48)),
        ("squish", (47, 20), (47, 20)),
        ("short-edge", (100, 60), (80, 48)),
        ("short-edge", (60, 100), (48, 80)),
        ("short-edge", (47, 20), (47, 20)),
        ("none", (100, 60), (100, 60)),
    ],
)
def test_images_are_resized_as_asked_and_those_that_keep_their_size_keep_their_bytes(
    draw: Draw,
    encode: Encode,
    resizer: str,
    resize: str,
    source: tuple[int, int],
    wanted: tuple[int, int],
) -> None:
    data = encode(draw(*source))
    stored = store_image(data, ImageSettings(resize=resize, size=48, resizer=resizer))
    assert check_stored(stored).size == wanted
    assert (stored.source_width, stored.source_height, stored.source_format) == (*source, "JPEG")
    assert stored.changes == ([] if source == wanted else ["resized"])
    assert (stored.data == data) == (source == wanted)


def test_a_resized_image_looks_like_the_original(draw: Draw, encode: Encode, decode: Decode, resizer: str) -> None:
    data = encode(draw(90, 70), quality=95)
    stored = store_image(data, ImageSettings(size=40, resizer=resizer))
    wanted = decode(data).resize((40, 40), Image.Resampling.BILINEAR)
    assert difference(check_stored(stored), wanted) < 4


def by_the_references_scripts(data: bytes, resize: str, size: int) -> bytes:
    """Store an image of sides of at least the size as the reference's scripts do, with cv2's own calls."""
    cv2 = importlib.import_module("cv2")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    scale = size / min(pixels.shape[:2])
    how = {"dsize": (size, size)} if resize == "squish" else {"dsize": None, "fx": scale, "fy": scale}
    return cv2.imencode(".jpg", cv2.resize(pixels, **how))[1].tobytes()


@pytest.mark.parametrize("resize", ["squish", "short-edge"])
def test_opencv_gives_the_bytes_of_the_references_scripts(draw: Draw, encode: Encode, resize: str) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    ways: list[dict[str, Any]] = [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"quality": 40}]
    ways += [{"exif": exif_of(orientation)} for orientation in range(2, 9)]
    for image in (draw(90, 70), draw(301, 33), draw(33, 61), draw(64, 65), draw(60, 90).convert("L")):
        for way in ways:
            data = encode(image, **way)
            stored = store_image(data, ImageSettings(resize=resize, size=32, resizer="opencv"))
            assert stored.data == by_the_references_scripts(data, resize, 32)
            assert check_stored(stored)
    small = store_image(encode(draw()), ImageSettings(resize=resize, size=400, resizer="opencv"))
    assert (small.data, small.changes) == (encode(draw()), [])


@pytest.mark.parametrize("resize", ["squish", "short-edge"])
def test_opencv_gives_the_references_bytes_of_real_images(data_folder: Path, resize: str) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    num_images = 0
    with tarfile.open(data_folder / "fall11-mini.tar") as archive:
        for member in islice(archive, 0, None, 4):
            with tarfile.open(fileobj=archive.extractfile(member)) as images:
                image = images.next()
                data = images.extractfile(image).read() if image else b""
            with Image.open(io.BytesIO(data)) as opened:
                is_plain = opened.format == "JPEG" and opened.mode in ("RGB", "L")
                sizes = [size for size in (224, 256, 87) if max(opened.size) >= size]
            for size in sizes if is_plain else ():
                stored = store_image(data, ImageSettings(resize=resize, size=size, resizer="opencv"))
                if "resized" in stored.changes:  # one that has the size already keeps its bytes
                    assert stored.data == by_the_references_scripts(data, resize, size)
                    num_images += 1
    assert num_images > 100


def rgba(draw: Draw) -> Image.Image:
    image = draw().convert("RGBA")
    image.putalpha(draw(seed=1).convert("L"))
    return image


def sixteen_bit(draw: Draw) -> Image.Image:
    return Image.fromarray(np.asarray(draw().convert("L")).astype(np.uint16) * 257)


MODES: dict[str, tuple[Callable[[Draw], Image.Image], str, str, list[str]]] = {
    "CMYK": (lambda draw: draw().convert("CMYK"), "JPEG", "RGB", ["CMYK to RGB"]),
    "greyscale": (lambda draw: draw().convert("L"), "JPEG", "L", []),
    "MPO": (lambda draw: draw(), "MPO", "RGB", ["from MPO"]),
    "PNG": (lambda draw: draw(), "PNG", "RGB", ["from PNG"]),
    "GIF": (lambda draw: draw().quantize(), "GIF", "RGB", ["from GIF", "P to RGB"]),
    "BMP": (lambda draw: draw(), "BMP", "RGB", ["from BMP"]),
    "WebP": (lambda draw: draw(), "WEBP", "RGB", ["from WEBP"]),
    "palette PNG": (lambda draw: draw().quantize(), "PNG", "RGB", ["from PNG", "P to RGB"]),
    "PNG with alpha": (rgba, "PNG", "RGB", ["from PNG", "RGBA to RGB"]),
    "WebP with alpha": (rgba, "WEBP", "RGB", ["from WEBP", "RGBA to RGB"]),
    "grey PNG with alpha": (lambda draw: rgba(draw).convert("LA"), "PNG", "L", ["from PNG", "LA to L"]),
    "16-bit PNG": (sixteen_bit, "PNG", "L", ["from PNG", "I;16 to L"]),
    "black and white PNG": (lambda draw: draw().convert("1"), "PNG", "L", ["from PNG", "1 to L"]),
}


@pytest.mark.parametrize("size", [224, 32], ids=["same size", "resized"])
@pytest.mark.parametrize("kind", MODES)
def test_every_kind_of_image_becomes_an_rgb_or_grey_jpeg_and_the_changes_say_so(
    draw: Draw, encode: Encode, decode: Decode, resizer: str, kind: str, size: int
) -> None:
    make, image_format, mode, changes = MODES[kind]
    options = {"save_all": True, "append_images": [draw(seed=1)]} if image_format == "MPO" else {}
    data = encode(make(draw), image_format, **options)
    stored = store_image(data, ImageSettings(size=size, resizer=resizer))
    picture = check_stored(stored)
    assert stored.source_format == image_format
    assert [change for change in stored.changes if change != "resized"] == changes
    assert ("resized" in stored.changes) == (size == 32)
    assert picture.mode in (mode, "RGB")
    assert resizer == "opencv" or picture.mode == mode
    if kind not in ("CMYK", "black and white PNG"):  # cv2 has other ink colours; dither does not survive JPEG
        grey = sixteen_bit(draw) if kind == "16-bit PNG" else None
        pixels = draw().convert("L") if grey else decode(data).convert(mode)
        wanted = pixels if size == 224 else pixels.resize((32, 32), Image.Resampling.BILINEAR)
        assert difference(picture, wanted) < 6


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


def with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    """Put a segment before all others of a JPEG."""
    return data[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content + data[2:]


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


def reject_reason(data: bytes, settings: ImageSettings) -> str:
    with pytest.raises(RejectedImageError) as rejected:
        store_image(data, settings)
    assert rejected.value.detail
    return rejected.value.reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"no image at all", "not an image"), (bytes(5000), "not an image"), (b"\xff\xd8\xff", None)],
    ids=["empty", "text", "zeros", "the beginning of a JPEG"],
)
def test_what_is_no_image_is_rejected(resizer: str, data: bytes, reason: str | None) -> None:
    found = reject_reason(data, ImageSettings(resizer=resizer))
    assert found == reason or reason is None


@pytest.mark.parametrize("image_format", ["TIFF", "PPM", "PDF"])
def test_formats_of_no_archive_are_rejected(draw: Draw, encode: Encode, image_format: str) -> None:
    assert reject_reason(encode(draw(), image_format), KEEP) == "not an image"


@pytest.mark.parametrize("size", [224, 32], ids=["same size", "resized"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_jpeg_that_lacks_scan_data_is_rejected(
    draw: Draw, encode: Encode, resizer: str, part: float, progressive: bool, size: int
) -> None:
    data = encode(draw(80, 80), progressive=progressive)
    scan = data.index(b"\xff\xda")
    cut = data[: scan + 20 + int((len(data) - scan - 20) * part)]
    assert reject_reason(cut, ImageSettings(size=size, resizer=resizer)) == "truncated"


@pytest.mark.parametrize("size", [224, 32], ids=["same size", "resized"])
def test_a_jpeg_that_lacks_its_end_marker_alone_is_mended(
    draw: Draw, encode: Encode, decode: Decode, resizer: str, size: int
) -> None:
    data = encode(draw(80, 80))
    assert data.endswith(b"\xff\xd9")
    stored = store_image(data[:-2], ImageSettings(size=size, resizer=resizer))
    assert stored.changes == (["end mended"] if size == 224 else ["end mended", "resized"])
    picture = check_stored(stored)
    wanted = decode(data)
    assert difference(picture, wanted if size == 224 else wanted.resize((32, 32), Image.Resampling.BILINEAR)) < 4


def test_bytes_after_the_end_marker_do_no_harm(draw: Draw, encode: Encode, resizer: str) -> None:
    stored = store_image(encode(draw()) + b"more", ImageSettings(resizer=resizer))
    assert check_stored(stored).size == (48, 40)


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "WEBP", "BMP"])
def test_other_formats_cut_short_are_rejected(draw: Draw, encode: Encode, resizer: str, image_format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8))
    data = encode(noise, image_format)
    assert reject_reason(data[: len(data) // 2], ImageSettings(size=32, resizer=resizer)) in (
        "undecodable",
        "truncated",
    )


def test_too_many_pixels_are_rejected_before_they_are_decoded(
    draw: Draw, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(draw(48, 40))
    monkeypatch.setattr(image_module, "MAX_PIXELS", 48 * 40)
    store_image(data, KEEP)
    monkeypatch.setattr(image_module, "MAX_PIXELS", 48 * 40 - 1)
    assert reject_reason(data, KEEP) == "too large"


def test_a_decompression_bomb_is_rejected(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("L", (100, 100)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    assert reject_reason(data, KEEP) == "too large"


def test_warnings_of_the_decoder_are_kept(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)  # Pillow warns above it
    stored = store_image(data, KEEP)
    assert len(stored.changes) == 1
    assert stored.changes[0].startswith("warning: Image size (10000 pixels) exceeds")
    assert stored.data == data


def with_rubbish(data: bytes) -> bytes:
    return data[:-2] + b"more than what was asked for" + data[-2:]


@pytest.mark.parametrize("size", [224, 32], ids=["same size", "resized"])
@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK", "rotated", "progressive"])
def test_warnings_of_libjpeg_are_kept(draw: Draw, encode: Encode, resizer: str, kind: str, size: int) -> None:
    options: dict[str, Any] = {"progressive": {"progressive": True}, "rotated": {"exif": exif_of(6)}}.get(kind, {})
    data = encode(draw().convert(kind) if kind in ("L", "CMYK") else draw(), **options)
    stored = store_image(with_rubbish(data), ImageSettings(size=size, resizer=resizer))
    check_stored(stored)
    warned = [change for change in stored.changes if change.startswith("warning: ")]
    assert re.fullmatch(r"warning: Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9", *warned)
    if kind in ("RGB", "L", "progressive") and size == 224:
        assert (stored.data, len(stored.changes)) == (with_rubbish(data), 1)


@pytest.mark.parametrize("size", [224, 32], ids=["same size", "resized"])
def test_scan_data_that_is_lost_inside_a_jpeg_is_a_warning(draw: Draw, encode: Encode, resizer: str, size: int) -> None:
    data = encode(draw(80, 80), quality=95)
    stored = store_image(data[: len(data) - 500] + data[-2:], ImageSettings(size=size, resizer=resizer))
    check_stored(stored)
    assert stored.changes[-1] == "warning: Corrupt JPEG data: premature end of data segment"


def test_an_error_of_the_decoder_is_no_warning(draw: Draw, encode: Encode, resizer: str) -> None:
    first, second, rest = encode(draw(), progressive=True).split(b"\xff\xda", 2)
    unknown = first + b"\xff\xda" + second + b"\xff\xb4" + rest  # where the second scan was: no known marker
    assert reject_reason(unknown, ImageSettings(resizer=resizer)) == "undecodable"


def frame(data: bytes, marker: int, bits: int = 8) -> bytes:
    """Change the marker of a JPEG's frame header and its bits a sample."""
    start = data.index(b"\xff\xc0")
    return data[: start + 1] + bytes([marker]) + data[start + 2 : start + 4] + bytes([bits]) + data[start + 5 :]


@pytest.mark.parametrize("size", [224, 32], ids=["same size", "resized"])
@pytest.mark.parametrize(("marker", "bits"), [(0xC1, 12), (0xC3, 8), (0xC5, 8), (0xC9, 8), (0xCA, 8), (0xCB, 8)])
def test_jpegs_of_rare_codings_are_recoded_or_rejected(
    draw: Draw, encode: Encode, resizer: str, marker: int, bits: int, size: int
) -> None:
    try:
        stored = store_image(frame(encode(draw()), marker, bits), ImageSettings(size=size, resizer=resizer))
    except RejectedImageError:
        return
    check_stored(stored)
    assert stored.changes[0] in ("recoded", "resized")


def stored_elsewhere(data: bytes, resizer: str, size: int) -> bytes:
    """Store an image in a process of its own, which a decoder may end."""
    program = (
        "import sys; from in21k.preprocess.image import ImageSettings, store_image;"
        f"settings = ImageSettings(resizer={resizer!r}, size={size});"
        "sys.stdout.buffer.write(store_image(sys.stdin.buffer.read(), settings).data)"
    )
    return subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("size", [512, 224, 40], ids=["same size", "half size", "eighth of the size"])
def test_a_lossless_jpeg_is_stored(
    draw: Draw, encode_lossless: Encode, decode: Decode, resizer: str, size: int
) -> None:
    """TurboJPEG does not reduce it, and writes all pixels into the room for the reduced ones."""
    picture = draw(500, 375)
    data = encode_lossless(picture)
    assert np.array_equal(np.asarray(decode(data)), np.asarray(picture))
    stored = decode(stored_elsewhere(data, resizer, size))
    assert difference(stored, picture.resize(stored.size, Image.Resampling.BILINEAR)) < 6


@pytest.mark.parametrize("size", [512, 224, 40])
def test_a_real_lossless_jpeg_is_stored(data_folder: Path, decode: Decode, resizer: str, size: int) -> None:
    stored = stored_elsewhere((data_folder / "faults" / "lossless-sof3.jpg").read_bytes(), resizer, size)
    assert decode(stored).size == ((500, 375) if size == 512 else (size, size))


@pytest.mark.parametrize("between", [b"abc", b"\x00", b"\xff\x00", b"\xff\xd0"])
def test_what_lies_between_segments_is_left_out(
    draw: Draw, encode: Encode, decode: Decode, resizer: str, between: bytes
) -> None:
    plain = encode(draw())
    table = plain.index(b"\xff\xdb")
    data = with_segment(plain[:table] + between + plain[table:], 0xE1, exif_of(1).tobytes())
    stored = store_image(data, ImageSettings(resizer=resizer))
    assert stored.changes[0] == "recoded"
    assert all(change.startswith("warning: Corrupt JPEG data: ") for change in stored.changes[1:])
    assert difference(check_stored(stored), decode(plain)) < 4


def test_a_chroma_sampling_that_few_know_is_recoded(draw: Draw, encode: Encode, decode: Decode, resizer: str) -> None:
    data = encode(draw(), subsampling=0)
    sampling = data.index(b"\xff\xc0") + 11
    odd = data[:sampling] + b"\x31" + data[sampling + 1 :]  # luma 3x1 against chroma 1x1
    stored = store_image(odd, ImageSettings(resizer=resizer))
    assert stored.changes[0] == "recoded"
    assert difference(check_stored(stored), decode(odd)) < 6


def ycck(draw: Draw, encode: Encode) -> bytes:
    """Make an Adobe JPEG of inverted CMYK whose transform says YCCK."""
    data = encode(draw().convert("CMYK"))
    adobe = data.index(b"Adobe") + 11
    return data[:adobe] + b"\x02" + data[adobe + 1 :]


def test_inks_in_ycck_are_converted_as_pillow_does(draw: Draw, encode: Encode, decode: Decode, resizer: str) -> None:
    data = ycck(draw, encode)
    picture = check_stored(store_image(data, ImageSettings(resizer=resizer)))
    assert picture.mode == "RGB"
    assert resizer == "opencv" or difference(picture, decode(data).convert("RGB")) < 6


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def odd_png() -> bytes:
    """Make a PNG of 8 x 8 whose colour profile is no profile, which libpng warns of."""
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(b"junk" * 50))
    return png(8, 8, profile, chunk(b"IDAT", zlib.compress(bytes(8 * 25))))


def test_what_a_decoder_prints_is_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    stored = store_image(odd_png(), ImageSettings(resizer="opencv"))
    check_stored(stored)
    assert stored.changes == ["from PNG", "warning: libpng warning: iCCP: too short"]
    assert reject_reason(odd_png()[:-18], ImageSettings(resizer="opencv")) == "undecodable"
    assert capfd.readouterr() == ("", "")


def test_a_decoder_may_print_where_stderr_is_closed() -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    program = (
        "import os, sys; os.close(2); from in21k.preprocess.image import ImageSettings, store_image;"
        "sys.stdout.write(str(store_image(sys.stdin.buffer.read(), ImageSettings(resizer='opencv')).changes))"
    )
    done = subprocess.run([sys.executable, "-c", program], input=odd_png(), capture_output=True, check=True)
    assert done.stdout == b"['from PNG']"


def test_a_small_file_of_very_many_pixels_is_too_large(resizer: str) -> None:
    data = png(60_000, 60_000, chunk(b"IDAT", zlib.compress(bytes(100))))
    assert len(data) < 120
    assert reject_reason(data, ImageSettings(resizer=resizer)) == "too large"


def test_text_that_unpacks_to_very_much_is_rejected(resizer: str) -> None:
    text = chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(100_000_000)))
    rows = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    assert len(text) < 200_000
    assert reject_reason(png(8, 8, text, rows), ImageSettings(resizer=resizer)) == "undecodable"


def test_a_small_file_of_very_long_sides_is_too_wide(resizer: str) -> None:
    """Before it is decoded: its resizer would take gigabytes."""
    for width, height in ((30_000_000, 1), (1, 30_000_000), (1_001, 1), (65_501, 400)):
        data = png(width, height, chunk(b"IDAT", zlib.compress(bytes(100))))
        for resize in ("squish", "short-edge", "none"):
            assert reject_reason(data, ImageSettings(resize=resize, resizer=resizer)) == "too wide"


def test_the_widest_images_are_stored(encode: Encode, resizer: str) -> None:
    for size in ((1_000, 1), (1, 1_000), (65_500, 66)):
        data = encode(Image.new("L", size), "PNG")
        for resize in ("squish", "none"):
            check_stored(store_image(data, ImageSettings(resize=resize, resizer=resizer)))


def test_images_that_would_be_wider_than_any_jpeg_are_too_wide(encode: Encode, resizer: str) -> None:
    data = encode(Image.new("L", (900, 1)), "PNG")
    assert reject_reason(data, ImageSettings(resize="short-edge", size=224, resizer=resizer)) == "too wide"


def of_scans(data: bytes, num_scans: int, width: int, height: int) -> bytes:
    """Give a progressive JPEG other sides and so many empty scans in place of its own."""
    frame = data.index(b"\xff\xc2") + 5
    data = data[:frame] + height.to_bytes(2) + width.to_bytes(2) + data[frame + 4 :]
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00" + b"\x00" * 4
    return data[: data.index(b"\xff\xda")] + scan * num_scans + b"\xff\xd9"


@pytest.mark.parametrize(
    ("num_scans", "width", "height", "is_rejected"),
    [(25, 9_000, 9_000, True), (2_001, 1_000, 1_000, True), (2_000, 1_000, 1_000, False), (300, 40, 30, False)],
)
def test_a_jpeg_of_hundreds_of_scans_over_many_pixels_is_rejected_before_it_is_decoded(
    draw: Draw,
    encode: Encode,
    monkeypatch: pytest.MonkeyPatch,
    num_scans: int,
    width: int,
    height: int,
    is_rejected: bool,
) -> None:
    def decoded(*_: object, **__: object) -> None:
        raise RejectedImageError("decoded", "it got so far")

    monkeypatch.setattr(jpeg, "decode", decoded)
    data = of_scans(encode(draw(), progressive=True), num_scans, width, height)
    assert reject_reason(data, ImageSettings()) == ("too many scans" if is_rejected else "decoded")


def test_scans_are_counted_in_every_coding_that_may_have_several(draw: Draw, encode: Encode) -> None:
    colours = encode(draw(60, 40))
    assert jpeg.read_header(colours).num_scans == 1
    assert jpeg.read_header(colours + b"\xff\xda" * 9).num_scans == 1
    assert jpeg.read_header(encode(draw(60, 40), progressive=True)).num_scans == 10
    scan = colours.index(b"\xff\xda")
    one_of_three = colours[: scan + 2] + b"\x00\x08\x01\x01\x00\x00\x3f\x00"
    assert jpeg.read_header(one_of_three * 3).num_scans == 3
    assert jpeg.read_header(b"\xff\xd8\xff\xd9") == (False, 0)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP"])
def test_the_first_picture_of_an_animation_is_stored(
    draw: Draw, encode: Encode, decode: Decode, resizer: str, image_format: str
) -> None:
    data = encode(draw(), image_format, save_all=True, append_images=[draw(seed=1)], duration=100)
    picture = check_stored(store_image(data, ImageSettings(resizer=resizer)))
    assert difference(picture, decode(data).convert("RGB")) < 6


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # by torchvision, of all its decoders
def test_grey_pictures_are_the_same_to_every_reader(draw: Draw, encode: Encode, decode: Decode) -> None:
    """Why greyscale stays greyscale: readers that want RGB get three equal channels, equal to the bit."""
    for options in ({}, {"progressive": True}, {"quality": 60}):
        data = encode(draw(61, 47).convert("L"), **options)
        stored = store_image(data, KEEP).data
        wanted = np.asarray(decode(stored).convert("RGB"))
        assert (wanted == np.asarray(decode(stored))[..., None]).all()
        for reader, read in READERS.items():
            found = read(np.frombuffer(stored, np.uint8).copy())
            assert found is None or np.array_equal(found, wanted), reader


def read_by_opencv(data: np.ndarray) -> np.ndarray | None:
    cv2 = sys.modules.get("cv2") or (importlib.util.find_spec("cv2") and importlib.import_module("cv2"))
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1] if cv2 else None


def read_by_torchvision(data: np.ndarray) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.from_numpy(data), mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()


def read_by_dali(data: np.ndarray) -> np.ndarray | None:
    if not importlib.util.find_spec("nvidia.dali"):
        return None
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def decoded() -> Any:
        encoded = fn.external_source(source=[[data]], cycle=True, dtype=types.UINT8)
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB)

    pipeline = decoded()
    pipeline.build()
    return np.asarray(pipeline.run()[0].at(0))


READERS: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
    "simplejpeg": lambda data: simplejpeg.decode_jpeg(data.tobytes(), "RGB"),
    "cv2": read_by_opencv,
    "torchvision": read_by_torchvision,
    "DALI": read_by_dali,
}


@given(
    data=st.binary(max_size=200), head=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM"])
)
def test_garbage_is_rejected_and_nothing_else_happens(data: bytes, head: bytes) -> None:
    with pytest.raises(RejectedImageError):
        store_image(head + data, KEEP)


@functools.cache
def real_kinds(draw: Draw, encode: Encode) -> list[bytes]:
    """Return a small file of every kind."""
    image = draw(60, 40)
    return [
        encode(image, exif=exif_of(6)),
        encode(image, progressive=True, subsampling=0),
        encode(image, restart_marker_blocks=2),
        encode(image.convert("L")),
        encode(image.convert("CMYK")),
        encode(image, "PNG"),
        encode(image.quantize(), "PNG", transparency=0),
        encode(image.quantize(), "GIF", save_all=True, append_images=[image.rotate(90).quantize()]),
        encode(image, "WEBP", exif=exif_of(3)),
        encode(image, "BMP"),
    ]


EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 8), st.one_of(st.binary(max_size=4), st.just(b"\xff\xd9"))), max_size=4
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # `resizer` is but a word
@given(kind=st.integers(0, 9), edits=EDITS, cut=st.floats(0.05, 1), size=st.sampled_from([32, 224]))
def test_damage_gives_a_good_jpeg_or_a_reject(
    draw: Draw,
    encode: Encode,
    resizer: str,
    kind: int,
    edits: list[tuple[float, int, bytes]],
    cut: float,
    size: int,
) -> None:
    """Each edit takes bytes away at a place and puts others there; the cut shortens the whole."""
    data = real_kinds(draw, encode)[kind]
    for place, num_lost, put in edits:
        start = int(place * len(data))
        data = data[:start] + put + data[start + num_lost :]
    data = data[: int(cut * len(data))] if cut < 0.9 else data
    try:
        stored = store_image(data, ImageSettings(size=size, resizer=resizer))
    except RejectedImageError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file that keeps its bytes may earn a reader's warning, as the changes tell
        check_stored(stored)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"resize": "crop"}, "resize is 'crop'; wanted squish, short-edge or none"),
        ({"resizer": "magick"}, "resizer is 'magick'; wanted pillow or opencv"),
        ({"size": 0}, "size is 0; wanted 1 to 8192"),
        ({"quality": 101}, "quality is 101; wanted 1 to 100"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        ImageSettings(**arguments)


def test_opencv_that_is_not_installed_is_told_with_the_way_out(
    draw: Draw, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    get_resizer.cache_clear()
    with pytest.raises(ValueError, match=r"OpenCV is not installed; `pip install 'in21k\[opencv\]'`"):
        store_image(encode(draw()), ImageSettings(resizer="opencv"))


@pytest.mark.parametrize("image_format", ["JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP"])
def test_every_format_is_known_in_a_process_that_has_opened_no_image_before(
    draw: Draw, encode: Encode, image_format: str
) -> None:
    options = {"save_all": True, "append_images": [draw(seed=1)]} if image_format == "MPO" else {}
    program = (
        "import sys; from in21k.preprocess.image import ImageSettings, store_image;"
        "print(store_image(sys.stdin.buffer.read(), ImageSettings()).source_format)"
    )
    data = encode(draw(), image_format, **options)
    found = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    assert found.stdout.decode().strip() == image_format


def test_pillow_names_its_version() -> None:
    assert PillowResizer().version().startswith("pillow ")
