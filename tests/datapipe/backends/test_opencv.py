"""Backend `opencv`: rows that no window needs are not decoded, and nobody sees it."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("cv2", reason="OpenCV is not installed")

from in21k.datapipe.backends.opencv_transforms import decode_down_to
from in21k.datapipe.feed import JpegSample
from in21k.datapipe.pixels import decode

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]


def sample_of(jpeg: bytes) -> JpegSample:
    height, width = simplejpeg.decode_jpeg_header(jpeg)[:2]
    return JpegSample(0, jpeg, height, width)


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 50),
    subsampling=st.sampled_from(["444", "422", "420", "440", "411", "Gray"]),
    quality=st.integers(20, 100),
    part=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_the_rows_that_are_decoded_are_those_of_the_whole(
    height: int, width: int, subsampling: str, quality: int, part: float, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 1 if subsampling == "Gray" else 3), np.uint8)
    space = "GRAY" if subsampling == "Gray" else "RGB"
    jpeg = simplejpeg.encode_jpeg(pixels, quality, space, subsampling)
    row = max(1, round(part * height))
    actual = decode_down_to(sample_of(jpeg), row)
    assert len(actual) >= row
    assert np.array_equal(actual[:row], decode(jpeg)[:row])


def test_no_more_rows_are_decoded_than_are_needed(draw: Draw, encode: Encode) -> None:
    assert len(decode_down_to(sample_of(encode(draw(64, 64))), 20)) < 30


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 3}, {"comment": b"\xff\xc0"}])
def test_jpegs_of_other_makes_come_out_as_they_are(draw: Draw, encode: Encode, options: dict[str, object]) -> None:
    jpeg = encode(draw(64, 64), **options)
    assert np.array_equal(decode_down_to(sample_of(jpeg), 20)[:20], decode(jpeg)[:20])


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_truncated_jpeg_is_refused_also_where_its_end_is_not_needed(draw: Draw, encode: Encode, kept: float) -> None:
    jpeg = encode(draw(256, 256))
    jpeg = jpeg[: round(kept * len(jpeg))]
    with pytest.raises(ValueError, match="does not decode"):
        decode_down_to(sample_of(jpeg), 20)


def test_an_image_within_the_header_is_not_taken_for_it(draw: Draw) -> None:
    """A thumbnail comes first there, with a frame of its own."""
    thumbnail, out = io.BytesIO(), io.BytesIO()
    draw(16, 16).save(thumbnail, "JPEG")
    draw(64, 64).save(out, "JPEG", icc_profile=thumbnail.getvalue())
    jpeg = out.getvalue()
    assert np.array_equal(decode_down_to(sample_of(jpeg), 20)[:20], decode(jpeg)[:20])
