"""The raw archive to resized 21K-P as whole processes, beside the reference's steps: `python -m benchmarks.preprocess`.

Each round runs `in21k preprocess raw-tar` with each resizer and then what the published scripts do, in steps of our
own writing: extract the archive, extract every class tar, move the rare classes away, move 50 images of each class, and
resize every file with cv2 in 8 threads. Medians over the rounds, and of the ratios within each round.
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


def ours(archive: Path, work: Path, resizer: str) -> None:
    """Run the command."""
    program = [sys.executable, "-c", "from in21k.cli.main import main; main()"]
    words = ["preprocess", "raw-tar", str(archive), str(work / "out"), "--resizer", resizer]
    subprocess.run([*program, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main(archive: Path = ARCHIVE) -> None:
    """Print seconds and ratios."""
    ways: dict[str, Callable[[Path], None]] = {
        "reference steps": lambda work: reference(archive, work),
        "in21k, pillow": lambda work: ours(archive, work, "pillow"),
        "in21k, opencv": lambda work: ours(archive, work, "opencv"),
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
    else:
        main(*(Path(word) for word in sys.argv[1:2]))
