"""A run at true class counts on tiny images: `python -m benchmarks.scale [FRACTION] [CLASS_COUNTS.csv]`.

Writes an archive of fall11's 21,841 class tars, each with that fraction of its images (default 0.1, of 14.2 million),
as JPEGs of 16 x 16 pixels; prepares it with the threshold cut down likewise; prints seconds and peak memory (of all
processes, pages that they share counted once) in all and for each million members. The images cost next to nothing, so
this is the price of everything else: headers, rows, files, tables, the tree.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from in21k.shards.writer import BLOCK_BYTES, padded, tar_header

CLASS_COUNTS = Path(__file__).parents[1] / ".." / "shared" / "data" / "fall11_class_counts.csv"
PROGRAM = (sys.executable, "-c", "from in21k.cli.main import main; main()")


def read_counts(path: Path) -> dict[str, int]:
    """Return the number of images per class."""
    with path.open(newline="") as lines:
        return {row[0]: int(row[1]) for row in csv.reader(lines) if row[1].isdigit()}


def tiny_jpeg() -> bytes:
    """Return a JPEG of 16 x 16 pixels."""
    out = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(out, "JPEG")
    return out.getvalue()


def write_archive(path: Path, counts: dict[str, int]) -> None:
    """Write a raw archive of so many tiny images per class."""
    image = tiny_jpeg()
    body = image + bytes(padded(len(image)) - len(image))
    with path.open("wb") as file:
        for wnid, count in counts.items():
            members = (tar_header(f"{wnid}_{number}.JPEG", len(image)) + body for number in range(count))
            class_tar = b"".join(members) + bytes(2 * BLOCK_BYTES)
            file.write(tar_header(f"{wnid}.tar", len(class_tar)) + class_tar)
        file.write(bytes(2 * BLOCK_BYTES))


def memory_of(pid: int) -> int:
    """Return the bytes of a process and those below it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it ended meanwhile
        return 0
    own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    return own + sum(map(memory_of, children))


def main(fraction: float = 0.1, class_counts: Path = CLASS_COUNTS) -> None:
    """Write the archive, prepare it, print what it took."""
    counts = {wnid: max(1, round(count * fraction)) for wnid, count in read_counts(class_counts).items()}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_archive(work / "raw.tar", counts)
        options = ("--rare-threshold", str(round(500 * fraction)), "--val-per-class", str(round(50 * fraction)))
        begun = time.perf_counter()
        process = subprocess.Popen(
            [*PROGRAM, "preprocess", "raw-tar", str(work / "raw.tar"), str(work / "out"), *options],
            stderr=subprocess.DEVNULL,
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.5)
        seconds = time.perf_counter() - begun
    millions = sum(counts.values()) / 1e6
    print(f"{len(counts):,} classes, {millions:.2f} million members: exit code {process.returncode}")
    print(f"{seconds:.0f} s, {seconds / millions:.0f} s for each million; peak memory {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main(*(float(word) for word in sys.argv[1:2]), *(Path(word) for word in sys.argv[2:3]))
