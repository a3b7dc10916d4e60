"""The resizers: decode an image upright, as RGB or greyscale, at its target size, and encode it as a JPEG."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL
from PIL import Image, features

from . import jpeg
from .jpeg import Opened
from .printed import printed_as_warnings

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size (libjpeg's scaled DCT) where both reduced sides are at least this
# part of the target's. Measured on 234 real images at 224, as the speed of the whole step relative to decoding alone,
# and PSNR against a full decode: without reduction 0.76; with margin 1.0 0.78 (13 % of the images, median 39 dB); 0.8:
# 0.83 (59 %; the further ones 33 dB, as much as cv2's INTER_LINEAR differs from antialiasing); 0.7: 0.9, but blurrier.
REDUCED_MARGIN = 0.8

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FLIP = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # cv2's codes, after a transpose from 5 on: 1 swaps left and right


class Target(NamedTuple):
    """The size of a stored image in pixels, and the scale of both sides (None: each side has its own ratio)."""

    width: int
    height: int
    scale: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height


def fit(width: int, height: int, resize: str, size: int) -> Target:
    """Return the size to which an image is resized.

    >>> fit(500, 375, "squish", 224), fit(500, 400, "short-edge", 100).size, fit(100, 75, "squish", 224).size
    (Target(width=224, height=224, scale=None), (125, 100), (100, 75))
    """
    if resize == "none" or max(width, height) < size:
        return Target(width, height)
    if resize == "squish":
        return Target(size, size)
    scale = size / min(width, height)
    return Target(max(1, round(width * scale)), max(1, round(height * scale)), scale)  # as cv2 rounds


def reduction(size: tuple[int, int], target: tuple[int, int]) -> int:
    """Return 1, 2, 4 or 8: the factor by which a JPEG may be reduced as it is decoded.

    >>> reduction((500, 333), (224, 224)), reduction((500, 375), (224, 224)), reduction((9000, 9000), (224, 224))
    (1, 2, 8)
    """
    factor = min(side / target_side for side, target_side in zip(size, target, strict=True)) / REDUCED_MARGIN
    return next((by for by in (8, 4, 2) if by <= factor), 1)


class Resizer(Protocol):
    """One way from a raw image to the stored pixels."""

    def version(self) -> str:
        """Return names and versions of the libraries that decide the pixels."""
        ...

    def resized(self, opened: Opened, orientation: int, target: Target) -> Any:
        """Return the pixels of an image upright and of the target's size, for `encode`."""
        ...

    def encode(self, pixels: Any, quality: int) -> bytes:
        """Return the pixels as a JPEG."""
        ...


class PillowResizer:
    """Pillow's bilinear filter, antialiased, by cykooz_resizer's vector code where that is installed.

    The two differ by at most one grey level, in one of seven values.
    """

    def version(self) -> str:
        """Return the versions of Pillow (pillow-simd's ends in `.postN`), of the vector code and of the decoders."""
        vector = f" + cykooz-resizer {metadata.version('cykooz-resizer')}" if _vector_resize() else ""
        codecs = f"libjpeg-turbo {features.version('libjpeg_turbo')}, simplejpeg {metadata.version('simplejpeg')}"
        return f"pillow {PIL.__version__}{vector} ({codecs})"

    def resized(self, opened: Opened, orientation: int, target: Target) -> Image.Image:
        """Return the image upright, as RGB or L, at the target's size."""
        size = target.size if orientation < 5 else (target.height, target.width)
        picture = _jpeg_picture(opened, size) if opened.is_plain else to_stored_mode(opened.image)
        if orientation in _TRANSPOSE:
            picture = picture.transpose(_TRANSPOSE[orientation])
        if picture.size != target.size:
            picture = (_vector_resize() or _pillow_resize)(picture, target.size)
        return picture.convert("RGB") if picture.mode == "RGBA" else picture

    def encode(self, pixels: Image.Image, quality: int) -> bytes:
        """Return the image as a JPEG with 4:2:0 chroma, without the source's comment and colour profile."""
        pixels.info.clear()
        out = io.BytesIO()
        pixels.save(out, "JPEG", quality=quality)
        return out.getvalue()


def _jpeg_picture(opened: Opened, target: tuple[int, int]) -> Image.Image:
    """Return a plain JPEG's pixels, reduced for the target, as L or RGBA (opaque)."""
    mode, colorspace = ("L", "GRAY") if opened.image.mode == "L" else ("RGBA", "RGBA")
    pixels = jpeg.decode(opened, colorspace, reduction(opened.image.size, target))
    # Pillow keeps RGB with four bytes a pixel too, so RGBA pixels become an image without a copy.
    return Image.frombuffer(mode, pixels.shape[1::-1], pixels, "raw", mode, 0, 1)


