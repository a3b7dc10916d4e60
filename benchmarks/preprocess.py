"""The raw archive to resized 21K-P as whole processes, beside the reference's steps: `python -m benchmarks.preprocess`.

Each round runs `in21k preprocess raw-tar` with each resizer and then what the published scripts do, in steps of our
own writing: extract the archive, extract every class tar, move the rare classes away, move 50 images of each class, and
resize every file with cv2 in 8 threads. Medians over the rounds, and of the ratios within each round.

`--cores` measures instead what a second core gains: 20 class tars of the archive's full-size images, prepared by one
worker and by two in turns.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from in21k.shards.writer import TarWriter

from .image_rate import large_images

ARCHIVE = Path(__file__).parents[1] / ".." / "shared" / "data" / "fall11-mini.tar"
ROUNDS = 5
EXTRACT = r"""
set -e
mkdir -p raw/train raw/small raw/val
tar -xf "$1" -C raw/train
cd raw/train
ls *.tar | xargs -P "$(nproc)" -I{} sh -c 'mkdir "$(basename {} .tar)" && tar -xf {} -C "$(basename {} .tar)"'
rm ./*.tar
for class in n*; do
  if [ "$(ls "$class" | wc -l)" -le 500 ]; then mv "$class" ../small/; fi
done
for class in n*; do
  mkdir "../val/$class"
  for image in $(ls "$class" | head -n 50); do mv "$class/$image" "../val/$class/"; done
done
"""


def resize_all(folder: Path) -> None:
    """Resize every image below `raw` to `resized`, as the reference does: cv2, 8 threads, small images copied."""
    from multiprocessing.pool import ThreadPool

    import cv2

    def resize(source: Path) -> None:
        target = folder / "resized" / source.relative_to(folder / "raw")
        target.parent.mkdir(parents=True, exist_ok=True)
        image = cv2.imread(str(source))
        if image is None:
            return
        if max(image.shape[:2]) < 224:
            shutil.copyfile(source, target)
        else:
            cv2.imwrite(str(target), cv2.resize(image, (224, 224)))

    with ThreadPool(8) as pool:
        pool.map(resize, [path for path in (folder / "raw").rglob("*.*") if path.is_file()])


def reference(archive: Path, work: Path) -> None:
    """Do the reference's steps in a folder."""
    subprocess.run(["bash", "-c", EXTRACT, "bash", str(archive.resolve())], cwd=work, check=True)
    subprocess.run([sys.executable, "-m", "benchmarks.preprocess", "--resize", str(work)], check=True)


def ours(archive: Path, out: Path, resizer: str, *options: str) -> None:
    """Run the command."""
    program = [sys.executable, "-c", "from in21k.cli.main import main; main()"]
    words = ["preprocess", "raw-tar", str(archive), str(out), "--resizer", resizer, *options]
    subprocess.run([*program, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def cores(archive: Path = ARCHIVE) -> None:
    """Print the images stored per second by one worker and by two."""
    images = large_images(archive)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        with TarWriter(work / "raw.tar") as outer:
            for number in range(20):
                with TarWriter(work / "class.tar") as inner:
                    for image_number, image in enumerate(images):
                        inner.add(f"{image_number}.JPEG", image)
                outer.add(f"class{number}.tar", (work / "class.tar").read_bytes())
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(ROUNDS):
            for workers, measured in rates.items():
                begun = time.perf_counter()
                ours(work / "raw.tar", work / "out", "pillow", "--workers", str(workers), "--rare-threshold", "1")
                measured.append(20 * len(images) / (time.perf_counter() - begun))
                shutil.rmtree(work / "out")
    gain = statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True))
    one, two = (statistics.median(measured) for measured in rates.values())
    print(f"one worker {one:.0f} images/s, two {two:.0f}, start included: {gain:.2f} x")


def main(archive: Path = ARCHIVE) -> None:
    """Print seconds and ratios."""
    ways: dict[str, Callable[[Path], None]] = {
        "reference steps": lambda work: reference(archive, work),
        "in21k, pillow": lambda work: ours(archive, work / "out", "pillow"),
        "in21k, opencv": lambda work: ours(archive, work / "out", "opencv"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as work:
                begun = time.perf_counter()
                way(Path(work))
                seconds[name].append(time.perf_counter() - begun)
    base = seconds["reference steps"]
    for name, measured in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(measured, base, strict=True))
        print(f"{name}: {statistics.median(measured):.2f} s, {ratio:.2f} of the reference's time")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--resize"]:
        resize_all(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["--cores"]:
        cores(*(Path(word) for word in sys.argv[2:3]))
    else:
        main(*(Path(word) for word in sys.argv[1:2]))
