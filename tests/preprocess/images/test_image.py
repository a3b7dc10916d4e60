from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import subprocess
import sys
import tarfile
import warnings
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
from PIL import Image

from in21k.preprocess.images.image import ImageSettings, RejectedImageError, store_image
from in21k.preprocess.images.resize import PillowResizer, fit, get_resizer

from .stored_images import KEEP, Decode, Draw, Encode, check_stored, difference, exif_of


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
            text = read(np.frombuffer(stored, np.uint8).copy())
            assert text is None or np.array_equal(text, wanted), reader


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
        "import sys; from in21k.preprocess.images.image import ImageSettings, store_image;"
        "print(store_image(sys.stdin.buffer.read(), ImageSettings()).source_format)"
    )
    data = encode(draw(), image_format, **options)
    output = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    assert output.stdout.decode().strip() == image_format


def test_pillow_names_its_version() -> None:
    assert PillowResizer().version().startswith("pillow ")
