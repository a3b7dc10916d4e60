from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from in21k.preprocess.images import resize as resize_module
from in21k.preprocess.images.image import open_image
from in21k.preprocess.images.resize import REDUCED_MARGIN, PillowResizer, Target, reduction

BILINEAR = Image.Resampling.BILINEAR
vector = pytest.mark.skipif(not importlib.util.find_spec("cykooz_resizer"), reason="cykooz-resizer is not installed")


def resized(data: bytes, target: tuple[int, int]) -> Image.Image:
    return PillowResizer().resized(open_image(data), 1, Target(*target))


def worst(one: Image.Image, two: Image.Image) -> int:
    """Return the largest difference of two pictures' values."""
    assert (one.mode, one.size) == (two.mode, two.size)
    return int(np.abs(np.asarray(one, int) - np.asarray(two, int)).max())


@given(st.tuples(st.integers(1, 9000), st.integers(1, 9000)), st.tuples(st.integers(1, 500), st.integers(1, 500)))
def test_a_reduced_picture_keeps_its_part_of_the_target(size: tuple[int, int], target: tuple[int, int]) -> None:
    by = reduction(size, target)
    assert by in (1, 2, 4, 8)
    assert by == 1 or all(whole / by >= REDUCED_MARGIN * wanted for whole, wanted in zip(size, target, strict=True))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(90, 70), (70, 200), (45, 300)])
def test_resized_pixels_are_pillows_own_to_a_grey_level(
    draw: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    decode: Callable[[bytes], Image.Image],
    mode: str,
    size: tuple[int, int],
) -> None:
    data = encode(draw(*size).convert(mode), quality=95)
    assert reduction(size, (60, 60)) == 1
    assert worst(resized(data, (60, 60)), decode(data).resize((60, 60), BILINEAR)) <= 1


def test_without_vector_code_pillow_resizes(
    draw: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    decode: Callable[[bytes], Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resize_module, "_vector_resize", lambda: None)
    data = encode(draw(90, 70))
    assert worst(resized(data, (60, 60)), decode(data).resize((60, 60), BILINEAR)) == 0
    assert "cykooz" not in PillowResizer().version()


def test_a_reduced_picture_looks_like_the_whole_one(
    draw: Callable[..., Image.Image], encode: Callable[..., bytes], decode: Callable[[bytes], Image.Image]
) -> None:
    data = encode(draw(400, 300), quality=95)
    assert reduction((400, 300), (100, 100)) == 2
    one, two = (
        np.asarray(image, float) for image in (resized(data, (100, 100)), decode(data).resize((100, 100), BILINEAR))
    )
    assert 10 * np.log10(255**2 / np.square(one - two).mean()) > 30


@vector
def test_the_version_names_the_vector_code() -> None:
    assert "+ cykooz-resizer " in PillowResizer().version()


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_picture_that_is_turned_is_reduced_by_the_sides_it_then_has(
    draw: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    decode: Callable[[bytes], Image.Image],
    orientation: int,
) -> None:
    data, turn = encode(draw(400, 200), quality=95), {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}
    upright = decode(data).transpose(turn[orientation])
    target = (upright.width // 4, upright.height // 4)
    actual = PillowResizer().resized(open_image(data), orientation, Target(*target))
    assert np.abs(np.asarray(actual, float) - np.asarray(upright.resize(target, BILINEAR), float)).mean() < 3


@pytest.mark.parametrize("options", [{"keep_rgb": True}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}])
def test_decoded_pixels_are_pillows(
    draw: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    decode: Callable[[bytes], Image.Image],
    options: dict[str, Any],
) -> None:
    for image in (draw(91, 57), draw(16, 200), draw(1, 1), draw(64, 40).convert("L")):
        data = encode(image, **({} if image.mode == "L" else options))
        assert worst(resized(data, image.size), decode(data)) == 0
