"""The resizers: pixels upright, RGB or greyscale, at their target size, and the JPEG of them."""

from __future__ import annotations

import io
from typing import Any, Protocol

import numpy as np
import PIL
from PIL import Image

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def fit(width: int, height: int, resize: str, size: int) -> tuple[int, int]:
    """Return the (width, height) an image is resized to.

    >>> fit(500, 375, "squish", 224), fit(500, 375, "short-edge", 224), fit(100, 75, "squish", 224)
    ((224, 224), (299, 224), (100, 75))
    """
    if resize == "none" or max(width, height) < size:
        return width, height
    if resize == "squish":
        return size, size
    scale = size / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


class Resizer(Protocol):
    """One way to get from a raw image to the pixels that are stored."""

    def version(self) -> str:
        """Return name and version of what decides the pixels."""
        ...

    def decodes(self, image_format: str) -> bool:
        """Tell whether `resized` decodes this format by other means than the opened image."""
        ...

    def resized(self, data: bytes, image: Image.Image, orientation: int, target: tuple[int, int]) -> Any:
        """Return the pixels, upright and of the target (width, height), as `encode` takes them."""
        ...

    def encode(self, pixels: Any, quality: int) -> bytes:
        """Return the pixels as a JPEG."""
        ...


class PillowResizer:
    """Bilinear and antialiased; fastest with pillow-simd."""

    def version(self) -> str:
        """Return Pillow's version; pillow-simd's ends in `.postN`."""
        return f"pillow {PIL.__version__}"

    def decodes(self, image_format: str) -> bool:
        """Tell that every format is decoded by the opened image."""
        del image_format
        return False

    def resized(self, data: bytes, image: Image.Image, orientation: int, target: tuple[int, int]) -> Image.Image:
        """Return the opened image upright, as RGB or L, at the target size."""
        del data
        image = to_stored_mode(image)
        if orientation in _TRANSPOSE:
            image = image.transpose(_TRANSPOSE[orientation])
        return image if image.size == target else image.resize(target, Image.Resampling.BILINEAR)

    def encode(self, pixels: Image.Image, quality: int) -> bytes:
        """Return the image as a JPEG with 4:2:0 chroma, without the comment and profile it came with."""
        pixels.info.clear()
        out = io.BytesIO()
        pixels.save(out, "JPEG", quality=quality)
        return out.getvalue()


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
        return f"opencv {self._cv2.__version__}"

    def decodes(self, image_format: str) -> bool:
        """Tell that cv2 decodes all but GIF, which not every build of it can."""
        return image_format != "GIF"

    def resized(self, data: bytes, image: Image.Image, orientation: int, target: tuple[int, int]) -> Any:
        """Return BGR pixels, uint8, height x width x 3; cv2 applies the EXIF orientation itself."""
        del orientation
        cv2 = self._cv2
        if self.decodes(str(image.format)):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if pixels is None:
                raise ValueError("cv2 does not decode it")
        else:
            pixels = cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)
        if pixels.shape[1::-1] == target:
            return pixels
        return cv2.resize(pixels, target, interpolation=cv2.INTER_LINEAR)

    def encode(self, pixels: Any, quality: int) -> bytes:
        """Return the pixels as a JPEG."""
        done, data = self._cv2.imencode(".jpg", pixels, [self._cv2.IMWRITE_JPEG_QUALITY, quality])
        if not done:
            raise ValueError("cv2 does not encode it")
        return data.tobytes()


RESIZERS: dict[str, type[PillowResizer] | type[OpenCVResizer]] = {"pillow": PillowResizer, "opencv": OpenCVResizer}


def stored_mode(image: Image.Image) -> str:
    """Return the mode, RGB or L, in which an image is stored: greyscale stays greyscale."""
    return "L" if image.mode in ("1", "L", "LA") or image.mode.startswith("I") else "RGB"


def to_stored_mode(image: Image.Image) -> Image.Image:
    """Return the image in its `stored_mode`: transparency is dropped, 16-bit values keep their upper eight bits."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    mode = stored_mode(image)
    return image if image.mode == mode else image.convert(mode)
