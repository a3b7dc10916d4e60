"""How many raw images a core stores per second: `python -m benchmarks.image_rate [ARCHIVE] [--rounds N] [--psnr]`.

The images of an archive whose longer side is over 224 pixels are read into memory, and the same once more as stored at
224. Each round lets every way go over them in turns; a ratio is the median over the rounds of the way's rate by that of
Pillow's decoding alone in the same round. `--psnr` adds how far the pixels are from a full decode and Pillow's own
bilinear filter, before they are coded; and, for comparison, how far coding them takes them.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import statistics
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from in21k.preprocess.images.image import ImageSettings, open_image, store_image
from in21k.preprocess.images.resize import RESIZERS, PillowResizer, Target, reduction

ARCHIVE = Path(__file__).parents[1] / ".." / "shared" / "data" / "fall11-mini.tar"
SIZE = 224

Way = Callable[[bytes], object]


def large_images(archive: Path) -> list[bytes]:
    """Return the images of a tar of class tars that are larger than what is stored."""
    with tarfile.open(archive) as outer:
        tars = [file.read() for file in map(outer.extractfile, outer) if file]
    images = [image for data in tars for image in members(data)]
    return [image for image in images if max(Image.open(io.BytesIO(image)).size) > SIZE]


def members(data: bytes) -> list[bytes]:
    """Return the files of a tar."""
    with tarfile.open(fileobj=io.BytesIO(data)) as inner:
        return [file.read() for file in map(inner.extractfile, inner) if file]


def ways() -> dict[str, Way]:
    """Return what is measured; the ratios are to the first."""
    named: dict[str, Way] = {
        "decode alone, Pillow": lambda data: Image.open(io.BytesIO(data)).load(),
        "decode alone, simplejpeg": lambda data: simplejpeg.decode_jpeg(data, strict=False),
        "store, resizer pillow": lambda data: store_image(data, ImageSettings(size=SIZE)),
    }
    if importlib.util.find_spec("cv2"):
        named["store, resizer opencv"] = lambda data: store_image(data, ImageSettings(size=SIZE, resizer="opencv"))
    return named


def seconds(way: Way, images: list[bytes]) -> float:
    """Return the time that a way takes for all images."""
    begun = time.perf_counter()
    for image in images:
        way(image)
    return time.perf_counter() - begun


def compare(images: list[bytes], rounds: int) -> None:
    """Print for each way the median rate, and the median ratio to the first way's."""
    measured = [{name: seconds(way, images) for name, way in ways().items()} for _ in range(rounds)]
    first = next(iter(measured[0]))
    for name in measured[0]:
        rate = statistics.median(len(images) / times[name] for times in measured)
        ratio = statistics.median(times[first] / times[name] for times in measured)
        print(f"  {name:26} {rate:6.0f} images/s   ratio {ratio:.2f}")


def psnr(one: Image.Image, two: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two pictures in dB; 100 where they are equal."""
    error = np.square(np.asarray(one, float) - np.asarray(two, float)).mean()
    return min(100.0, float(10 * np.log10(255**2 / max(error, 1e-9))))


def qualities(data: bytes) -> tuple[int, float, float]:
    """Return by how much a JPEG's decoding reduces it, the PSNR of its stored pixels, and that of coding them."""
    opened, target = open_image(data), Target(SIZE, SIZE)
    resizer = PillowResizer()
    plain = Image.open(io.BytesIO(data)).convert("L" if opened.image.mode == "L" else "RGB")
    plain = plain.resize(target.size, Image.Resampling.BILINEAR)
    coded = Image.open(io.BytesIO(resizer.encode(plain, ImageSettings().quality)))
    return (
        reduction(opened.image.size, target.size),
        psnr(resizer.resized(opened, 1, target), plain),
        psnr(coded, plain),
    )


def print_psnr(images: list[bytes]) -> None:
    """Print median, tenth percentile and least PSNR of the images, by how much their decoding is reduced."""
    rows = [qualities(image) for image in images]
    values = {f"reduced by {by}": [row[1] for row in rows if row[0] == by] for by in sorted({row[0] for row in rows})}
    for name, decibels in {**values, "coding alone": [row[2] for row in rows]}.items():
        tenth = float(np.percentile(decibels, 10))
        print(
            f"  {name:26} {len(decibels):4} images, {statistics.median(decibels):.1f} dB "
            f"({tenth:.1f}, {min(decibels):.1f})"
        )


def main() -> None:
    """Measure full-size images, and the same at the size in which they are stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?", type=Path, default=ARCHIVE)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--psnr", action="store_true")
    options = parser.parse_args()
    images = large_images(options.archive)
    small = [store_image(image, ImageSettings(size=SIZE)).data for image in images]
    print(
        "; ".join(
            RESIZERS[name]().version() for name in RESIZERS if name == "pillow" or importlib.util.find_spec("cv2")
        )
    )
    for name, chosen in (("full-size", images), (f"{SIZE}-pixel", small)):
        kilobytes = statistics.mean(map(len, chosen)) / 1000
        print(f"{len(chosen)} {name} images of {kilobytes:.1f} KB, {options.rounds} rounds, one core")
        compare(chosen, options.rounds)
    if options.psnr:
        print("PSNR of the pixels that are stored: median (tenth percentile, least)")
        print_psnr(images)


if __name__ == "__main__":
    main()
