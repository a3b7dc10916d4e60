from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.shards.index import index_path, read_index
from in21k.shards.sample import MAX_KEY_BYTES, Sample
from in21k.shards.writer import BLOCK_BYTES, ShardWriter, TarWriter, padded, tar_header

NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,96}\.(jpg|cls)", fullmatch=True)
MEMBERS = st.dictionaries(NAMES, st.binary(max_size=1500), max_size=6)
SAMPLES = st.lists(
    st.builds(
        Sample, st.from_regex(r"[A-Za-z0-9_-]{1,96}", fullmatch=True), st.binary(max_size=1500), st.integers(0, 21840)
    ),
    max_size=5,
    unique_by=lambda sample: sample.key,
)


def write_tar(path: Path, members: dict[str, bytes]) -> list[int]:
    with TarWriter(path) as writer:
        return [writer.add(name, data) for name, data in members.items()]


@given(members=MEMBERS)
def test_a_tar_is_read_by_tarfile_and_depends_on_nothing_but_its_members(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "some.tar"
    offsets = write_tar(path, members)
    written = path.read_bytes()
    with tarfile.open(path, "r:") as archive:
        actual = archive.getmembers()
        assert {member.name: archive.extractfile(member).read() for member in actual} == members
    assert [member.name for member in actual] == list(members)
    assert [member.offset_data for member in actual] == offsets
    for member in actual:
        header = written[member.offset : member.offset + BLOCK_BYTES]
        assert header[257:265] == b"ustar\x0000"
        assert header[136:148] == b"%011o\0" % 0  # the integer mtime
        assert (member.type, member.mode, member.uid, member.gid) == (tarfile.REGTYPE, 0o644, 0, 0)
    write_tar(path, members)
    assert path.read_bytes() == written


def test_the_longest_key_needs_no_extended_header(tmp_path: Path) -> None:
    name = "k" * MAX_KEY_BYTES + ".jpg"
    assert write_tar(tmp_path / "some.tar", {name: b"x"}) == [BLOCK_BYTES]
    assert (
        subprocess.run(["tar", "--list", "--file", tmp_path / "some.tar"], capture_output=True, check=True).stdout
        == (name + "\n").encode()
    )


def test_a_tar_that_fails_leaves_neither_itself_nor_a_rest_and_an_older_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "some.tar"
    path.write_bytes(b"older")
    writer = TarWriter(path)
    with pytest.raises(KeyError), writer:  # noqa: PT012
        writer.add("a.jpg", b"abc")
        raise KeyError
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("some.tar", b"older")]


@pytest.mark.parametrize(("num_bytes", "wanted"), [(0, 0), (1, 512), (512, 512), (513, 1024)])
def test_padding_fills_whole_blocks(num_bytes: int, wanted: int) -> None:
    assert padded(num_bytes) == wanted


@given(samples=SAMPLES)
def test_a_shard_holds_label_and_image_of_each_sample_side_by_side(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]
) -> None:
    path = tmp_path_factory.getbasetemp() / "shard.tar"
    with ShardWriter(path) as writer:
        offsets = [writer.add_sample(sample) for sample in samples]
    data = path.read_bytes()
    with tarfile.open(path, "r:") as archive:
        assert [member.name for member in archive] == [
            f"{sample.key}.{extension}" for sample in samples for extension in ("cls", "jpg")
        ]
    index = read_index(index_path(path))
    for sample, offset, (label, image) in zip(samples, offsets, index, strict=True):
        assert data[offset : offset + len(sample.image)] == sample.image
        assert (image.extension, image.offset, image.name) == ("jpg", offset, f"{sample.key}.jpg")
        assert (label.extension, label.name) == ("cls", f"{sample.key}.cls")
        assert data[label.offset : label.offset + label.num_bytes] == str(sample.class_index).encode()


def test_the_index_comes_after_the_shard_and_not_without_it(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "shard.tar")
    with pytest.raises(KeyError), writer:  # noqa: PT012
        writer.add_sample(Sample("a", b"abc", 1))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_the_index_is_the_one_that_dalis_own_tool_writes(
    tmp_path: Path, draw: Callable[..., object], encode: Callable[..., bytes]
) -> None:
    wds2idx = pytest.importorskip("wds2idx", reason="DALI is not installed")
    path = tmp_path / "shard.tar"
    with ShardWriter(path) as writer:
        for number in range(5):
            key = f"n01440764_{number}" + "x" * 85 * (number == 3)
            writer.add_sample(Sample(key, encode(draw(40 + 9 * number, 30, number)), 10**number))
    with wds2idx.IndexCreator(str(path), str(tmp_path / "dali.idx"), verbose=False) as creator:
        creator.create_index()
    assert index_path(path).read_text() == (tmp_path / "dali.idx").read_text()


def test_a_shard_ends_as_a_tar_ends(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shard.tar"):
        pass
    assert (tmp_path / "shard.tar").read_bytes() == bytes(2 * BLOCK_BYTES)
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "shard.tar").read_bytes()), mode="r:") as archive:
        assert archive.getmembers() == []


@given(
    name=st.text(min_size=1, max_size=25).filter(
        lambda name: "\0" not in name and name.isprintable() and name[-1] != "/"
    ),
    size=st.integers(0, (8 << 30) - 1),
)
def test_a_header_is_what_tarfile_reads_as_a_plain_file(name: str, size: int) -> None:
    header = tar_header(name, size)
    member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    assert len(header) == 512
    assert (member.name, member.size, member.isreg()) == (name, size, True)
    assert (member.mode, member.mtime, member.uid, member.gid, member.uname, member.gname) == (0o644, 0, 0, 0, "", "")


@pytest.mark.parametrize(("name", "size"), [("x" * 101, 1), ("x", 8 << 30)])
def test_what_a_plain_header_cannot_hold_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="wanted a name of at most 100 bytes and a size below 8 GiB"):
        tar_header(name, size)
