"""Pack what a machine without network needs to run in21k: `python -m benchmarks.offline_pack OUT [--python 3.12]`.

OUT gets pack.json and parts of at most `--part-mb` x 10^6 bytes, `pack.000` and so on: cut from an xz-compressed tar of
wheels and up to 1,000 JPEGs of a raw archive. The wheels are the project's own, DALI, nltk, simplejpeg, rapidgzip and
cykooz-resizer with what they need, less what a machine with torch and timm has already. DALI is trimmed to one Python.
`benchmarks.gpu_session --pack OUT` installs them.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
ARCHIVE = ROOT / ".." / "shared" / "data" / "fall11-mini.tar"
NUM_IMAGES = 1000
BLOCK_BYTES = 1 << 20
PACKAGES = ("nltk", "simplejpeg", "rapidgzip", "cykooz-resizer")
# What the target machine has, and what only these need.
AT_HAND = {"click", "joblib", "numpy", "packaging", "pyyaml", "regex", "six", "tqdm", "typing-extensions", "wheel"}
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
ABI = re.compile(r"\.cpython-(\w+)-")


def name_of(wheel: Path) -> str:
    """Return the normalized name of a wheel's distribution."""
    return wheel.name.split("-")[0].lower().replace("_", "-")


def download(folder: Path, python: str, dali: str) -> None:
    """Download the wheels for a Python version, of the versions that the tests passed with."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "--constraint", str(ROOT / "constraints.txt")]
    command += [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    subprocess.run([*command, f"nvidia-dali-{dali}", *PACKAGES], check=True)
    for wheel in folder.glob("*.whl"):
        if name_of(wheel) in AT_HAND:
            wheel.unlink()
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # of an earlier build, which setuptools would pack too
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True)


def trim(wheel: Path, python: str) -> None:
    """Drop a wheel's modules for other Pythons, and store the rest without compression, so that xz finds more.

    >>> ABI.search("nvidia/dali/backend_impl.cpython-312-x86_64-linux-gnu.so").group(1)
    '312'
    """
    wanted = python.replace(".", "")

    def fits(name: str) -> bool:
        abi = ABI.search(name)
        return abi is None or abi.group(1) == wanted

    aside = wheel.with_suffix(".trimmed")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            if not fits(entry.filename):
                continue
            data = source.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                data = b"".join(line for line in data.splitlines(keepends=True) if fits(line.decode().split(",")[0]))
            entry.compress_type = zipfile.ZIP_STORED
            target.writestr(entry, data)
    aside.replace(wheel)


def write_images(archive: Path, out: Path, num_images: int = NUM_IMAGES) -> int:
    """Write a raw archive of up to so many images of another, spread evenly over the classes; return how many."""
    with tarfile.open(archive) as source, tarfile.open(out, "w") as target:
        classes = {member.name: _members(source, member) for member in source if member.name.endswith(".tar")}
        chosen = dict.fromkeys(
            itertools.islice(_round_robin({name: len(own) for name, own in classes.items()}), num_images)
        )
        for name, members in classes.items():
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for number, (image_name, data) in enumerate(members):
                    if (name, number) in chosen:
                        _add(tar, image_name, data)
            _add(target, name, inner.getvalue())
    return len(chosen)


def _members(source: tarfile.TarFile, member: tarfile.TarInfo) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=source.extractfile(member)) as tar:
        return [(image.name, content.read()) for image in tar if (content := tar.extractfile(image))]


def _round_robin(sizes: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Yield the first of each class, then the second, and so on."""
    for number in range(max(sizes.values(), default=0)):
        yield from ((name, number) for name, size in sizes.items() if number < size)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))


def write_parts(files: Sequence[Path], out: Path, part_bytes: int, python: str) -> list[Path]:
    """Pack files into parts and describe them in pack.json; returns the parts."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("pack.*"):
        old.unlink()
    with tempfile.TemporaryFile(dir=out) as whole:
        with lzma.open(whole, "wb", preset=6) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
            for path in files:
                tar.add(path, path.name)
        digest, parts = hashlib.sha256(), list[Path]()
        whole.seek(0)
        while data := whole.read(part_bytes):
            digest.update(data)
            parts.append(out / f"pack.{len(parts):03d}")
            parts[-1].write_bytes(data)
    facts = {"python": python, "parts": [path.name for path in parts], "sha256": digest.hexdigest()}
    (out / "pack.json").write_text(json.dumps(facts, indent=2) + "\n")
    return parts


class _Parts(io.RawIOBase):
    """The parts of a pack as one stream."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._blocks, self._rest = _blocks(paths), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._rest = self._rest or next(self._blocks, b"")
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)], self._rest = taken, self._rest[len(taken) :]
        return len(taken)


def _blocks(paths: Sequence[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block


def install(pack: Path, site: Path, images: Path) -> None:
    """Install a pack's wheels into a folder for PYTHONPATH, without network, and lay its images beside.

    Installs nothing where the folder holds this pack already. Raises ValueError where a part is missing or damaged, and
    for a pack of another Python.
    """
    if not (pack / "pack.json").is_file():
        raise ValueError(f"{pack}: has no pack.json; make a pack with `make offline-pack`")
    facts = json.loads((pack / "pack.json").read_text())
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if facts["python"] != own:
        raise ValueError(f"{pack}: is for Python {facts['python']}, this is {own}; make offline-pack PYTHON={own}")
    mark = site / "pack.sha256"
    if mark.is_file() and mark.read_text() == facts["sha256"]:
        return
    paths = [pack / name for name in facts["parts"]]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ValueError(f"{pack}: lacks {', '.join(missing)}; bring every part")
    digest = hashlib.sha256()
    for block in _blocks(paths):
        digest.update(block)
    if digest.hexdigest() != facts["sha256"]:
        raise ValueError(f"{pack}: its parts are damaged (sha256 differs from pack.json); copy them again")
    site.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=site.parent) as folder:
        stream: IO[bytes] = io.BufferedReader(_Parts(paths))
        with lzma.open(stream) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as tar:
            tar.extractall(folder, filter="data")
        wheels = [str(path) for path in sorted(Path(folder).glob("*.whl"))]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*command, "--upgrade", "--target", str(site), *wheels], check=True)
        if (Path(folder) / "images.tar").is_file():
            (Path(folder) / "images.tar").replace(images)
    mark.write_text(facts["sha256"])


def main(words: Sequence[str] | None = None) -> None:
    """Make a pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--python", default="3.12", help="the version on the target machine")
    parser.add_argument("--part-mb", type=int, default=50)
    parser.add_argument("--dali", default="cuda130", choices=["cuda120", "cuda130"])
    parser.add_argument(
        "--images", type=Path, default=ARCHIVE, help="a raw archive; without it the session draws images"
    )
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        download(folder, options.python, options.dali)
        for wheel in folder.glob("*.whl"):
            trim(wheel, options.python)
        if options.images.is_file():
            print(f"{write_images(options.images, folder / 'images.tar'):,} images")
        parts = write_parts(sorted(folder.iterdir()), options.out, options.part_mb * 10**6, options.python)
        for wheel in sorted(folder.glob("*.whl")):
            print(f"{wheel.stat().st_size / 1e6:8.1f} MB  {wheel.name}")
    print(f"{len(parts)} parts, {sum(path.stat().st_size for path in parts) / 1e6:.1f} MB: {options.out}")


if __name__ == "__main__":
    main()
