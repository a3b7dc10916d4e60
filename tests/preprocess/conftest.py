"""One small set of images, and every layout in which a source may hold it."""

from __future__ import annotations

import gzip
import io
import os
import random
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from in21k.shards.dataset import PreparedSet

Images = dict[str, dict[str, bytes]]
Entries = list[tuple[str, bytes]]


@pytest.fixture(params=["pillow", "opencv"])
def resizer(request: pytest.FixtureRequest) -> str:
    if request.param == "opencv":
        pytest.importorskip("cv2", reason="OpenCV is not installed")
    return request.param


@pytest.fixture(scope="session")
def images(draw: Callable[..., Image.Image], encode: Callable[..., bytes]) -> Images:
    """Three classes with odd names: 9 members of birds (3 are rejects), 5 swans, 1 sun. {wnid: {name: bytes}}."""
    birds = [
        "n01503061_9.JPEG",
        "a/b/n01503061_10.JPEG",
        "\udcff.jpg",
        "ä ö.png",
        "long/" + "x" * 150 + ".jpeg",
        "z.jpg",
    ]
    swans = [f"n01858441_{number}.JPEG" for number in range(5)]
    return {
        "n01503061": {
            **{name: encode(draw(20, 18, seed=number)) for number, name in enumerate(birds)},
            "empty.jpg": b"",
            "cut.jpg": encode(draw(20, 18))[:-150],
            "sub/notes.txt": b"no image",
        },
        "n01858441": {name: encode(draw(22, 17, seed=number + 20)) for number, name in enumerate(swans)},
        "n09450163": {"n09450163_1.JPEG": encode(draw(19, 21, seed=40))},
    }


def write_tar(entries: Iterable[tuple[str, bytes | tarfile.TarInfo]], format_: int = tarfile.GNU_FORMAT) -> bytes:
    """Return a tar of (name, content) in that order; a TarInfo as content goes in as it is."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_) as archive:
        for name, content in entries:
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = 0 if isinstance(content, tarfile.TarInfo) else len(content)
            archive.addfile(member, None if isinstance(content, tarfile.TarInfo) else io.BytesIO(content))
    return out.getvalue()


def class_tars(images: Images, prefix: str = "", inner: str = "", format_: int = tarfile.GNU_FORMAT) -> Entries:
    """Return class tars as the entries of an archive."""
    return [
        (f"{prefix}{wnid}.tar", write_tar([(inner + name, data) for name, data in members.items()], format_))
        for wnid, members in images.items()
    ]


def class_folders(images: Images, prefix: str = "", *, shuffled: bool = False) -> Entries:
    """Return class folders as the entries of an archive, one class after the other, or shuffled."""
    entries = [(f"{prefix}{wnid}/{name}", data) for wnid, members in images.items() for name, data in members.items()]
    return random.Random(1).sample(entries, len(entries)) if shuffled else entries


def write_files(folder: Path, entries: Entries) -> Path:
    """Write entries as files."""
    for name, data in entries:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


class Pipe(io.RawIOBase):
    """What can be read once, from front to back, in pieces as a pipe gives them."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        return self._content.readinto(memoryview(buffer)[:5000])


WAYS = ["plain", "gzip", "stdin", "gzipped stdin"]


@pytest.fixture
def hand_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes, str], Path]:
    """Hand a tar over in one of WAYS: returns what to give to `open_raw_tar`."""

    def hand_over(content: bytes, way: str) -> Path:
        if "gzip" in way:
            content = gzip.compress(content, 1)
        if "stdin" in way:
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(Pipe(content))))
            return Path("-")
        path = tmp_path / ("raw.tar.gz" if way == "gzip" else "raw.tar")
        path.write_bytes(content)
        return path

    return hand_over


def tables_of(out: Path) -> dict[str, bytes]:
    """Read all that a prepared data set holds but what names its source."""
    files = {os.path.relpath(path, out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    files.pop("dataset.json")
    return files


def facts_of(prepared: PreparedSet) -> dict[str, Any]:
    """Return what dataset.json says, but for what names its source."""
    return {name: value for name, value in prepared.info.items() if name not in ("source", "self_sha256")}
