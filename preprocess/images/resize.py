"""The resizers: pixels upright, RGB or greyscale, at their target size, and the JPEG of them."""

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

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size (libjpeg's scaled DCT) where that leaves this part of the target, or
# more, in both directions. Measured over 234 real images at 224, speed as the part of decoding alone that storing
# reaches, PSNR against a full decode: never 0.76; from 1.0 on 0.78 (13 % of the images, median 39 dB); from 0.8 on
# 0.83 (59 %, of which the others 33 dB, as far as cv2's INTER_LINEAR is from antialiasing); from 0.7 on 0.9, blurrier.
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
    """The size of a stored image, in pixels, and by what both sides are scaled (None: each by its own ratio)."""

    width: int
    height: int
    scale: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height


def fit(width: int, height: int, resize: str, size: int) -> Target:
    """Return what an image is resized to.

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
    """Return 1, 2, 4 or 8: by how much a JPEG of a size may be reduced as it is decoded.

    >>> reduction((500, 333), (224, 224)), reduction((500, 375), (224, 224)), reduction((9000, 9000), (224, 224))
    (1, 2, 8)
    """
    factor = min(whole / wanted for whole, wanted in zip(size, target, strict=True)) / REDUCED_MARGIN
    return next((by for by in (8, 4, 2) if by <= factor), 1)


class Resizer(Protocol):
    """One way to get from a raw image to the pixels that are stored."""

    def version(self) -> str:
        """Return name and version of what decides the pixels."""
        ...

    def resized(self, opened: Opened, orientation: int, target: Target) -> Any:
        """Return the pixels of an image upright and of the target's size, for `encode`."""
        ...

    def encode(self, pixels: Any, quality: int) -> bytes:
        """Return the pixels as a JPEG."""
        ...


class PillowResizer:
    """Pillow's bilinear filter, antialiased: by cykooz_resizer's vector code where that is installed.

    The two differ by one grey level at most, in every seventh value.
    """

    def version(self) -> str:
        """Return Pillow's version (pillow-simd's ends in `.postN`), and that of the vector code."""
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
        """Return the image as a JPEG with 4:2:0 chroma, without the comment and profile it came with."""
        pixels.info.clear()
        out = io.BytesIO()
        pixels.save(out, "JPEG", quality=quality)
        return out.getvalue()


def _jpeg_picture(opened: Opened, target: tuple[int, int]) -> Image.Image:
    """Return a plain JPEG's pixels, reduced for the target, as L or RGBA (opaque)."""
    mode, colorspace = ("L", "GRAY") if opened.image.mode == "L" else ("RGBA", "RGBA")
    pixels = jpeg.decode(opened, colorspace, reduction(opened.image.size, target))
    # Four bytes a pixel are what Pillow keeps for RGB too: the pixels become an image without being copied.
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
    """What the reference's scripts do: cv2 decodes, INTER_LINEAR without antialiasing, cv2's JPEG settings."""

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

        With a scale cv2 samples by it, and not by the ratio of the rounded sizes.
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
            # These are cv2's own pixels, as a test holds; and unlike cv2 it tells what libjpeg warns of.
            return jpeg.decode(opened, "BGR")
        if opened.image.format == "GIF":  # not every build of cv2 knows it
            return cv2.cvtColor(np.asarray(opened.image.convert("RGB")), cv2.COLOR_RGB2BGR)
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # which formats it turns depends on its version
        try:
            with printed_as_warnings():
                pixels = cv2.imdecode(np.frombuffer(opened.data, np.uint8), flags)
        except cv2.error as error:
            raise ValueError(f"cv2 does not decode it: {error}") from error
        if pixels is None:
            raise ValueError("cv2 does not decode it")
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
            raise ValueError("cv2 does not encode it")
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
    """Return the image in its `stored_mode`: transparency is dropped, 16-bit values keep their upper eight bits."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    mode = stored_mode(image)
    return image if image.mode == mode else image.convert(mode)
