"""What is wrong with an image: a reject with its reason, or a warning."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from in21k.preprocess.images import image as image_module
from in21k.preprocess.images import jpeg
from in21k.preprocess.images.image import ImageSettings, RejectedImageError, store_image

from .stored_images import KEEP, Decode, Draw, Encode, check_stored, difference, exif_of, reject_reason, with_segment


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"no image at all", "not an image"), (bytes(5000), "not an image"), (b"\xff\xd8\xff", None)],
    ids=["empty", "text", "zeros", "the beginning of a JPEG"],
)
def test_what_is_no_image_is_rejected(resizer: str, data: bytes, reason: str | None) -> None:
    actual = reject_reason(data, ImageSettings(resizer=resizer))
    assert actual == reason or reason is None


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
        "import sys; from in21k.preprocess.images.image import ImageSettings, store_image;"
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
    """Make a PNG of 8 x 8 with a broken colour profile, which libpng warns of."""
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
        "import os, sys; os.close(2); from in21k.preprocess.images.image import ImageSettings, store_image;"
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
