"""A damaged or hostile archive, however it comes, is an error that names it or a data set that accounts for it."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rapidgzip
from PIL import Image

from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources import archive, stream
from in21k.preprocess.sources.archive import ClassTar
from in21k.preprocess.sources.open import open_raw_tar
from in21k.shards.verify import verify

from .tar_mutants import mutate, with_size

TarOf = Callable[..., bytes]
WAYS = ["plain", "gzip", "stdin", "gzipped stdin"]
READS_PAST_THE_END = 50  # a few are how an end is found


class Bounded(io.BufferedReader):
    """A file that fails a reader which goes on past its end."""

    def __init__(self, raw: Any) -> None:
        super().__init__(raw)
        self.past_end = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.past_end += not data
        assert self.past_end <= READS_PAST_THE_END, "it reads on past the end"
        return data


@pytest.fixture
def hand_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes, str], Path]:
    """Hand a tar over in one of WAYS; a stream fails whoever reads on past its end."""
    unpack = rapidgzip.open

    def hand_over(content: bytes, way: str) -> Path:
        if "gzip" in way:
            content = gzip.compress(content, 1)
        if "stdin" in way:
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Bounded(io.BytesIO(content))))
            return Path("-")
        monkeypatch.setattr(rapidgzip, "open", lambda *args, **options: Bounded(unpack(*args, **options)))
        path = tmp_path / ("raw.tar.gz" if way == "gzip" else "raw.tar")
        path.write_bytes(content)
        return path

    return hand_over


@pytest.fixture(scope="module")
def archives(tar_of: TarOf, draw: Callable[..., Image.Image], encode: Callable[..., bytes]) -> list[bytes]:
    """A tar of class tars, one of class folders, and one with pax headers."""
    photos = [encode(draw(20, 18, seed=seed)) for seed in range(6)]
    folders = {f"n{place}/{number}.jpg": photos[2 * place + number] for place in range(3) for number in range(2)}
    tars = {
        f"n{place}.tar": tar_of({f"{number}.jpg": photos[2 * place + number] for number in range(2)})
        for place in range(3)
    }
    pax = io.BytesIO()
    with tarfile.open(fileobj=pax, mode="w", format=tarfile.PAX_FORMAT) as out:
        for name, data in folders.items():
            member = tarfile.TarInfo(name.replace("/", "/ä" + "x" * 120))
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return [tar_of(tars), tar_of(folders), pax.getvalue()]


def outcome_of(source: Path, out: Path) -> str:
    """Prepare a source; return its error, or "" where the result is whole."""
    select = SelectSettings(rare_threshold=0, val_per_class=0)
    try:
        prepared = prepare(
            open_raw_tar(source), out, select=select, image=ImageSettings(resize="none"), max_reject_rate=1
        )
    except ValueError as error:
        return str(error)
    assert not verify(prepared, deep=True).problems
    return ""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1 << 62, 10**12 + 1, 10**12, 10**10, 1 << 20])
@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_member_larger_than_what_follows_ends_the_run_by_name(
    way: str, size: int, number: int, archives: list[bytes], hand_over: Callable[[bytes, str], Path], tmp_path: Path
) -> None:
    """The first member, one in the middle and the last; class tars, members of them, and images."""
    for place, content in enumerate(archives):
        source = hand_over(with_size(content, number, size), way)
        out = tmp_path / str(place)
        error = outcome_of(source, out)
        name = "standard input" if source == Path("-") else str(source)
        if place == 0 and number != 0:  # a member of a class tar, which is then damaged, as was allowed
            assert not error or "n0 would have no training image" in error
        else:
            assert error.startswith(f"{name}: ")
            assert not out.exists() or (out / ".work").is_dir()


@pytest.mark.parametrize("way", WAYS)
def test_a_header_that_wants_a_name_of_gigabytes_is_damage(
    way: str, hand_over: Callable[[bytes, str], Path], tmp_path: Path, tar_of: TarOf
) -> None:
    long_name = tar_of({"n1/" + "x" * 200 + ".jpg": b"abc"})
    error = outcome_of(hand_over(with_size(long_name, 0, 10**10), way), tmp_path / "out")
    assert "a header of 10,000,000,000 bytes" in error


def test_a_class_tar_of_a_stream_that_would_fill_the_memory_is_refused(
    hand_over: Callable[[bytes, str], Path], archives: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MAX_CLASS_TAR_BYTES", 1000)
    for way in WAYS[1:]:
        error = outcome_of(hand_over(archives[0], way), tmp_path / way)
        assert "n0.tar has 10,240 bytes; a class tar of a stream is held in memory, and 1,000 are the most" in error
    assert outcome_of(hand_over(archives[0], "plain"), tmp_path / "plain") == ""


def test_a_class_tar_that_says_it_is_longer_does_not_read_on_into_the_archive(
    archives: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its headers alone are read, of the archive as it lies: what is read is bounded whatever they say."""
    content = bytearray(with_size(archives[0], 1, 30_000))
    (tmp_path / "raw.tar").write_bytes(content)
    first = open_raw_tar(tmp_path / "raw.tar").classes()
    assert first is not None
    assert isinstance(first[0], ClassTar)
    items: list[int] = []

    def check_rest(file: Any, most: int = 0) -> None:
        items.append(most)

    monkeypatch.setattr(archive, "check_rest", check_rest)
    _, rejects = first[0].listed()
    assert [reject.reason for reject in rejects] == ["damaged class tar"]
    assert all(most >= 0 for most in items)


def fuzz(seeds: range, archives: list[bytes], hand_over: Callable[[bytes, str], Path], tmp_path: Path) -> int:
    """Return how many of the mutants gave a data set."""
    num_whole = 0
    for seed in seeds:
        source = hand_over(mutate(archives[seed % len(archives)], seed), WAYS[seed // len(archives) % len(WAYS)])
        error = outcome_of(source, tmp_path / str(seed))
        names = ("standard input: ", "-: ", "raw.tar: ", "raw.tar.gz: ", str(tmp_path))
        assert not error or error.startswith(names) or "would have no training image" in error
        num_whole += not error
    return num_whole


def test_mutants_are_refused_or_give_a_whole_data_set(
    archives: list[bytes], hand_over: Callable[[bytes, str], Path], tmp_path: Path
) -> None:
    assert 20 < fuzz(range(300), archives, hand_over, tmp_path) < 280


@pytest.mark.slow
def test_thousands_of_mutants_are_refused_or_give_a_whole_data_set(
    archives: list[bytes], hand_over: Callable[[bytes, str], Path], tmp_path: Path
) -> None:
    assert 20 < fuzz(range(1000, 6000), archives, hand_over, tmp_path) < 4980
