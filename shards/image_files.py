"""Which image files are taken, in preprocessing and in prediction alike, and what decoders raise for bad ones."""

from __future__ import annotations

import struct
import zlib

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")  # Pillow opens MPO, several JPEGs in one file, as a kind of JPEG
MAX_PIXELS = 100_000_000  # guessed: 300 MB decoded; the largest images of ImageNet have a quarter of that
# What decoders raise for bad images. MemoryError is left out, as the image may be good.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
