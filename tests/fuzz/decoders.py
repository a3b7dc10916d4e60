"""The decoders as they are used, held against mutants in a process that they may end.

    python -m tests.fuzz.decoders simplejpeg --count 1000000 --seed 1

A find is the number of a mutant (of `jpegs.mutant`) with the signal that ended the process, or `hangs`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from in21k.preprocess.images import jpeg
from in21k.preprocess.images.image import ImageSettings, RejectedImageError, open_image, store_image
from in21k.shards.image_files import DECODER_ERRORS

from .jpegs import mutant

MAX_PIXELS = 1_000_000  # more are left to the check of sizes, which comes before any decoder
HANGS_S = 60
MEMORY_BYTES = 8 << 30
FAILURES = (*DECODER_ERRORS, RejectedImageError, MemoryError)


def by_simplejpeg(data: bytes) -> None:
    """Decode what may be decoded with TurboJPEG, at every size."""
    opened = open_image(data)
    if opened.is_common:
        for reduction in (1, 2, 4, 8):
            for colorspace in ("CMYK",) if opened.image.mode == "CMYK" else ("RGBA", "BGR", "GRAY"):
                with contextlib.suppress(*FAILURES):
                    jpeg.decode(opened, colorspace, reduction)


def by_pillow(data: bytes) -> None:
    """Decode with Pillow, whatever the coding."""
    Image.open(io.BytesIO(data), formats=["JPEG"]).load()


def by_cv2(data: bytes) -> None:
    """Decode with OpenCV, whatever the coding."""
    import cv2

    with contextlib.suppress(cv2.error):
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)


def by_all(data: bytes) -> None:
    """Store with each resizer; what is stored has to be a good JPEG."""
    for resizer in ("pillow", "opencv"):
        for size in (12, 224):
            with contextlib.suppress(RejectedImageError):
                stored = store_image(data, ImageSettings(resizer=resizer, size=size))
                with Image.open(io.BytesIO(stored.data), formats=["JPEG"]) as image:
                    image.load()
                    assert (image.size, image.mode in ("RGB", "L")) == ((stored.width, stored.height), True)
                    assert 0x0112 not in image.getexif()


def by_one_that_dies(data: bytes) -> None:
    """Die of a few mutants, as a search has to notice."""
    for number, name in DEADLY.items():
        if data == mutant(number):
            os.kill(os.getpid(), signal.Signals[name])


DECODERS: dict[str, Callable[[bytes], None]] = {
    "simplejpeg": by_simplejpeg,
    "pillow": by_pillow,
    "cv2": by_cv2,
    "store": by_all,
}
DEADLY = {7: "SIGSEGV", 27: "SIGSEGV", 47: "SIGABRT"}
ROOT = Path(__file__).parents[2]


def decode_mutants(decoder: str, seed: int, first: int, stop: int, at: memoryview) -> None:
    """Decode the mutants of some numbers, and write into `at` the number that is being decoded."""
    decode = DECODERS.get(decoder, by_one_that_dies)
    for number in range(first, stop):
        at[:8] = number.to_bytes(8)
        data = mutant(number, seed)
        with warnings.catch_warnings(), contextlib.suppress(*(FAILURES if decoder != "store" else ())):
            warnings.simplefilter("ignore")
            if num_pixels(data) <= MAX_PIXELS:
                decode(data)
    at[:8] = stop.to_bytes(8)


def num_pixels(data: bytes) -> int:
    """Return how many pixels a JPEG says that it has; 0 where it cannot be opened."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return image.width * image.height
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except DECODER_ERRORS:
        return 0


def search(decoder: str, seed: int, first: int, stop: int) -> list[tuple[int, str]]:
    """Return the numbers of the mutants that end a process, with how, going on behind each."""
    finds: list[tuple[int, str]] = []
    with tempfile.NamedTemporaryFile() as file:
        file.write(first.to_bytes(8))
        file.flush()
        with mmap.mmap(file.fileno(), 8) as at:
            while (number := int.from_bytes(at[:8])) < stop:
                how = _end_of_child(decoder, seed, number, stop, file.name, at)
                if how:
                    number = int.from_bytes(at[:8])
                    finds.append((number, how))
                    at[:8] = (number + 1).to_bytes(8)
    return finds


def _end_of_child(decoder: str, seed: int, first: int, stop: int, place: str, at: mmap.mmap) -> str:
    """Decode from a mutant on in another process; returns by what it ended ahead of time, or nothing."""
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, decoder, "--child", place]
    command += ["--seed", str(seed), "--first", str(first), "--count", str(stop - first)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        os.set_blocking(child.stderr.fileno(), False)
        last, since, told = first, time.monotonic(), b""
        while child.poll() is None:
            time.sleep(0.02)
            told = (told + (child.stderr.read() or b""))[-4000:]
            if (number := int.from_bytes(at[:8])) != last:
                last, since = number, time.monotonic()
            elif time.monotonic() - since > HANGS_S:
                child.kill()
                return "hangs"
        told = (told + (child.stderr.read() or b""))[-4000:]
    if child.returncode < 0:
        return signal.Signals(-child.returncode).name
    return "" if child.returncode == 0 else told.decode(errors="replace").strip().rpartition("\n")[2] or "fails"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("decoder", help=f"{', '.join(DECODERS)}; any other is one that dies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--child", help="the file to write into which mutant is being decoded")
    options = parser.parse_args()
    stop = options.first + options.count
    if options.child:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with Path(options.child).open("r+b") as file, mmap.mmap(file.fileno(), 8) as at, memoryview(at) as view:
            decode_mutants(options.decoder, options.seed, options.first, stop, view)
        return
    begun = time.monotonic()
    finds = search(options.decoder, options.seed, options.first, stop)
    minutes = (time.monotonic() - begun) / 60
    run = {"decoder": options.decoder, "seed": options.seed, "first": options.first, "count": options.count}
    sys.stdout.write(json.dumps(run | {"minutes": round(minutes, 1), "finds": finds}) + "\n")


if __name__ == "__main__":
    main()