def _pillow_resize(picture: Image.Image, target: tuple[int, int]) -> Image.Image:
    opaque = picture.convert("RGB") if picture.mode == "RGBA" else picture
    return opaque.resize(target, Image.Resampling.BILINEAR)


@cache
def _vector_resize() -> Callable[[Image.Image, tuple[int, int]], Image.Image] | None:
    try:
        import cykooz_resizer as vector
    except ImportError:
        return None
    resizer = vector.Resizer()
    bilinear = vector.ResizeAlg.convolution(vector.FilterType.bilinear)
    options = vector.ResizeOptions(resize_alg=bilinear, use_alpha=False)

    def resize(picture: Image.Image, target: tuple[int, int]) -> Image.Image:
        resized = Image.new("L" if picture.mode == "L" else "RGB", target)
        resizer.resize_pil(picture, resized, options)
        return resized

    return resize


class OpenCVResizer:
    """The steps of the reference's scripts: cv2's decoder, INTER_LINEAR without antialiasing, cv2's JPEG settings."""

    def __init__(self) -> None:
        try:
            import cv2
        except ImportError:
            raise ValueError(
                "resizer opencv: OpenCV is not installed; `pip install 'in21k[opencv]'`, or take --resizer pillow"
            ) from None
        cv2.setNumThreads(1)  # the workers are the parallelism
        self._cv2: Any = cv2

    def version(self) -> str:
        """Return OpenCV's version."""
        return f"opencv {self._cv2.__version__} (simplejpeg {metadata.version('simplejpeg')})"

    def resized(self, opened: Opened, orientation: int, target: Target) -> Any:
        """Return BGR pixels, uint8, height x width x 3.

        Where the target has a scale, cv2 samples by it and not by the ratio of the rounded sizes.
        """
        pixels = self._upright(self._decoded(opened), orientation)
        if pixels.shape[1::-1] == target.size:
            return pixels
        by_scale = {"dsize": None, "fx": target.scale, "fy": target.scale}
        how = by_scale if target.scale else {"dsize": target.size}
        return self._cv2.resize(pixels, **how, interpolation=self._cv2.INTER_LINEAR)

    def _decoded(self, opened: Opened) -> Any:
        cv2 = self._cv2
        if opened.is_plain:
            # A test checks that these are cv2's own pixels. Unlike cv2, this reports libjpeg's warnings.
            return jpeg.decode(opened, "BGR")
        if opened.image.format == "GIF":  # not every build of cv2 reads GIF
            return cv2.cvtColor(np.asarray(opened.image.convert("RGB")), cv2.COLOR_RGB2BGR)
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # which formats cv2 rotates depends on its version
        try:
            with printed_as_warnings():
                pixels = cv2.imdecode(np.frombuffer(opened.data, np.uint8), flags)
        except cv2.error as error:
            raise ValueError(f"cv2 cannot decode it: {error}") from error
        if pixels is None:
            raise ValueError("cv2 cannot decode it")
        return pixels

    def _upright(self, pixels: Any, orientation: int) -> Any:
        if orientation >= 5:
            pixels = self._cv2.transpose(pixels)
        flip = _FLIP.get(orientation)
        return pixels if flip is None else self._cv2.flip(pixels, flip)

    def encode(self, pixels: Any, quality: int) -> bytes:
        """Return the pixels as a JPEG."""
        done, data = self._cv2.imencode(".jpg", pixels, [self._cv2.IMWRITE_JPEG_QUALITY, quality])
        if not done:
            raise ValueError("cv2 cannot encode it")
        return data.tobytes()


RESIZERS: dict[str, type[PillowResizer] | type[OpenCVResizer]] = {"pillow": PillowResizer, "opencv": OpenCVResizer}


@cache
def get_resizer(name: str) -> Resizer:
    """Return the resizer of a name; raises ValueError where its library is missing."""
    return RESIZERS[name]()


def stored_mode(image: Image.Image) -> str:
    """Return the mode, RGB or L, in which an image is stored: greyscale stays greyscale."""
    return "L" if image.mode in ("1", "L", "LA") or image.mode.startswith("I") else "RGB"


def to_stored_mode(image: Image.Image) -> Image.Image:
    """Return the image in its `stored_mode`. Transparency is dropped; 16-bit values keep their upper eight bits."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    mode = stored_mode(image)
    return image if image.mode == mode else image.convert(mode)
