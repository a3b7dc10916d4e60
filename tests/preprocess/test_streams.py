"""Whole runs from streams: gzipped archives and standard input."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from in21k.preprocess.image import ImageSettings
from in21k.preprocess.run import prepare_raw_tar
from in21k.preprocess.select import SelectSettings
from in21k.shards.dataset import PreparedSet

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]
WriteArchive = Callable[..., Path]
SMALL = ImageSettings(size=32)


def test_a_gzipped_archive_gives_what_the_plain_one_gives(
    tmp_path: Path,
    raw_archive: Path,
    prepared: PreparedSet,
    select: SelectSettings,
    image_settings: ImageSettings,
    files_of: Callable[[Path], dict[str, bytes]],
) -> None:
    packed = tmp_path / "raw.tar.gz"
    packed.write_bytes(gzip.compress(raw_archive.read_bytes()))
    again = prepare_raw_tar(packed, tmp_path / "out", select=select, image=image_settings, workers=2)
    assert again.info["source"] == {"name": "raw.tar.gz", "num_bytes": packed.stat().st_size}
    files, expected = files_of(again.path), files_of(prepared.path)
    assert files.pop("dataset.json") != expected.pop("dataset.json")
    assert files == expected


def test_classes_whose_keys_could_meet_are_refused_in_a_stream(
    tmp_path: Path, draw: Draw, encode: Encode, write_archive: WriteArchive
) -> None:
    plain = write_archive(
        tmp_path / "raw.tar", {"cat": {"a.jpg": encode(draw())}, "cat_big": {"a.jpg": encode(draw())}}
    )
    packed = tmp_path / "raw.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    select = SelectSettings(rare_threshold=0, val_per_class=0)
    with pytest.raises(ValueError, match="cat and cat_big could give images the same key"):
        prepare_raw_tar(packed, tmp_path / "out", select=select, image=SMALL)
    assert prepare_raw_tar(plain, tmp_path / "plain", select=select, image=SMALL).num_samples == {"train": 2}


@pytest.mark.parametrize("way", ["file", "standard input"])
def test_a_gzipped_archive_whose_checksum_does_not_fit_keeps_nothing(
    tmp_path: Path,
    raw_archive: Path,
    select: SelectSettings,
    image_settings: ImageSettings,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """It is known at the end alone, when every class is done: any of them may be wrong."""
    packed = bytearray(gzip.compress(raw_archive.read_bytes()))
    packed[-6] ^= 1  # in the checksum
    source = tmp_path / "raw.tar.gz"
    source.write_bytes(packed)
    with source.open("rb") as file:
        if way == "standard input":
            monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file))
            source = Path("-")
        with pytest.raises(ValueError, match=r"(raw\.tar\.gz|standard input): its checksum does not fit"):
            prepare_raw_tar(source, tmp_path / "out", select=select, image=image_settings)
    assert not (tmp_path / "out").exists()
