"""Images of any format as a network takes them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from in21k.datapipe.augment.policy import AugmentPolicy
from in21k.datapipe.backends.torch_transforms import transformed
from in21k.datapipe.pixels import decode
from in21k.preprocess.images.image import ImageSettings, store_image
from in21k.training.inference.images import UnreadableImageError, fit_image, read_image
from in21k.training.inference.open_model import OpenModel
from in21k.training.inference.reading import Source, read_batches

Draw, Encode = Callable[..., Image.Image], Callable[..., bytes]


def apart(one: Image.Image, other: Image.Image) -> float:
    """Mean difference in grey levels at a quarter of the size: JPEGs store the colours at a half."""
    small = [np.asarray(item.convert("RGB").reduce(4), np.float32) for item in (one, other)]
    return float(np.abs(small[0] - small[1]).mean())


@pytest.mark.parametrize(
    ("mode", "image_format", "options"),
    [
        ("RGB", "JPEG", {}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGBA", "PNG", {}),
        ("P", "GIF", {}),
        ("LA", "PNG", {}),
        ("1", "PNG", {}),
        ("RGB", "BMP", {}),
        ("RGBA", "WEBP", {"lossless": True}),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_what_is_read_is_what_preprocessing_stores(
    mode: str, image_format: str, options: dict[str, Any], orientation: int, draw: Draw, encode: Encode
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {"exif": exif} if image_format in ("JPEG", "PNG", "WEBP") else {}
    data = encode(draw(60, 40).convert(mode), image_format, **options, **turned)
    stored = store_image(data, ImageSettings(resize="none", quality=100))
    read = read_image(data)
    assert read.mode == "RGB"
    assert read.size == (stored.width, stored.height)
    assert apart(read, Image.open(io.BytesIO(stored.data))) < 2


def test_of_sixteen_bits_the_upper_eight_stay(encode: Encode) -> None:
    deep = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
    pixels = np.asarray(read_image(encode(deep, "PNG")))
    assert (pixels == np.arange(256).reshape(16, 16, 1)).all()


def test_files_bytes_images_and_pixels_are_read_alike(draw: Draw, encode: Encode, tmp_path: Path) -> None:
    data = encode(draw(), "PNG")
    (tmp_path / "image").write_bytes(data)
    opened = Image.open(io.BytesIO(data))
    one, *others = (
        np.asarray(read_image(item))
        for item in (data, tmp_path / "image", str(tmp_path / "image"), opened, np.asarray(draw()))
    )
    assert all((other == one).all() for other in others)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_read_says_why(draw: Draw, encode: Encode, tmp_path: Path) -> None:
    whole = encode(draw(200, 200), "JPEG")
    for broken, item in (
        (b"", "not an image"),
        (b"text", "not an image"),
        (whole[: len(whole) // 2], "undecodable: .*truncated"),
        (encode(Image.new("1", (20_000, 5_001)), "PNG"), "too large: 20000x5001"),
        (encode(Image.new("1", (20_000, 9_001)), "PNG"), "too large"),
        (tmp_path / "nowhere.jpg", "No such file"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(UnreadableImageError, match=item):
            read_image(broken)


@pytest.mark.parametrize("size", [(48, 40), (40, 48), (32, 32), (20, 70), (9, 30)])
@pytest.mark.parametrize("crop_pct", [None, 0.875, 1.0])
def test_a_network_sees_the_pixels_that_it_saw_in_validation(
    size: tuple[int, int], crop_pct: float | None, draw: Draw, encode: Encode
) -> None:
    data = encode(draw(*size))
    policy = AugmentPolicy(image_size=32, crop_pct=crop_pct)
    (plan,) = policy.plan(np.empty((1, 0)), np.array([size[1]]), np.array([size[0]])).rows()
    expected = transformed(torch.from_numpy(decode(data)).permute(2, 0, 1), plan, 32)
    assert torch.equal(fit_image(read_image(data), 32, crop_pct), expected)


def test_a_thin_image_is_unreadable_where_its_middle_would_take_gigabytes(encode: Encode) -> None:
    thin = encode(Image.new("RGB", (60_000, 1)), "PNG")
    assert fit_image(read_image(thin), 224).shape == (3, 224, 224)
    message = "too thin: 60000x1 pixels, and 15360000x256, over 100,000,000, before the middle is taken"
    with pytest.raises(UnreadableImageError, match=message):
        fit_image(read_image(thin), 224, 0.875)
    assert fit_image(read_image(encode(Image.new("RGB", (1500, 1)), "PNG")), 224, 0.875).shape == (3, 224, 224)


def test_what_cannot_be_fitted_is_skipped_and_named_as_what_cannot_be_read(draw: Draw, encode: Encode) -> None:
    opened = OpenModel(
        model=nn.Identity(), name="m", mean=(0, 0, 0), std=(1, 1, 1), image_size=224, crop_pct=0.875, classes=None
    )
    thin = Source("thin", encode(Image.new("RGB", (1, 60_000)), "PNG"))
    (batch,) = read_batches([thin, Source("good", encode(draw()))], opened)
    (_, reason), (_, none) = batch.rows
    assert reason is not None
    assert reason.startswith("too thin: 1x60000")
    assert none is None
    assert batch.pixels is not None
    assert batch.pixels.shape == (1, 3, 224, 224)


def test_another_interpolation_gives_other_pixels(draw: Draw) -> None:
    image = draw(100, 100)
    assert not torch.equal(fit_image(image, 32), fit_image(image, 32, interpolation="bicubic"))
