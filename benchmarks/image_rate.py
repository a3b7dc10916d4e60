"""How many raw images a core stores per second: `python -m benchmarks.image_rate [ARCHIVE]`.

The images of an archive whose longer side is over 224 pixels are read into memory, then stored at 224 pixels by each
resizer in turns, three times; beside it Pillow's decoding alone.
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from in21k.preprocess.archive import list_members, open_raw_tar
from in21k.preprocess.image import ImageSettings, store_image

ARCHIVE = Path(__file__).parents[1] / ".." / "shared" / "data" / "fall11-mini.tar"
ROUNDS = 3


def large_images(archive: Path) -> list[bytes]:
    """Return the images of an archive that are larger than what is stored."""
    found: list[bytes] = []
    for class_archive in open_raw_tar(archive).classes:
        data = class_archive.read()
        for member in list_members(class_archive, data)[0]:
            image = data[member.offset : member.offset + member.num_bytes]
            if max(Image.open(io.BytesIO(image)).size) > 224:
                found.append(image)
    return found


def main(archive: Path = ARCHIVE) -> None:
    """Print the median rate of each way over the rounds."""
    images = large_images(archive)
    ways: dict[str, Callable[[bytes], object]] = {
        "decode alone (Pillow)": lambda data: Image.open(io.BytesIO(data)).load(),
        "store, resizer pillow": lambda data: store_image(data, ImageSettings(resizer="pillow")),
        "store, resizer opencv": lambda data: store_image(data, ImageSettings(resizer="opencv")),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begun = time.perf_counter()
            for image in images:
                way(image)
            rates[name].append(len(images) / (time.perf_counter() - begun))
    size = statistics.mean(map(len, images))
    stored = statistics.mean(len(store_image(image, ImageSettings()).data) for image in images)
    print(f"{len(images)} images of {size / 1000:.0f} KB on average, stored {stored / 1000:.1f} KB; one core")
    for name, measured in rates.items():
        print(f"{name}: {statistics.median(measured):.0f} images/s")


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:2]))
