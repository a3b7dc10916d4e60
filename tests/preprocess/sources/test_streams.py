"""Whole runs from streams: gzipped archives and standard input."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_raw_tar
from in21k.shards.dataset import PreparedSet
from in21k.shards.files.parallel import run_tasks

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
    again = prepare(
        open_raw_tar(packed),
        tmp_path / "out",
        select=select,
        image=image_settings,
        run_tasks=partial(run_tasks, workers=2),
    )
    assert again.info["source"] == {"name": "raw.tar.gz", "num_bytes": packed.stat().st_size}
    files, expected = files_of(again.path), files_of(prepared.path)
    assert files.pop("dataset.json") != expected.pop("dataset.json")
    assert files == expected


def test_classes_whose_keys_could_meet_are_refused_in_a_stream(
    tmp_path: Path, draw: Draw, encode: Encode, write_archive: WriteArchive
) -> None:
    plain = write_archive(
        tmp_path / "raw.tar", {"cat": {"big_a.jpg": encode(draw())}, "cat_big": {"a.jpg": encode(draw())}}
    )
    packed = tmp_path / "raw.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    select = SelectSettings(rare_threshold=0, val_per_class=0)
    with pytest.raises(ValueError, match="cat and cat_big could give images the same key"):
        prepare(open_raw_tar(packed), tmp_path / "out", select=select, image=SMALL)
    assert prepare(open_raw_tar(plain), tmp_path / "plain", select=select, image=SMALL).num_samples == {"train": 2}


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
        with pytest.raises(ValueError, match=r"(raw\.tar\.gz|standard input): its checksum does not match"):
            prepare(open_raw_tar(source), tmp_path / "out", select=select, image=image_settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"n1": 2, "n2": 3}, "n1 differs from what an earlier run"),
        ({"n2": 1}, "lacks n1 and 0 more that an earlier"),
    ],
)
def test_a_stream_of_another_archive_does_not_go_on_with_the_work_of_the_first(
    tmp_path: Path,
    draw: Draw,
    encode: Encode,
    write_archive: WriteArchive,
    monkeypatch: pytest.MonkeyPatch,
    second: dict[str, int],
    message: str,
) -> None:
    """Standard input has neither name nor size."""
    image = encode(draw(60, 50))
    select = SelectSettings(rare_threshold=0, val_per_class=0)

    def attempt(counts: dict[str, int], keep: int | None = None) -> None:
        images = {wnid: {f"{i}.jpg": image for i in range(40 * count)} for wnid, count in counts.items()}
        source = write_archive(tmp_path / "raw.tar", images)
        if keep is not None:
            source.write_bytes(source.read_bytes()[:keep])
        with source.open("rb") as file:
            monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file))
            prepare(open_raw_tar(Path("-")), tmp_path / "out", select=select, image=SMALL)

    with pytest.raises(ValueError, match="damaged"):
        attempt({"n1": 1, "n2": 1}, keep=-20_000)
    assert [path.stem for path in (tmp_path / "out" / ".work" / "classes").glob("*.json")] == ["n1"]
    with pytest.raises(ValueError, match=message):
        attempt(second)
    attempt({"n1": 1, "n2": 1})
    assert PreparedSet(tmp_path / "out").num_samples == {"train": 80}
