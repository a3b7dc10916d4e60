from __future__ import annotations

import gzip
import io
import os
import random
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from in21k.preprocess.sources.archive import ClassTar, list_class_tar
from in21k.preprocess.sources.members import Member, Reject, readable
from in21k.preprocess.sources.open import open_raw_tar

TarOf = Callable[..., bytes]


def scanned(source: Path) -> tuple[list[ClassTar], list[Reject]]:
    raw = open_raw_tar(source)
    units = list(raw.units()) if raw.classes() is None else raw.classes()
    return units, raw.rejects


def special(name: str, member_type: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = member_type, target
    return member


def listed(data: bytes) -> tuple[list[Member], list[Reject]]:
    return list_class_tar(ClassTar(Path("raw.tar"), "n1", "n1.tar", 0, len(data)), data)[:2]


def reasons(rejects: list[Reject]) -> dict[str, str]:
    return {reject.name: reject.reason for reject in rejects}


def test_class_tars_are_found_wherever_they_lie_and_read_from_there(tmp_path: Path, tar_of: TarOf) -> None:
    one, two = tar_of({"a.jpg": b"abc"}), tar_of({"b.jpg": b"defg"})
    source = tmp_path / "raw.tar"
    source.write_bytes(
        tar_of({"fall11": special("fall11", tarfile.DIRTYPE), "n01440764.tar": one, "fall11/deep/n01443537.tar": two})
    )
    archives, rejects = scanned(source)
    assert [(archive.wnid, archive.name) for archive in archives] == [
        ("n01440764", "n01440764.tar"),
        ("n01443537", "fall11/deep/n01443537.tar"),
    ]
    assert [archive.read() for archive in archives] == [one, two]
    assert rejects == []


def test_outer_members_that_are_no_class_are_named_with_the_reason(tmp_path: Path, tar_of: TarOf) -> None:
    source = tmp_path / "raw.tar"
    source.write_bytes(
        tar_of(
            {
                "README.txt": b"hello",
                "n1.tar": tar_of({"a.jpg": b"abc"}),
                "again/n1.tar": tar_of({"b.jpg": b"abc"}),
                ".tar": b"",
                "link.tar": special("link.tar", tarfile.SYMTYPE, "n1.tar"),
                "hard.tar": special("hard.tar", tarfile.LNKTYPE, "n1.tar"),
                "pipe": special("pipe", tarfile.FIFOTYPE),
            }
        )
    )
    archives, rejects = scanned(source)
    assert [archive.name for archive in archives] == ["n1.tar"]
    assert {reject.wnid for reject in rejects} == {None}
    assert reasons(rejects) == {
        "README.txt": "no class",
        "again/n1.tar": "duplicate",
        ".tar": "no class",
        "link.tar": "not a regular file",
        "hard.tar": "not a regular file",
        "pipe": "not a regular file",
    }


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "not a tar, or damaged"),
        (b"no tar at all" * 100, "not a tar, or damaged"),
        (b"\x1f\x8b\x08" + bytes(1021), "not a tar, or damaged"),
        (bytes(1024), r"holds no classes \(it is empty\)"),
    ],
    ids=["nothing", "text", "gzip", "empty tar"],
)
def test_a_source_that_is_no_archive_is_refused_by_name(tmp_path: Path, content: bytes, wanted: str) -> None:
    source = tmp_path / "raw.tar"
    source.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(source)) + ": " + wanted):
        scanned(source)


def test_an_archive_of_something_else_is_refused_with_what_it_holds(tmp_path: Path, tar_of: TarOf) -> None:
    (tmp_path / "raw.tar").write_bytes(tar_of({"notes/a.txt": b"abc"}))
    with pytest.raises(ValueError, match=r"holds no classes \(its first member is notes/a.txt\).*n01440764\.tar"):
        scanned(tmp_path / "raw.tar")


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; wanted an archive"):
        scanned(tmp_path)
    with pytest.raises(OSError, match=r"raw\.tar"):
        scanned(tmp_path / "raw.tar")


@pytest.fixture
def three_classes(tmp_path: Path, tar_of: TarOf) -> Path:
    """An archive of the classes n1, n2 and n3, the second beginning at byte 10,752."""
    source = tmp_path / "raw.tar"
    source.write_bytes(tar_of({f"n{number}.tar": tar_of({"a.jpg": b"abc"}) for number in (1, 2, 3)}))
    assert scanned(source)[0][1].offset == 10_752 + 512
    return source


def test_an_archive_that_ends_in_mid_member_is_refused(three_classes: Path) -> None:
    three_classes.write_bytes(three_classes.read_bytes()[:15_000])
    with pytest.raises(ValueError, match=r"ends inside n2\.tar.*it has 15,000; copy or download the archive again"):
        scanned(three_classes)


def test_an_archive_that_ends_in_mid_header_is_refused(three_classes: Path) -> None:
    three_classes.write_bytes(three_classes.read_bytes()[: 10_752 + 100])
    with pytest.raises(ValueError, match=re.escape(str(three_classes))):
        scanned(three_classes)


def test_an_archive_that_ends_between_members_is_refused(three_classes: Path) -> None:
    """A download that stopped there: nothing marks the end of the tar."""
    three_classes.write_bytes(three_classes.read_bytes()[:10_752])
    with pytest.raises(ValueError, match=re.escape(str(three_classes))):
        scanned(three_classes)


def test_an_archive_with_a_damaged_header_is_refused(three_classes: Path) -> None:
    data = bytearray(three_classes.read_bytes())
    data[10_752 + 148 : 10_752 + 156] = b"\xff" * 8
    three_classes.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(str(three_classes))):
        scanned(three_classes)


def test_an_archive_that_got_shorter_is_told(three_classes: Path) -> None:
    archives, _ = scanned(three_classes)
    three_classes.write_bytes(three_classes.read_bytes()[:15_000])
    assert len(archives[0].read()) == archives[0].num_bytes
    with pytest.raises(ValueError, match=r"ends inside n2\.tar; it was longer when the run began"):
        archives[1].read()


def test_images_come_by_byte_order_of_their_names_with_their_place(tar_of: TarOf) -> None:
    names = ["n1_9.JPEG", "n1_10.jpg", "b/n1_1.png", "Z.GIF", "é.webp", "a.bmp", "n1_100.jpeg", "\udcff.jpg"]
    data = tar_of({name: name.encode("utf-8", "surrogateescape") for name in names})
    members, rejects = listed(data)
    assert [member.name for member in members] == sorted(names, key=os.fsencode)
    assert rejects == []
    for member in members:
        assert data[member.offset :][: member.num_bytes] == os.fsencode(member.name)


def test_names_that_are_no_utf_8_are_escaped_for_tables_and_messages() -> None:
    assert [readable("é.jpg"), readable("\udcff.jpg")] == ["é.jpg", r"\xff.jpg"]


def test_what_leads_nowhere_in_a_name_does_not_count(tar_of: TarOf) -> None:
    data = tar_of([("./a.jpg", b"abc"), ("b//./c.jpg", b"abc"), ("a.jpg", b"abc"), ("/./d.jpg", b"abc")])
    members, rejects = listed(data)
    assert [member.name for member in members] == ["a.jpg", "b/c.jpg"]
    assert reasons(rejects) == {"a.jpg": "duplicate", "/d.jpg": "unsafe name"}


def with_pax(headers: dict[str, str], second: str = "y.jpg") -> bytes:
    """A tar of x.jpg, with those extended headers, and y.jpg."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, pax in (("x.jpg", headers), (second, {})):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = 3, pax
            archive.addfile(member, io.BytesIO(b"abc"))
    return out.getvalue()


def test_a_name_with_a_zero_byte_is_unsafe() -> None:
    members, rejects = listed(with_pax({"path": "a\0b.jpg"}))
    assert [member.name for member in members] == ["y.jpg"]
    assert reasons(rejects) == {"a\0b.jpg": "unsafe name"}


@pytest.mark.parametrize("size", ["-1", "-1024", "-5000000000"])
def test_a_member_of_less_than_no_bytes_is_damage_and_no_endless_loop(size: str, tmp_path: Path, tar_of: TarOf) -> None:
    data = with_pax({"size": size})
    assert [reject.reason for reject in listed(data)[1]] == ["damaged class tar"]
    for source in (tmp_path / "raw.tar", tmp_path / "raw.tar.gz"):
        source.write_bytes(data if source.suffix == ".tar" else gzip.compress(data))
        with pytest.raises(ValueError, match=f"x.jpg has {size} bytes|invalid offset"):
            scanned(source)


@pytest.mark.parametrize("sparse_map", ["x,y", "1", ""])
def test_an_odd_sparse_map_in_a_class_tar_is_damage_or_a_reject(sparse_map: str) -> None:
    _, rejects = listed(with_pax({"GNU.sparse.map": sparse_map}))
    assert len(rejects) == 1
    assert rejects[0].reason in ("damaged class tar", "not a regular file")


def test_a_sparse_member_that_is_large_unpacked_is_a_reject_and_no_cut_off_archive(tmp_path: Path) -> None:
    source = tmp_path / "raw.tar"
    headers = {"GNU.sparse.map": "0,3", "GNU.sparse.realsize": "99999999", "path": "n1/x.jpg"}
    source.write_bytes(with_pax(headers, "n1/y.jpg"))
    [actual], _ = scanned(source)
    with actual.open() as contents:
        assert [member.path for member in contents.members] == ["n1/y.jpg"]
        assert reasons(contents.rejects) == {"x.jpg": "not a regular file"}


def test_crc_in_a_members_name_is_no_checksum_of_the_archive(tmp_path: Path) -> None:
    source = tmp_path / "raw.tar.gz"
    source.write_bytes(gzip.compress(with_pax({"path": "n1/CRC.jpg", "size": "-5"})))
    with pytest.raises(ValueError, match=r"damaged \(.*(CRC.jpg has -5 bytes|invalid offset)"):
        scanned(source)


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_are_an_error_or_rejects_and_nothing_else(seed: int, tmp_path: Path, tar_of: TarOf) -> None:
    """Only of ours: a ValueError that names the archive."""
    draw = random.Random(seed)
    inner = tar_of({f"n1_{number}.jpg": b"abc" for number in range(3)}) + with_pax({"path": "p" * 200})
    whole = tar_of({"n1.tar": inner, "n2/a.jpg": b"abc", "n2/" + "x" * 120 + ".jpg": b"abc"})
    source = tmp_path / "raw.tar"
    for _ in range(40):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 30)):
            content[draw.randrange(len(content))] = draw.choice([0, 32, 48, 55, 128, 255, draw.randrange(256)])
        source.write_bytes(content)
        listed(bytes(content))
        try:
            units, _ = scanned(source)
            for unit in units:
                with unit.open() as contents:
                    list(contents.read(contents.members))
        except ValueError as error:
            assert str(error).startswith(f"{source}: ")  # noqa: PT017


def test_members_that_are_no_images_are_named_with_the_reason(tar_of: TarOf) -> None:
    sparse = tarfile.TarInfo("sparse.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    data = tar_of(
        [
            ("good.jpg", b"abc"),
            ("folder", special("folder", tarfile.DIRTYPE)),
            ("README", b"abc"),
            ("a.jpg.txt", b"abc"),
            ("/etc/a.jpg", b"abc"),
            ("../a.jpg", b"abc"),
            ("b/../../a.jpg", b"abc"),
            ("link.jpg", special("link.jpg", tarfile.SYMTYPE, "good.jpg")),
            ("hard.jpg", special("hard.jpg", tarfile.LNKTYPE, "good.jpg")),
            ("device.jpg", special("device.jpg", tarfile.CHRTYPE)),
            ("sparse.jpg", sparse),
            ("good.jpg", b"other"),
            ("a..b.jpg", b"abc"),
        ]
    )
    members, rejects = listed(data)
    assert [member.name for member in members] == ["a..b.jpg", "good.jpg"]
    assert {reject.wnid for reject in rejects} == {"n1"}
    assert reasons(rejects) == {
        "README": "no image suffix",
        "a.jpg.txt": "no image suffix",
        "/etc/a.jpg": "unsafe name",
        "../a.jpg": "unsafe name",
        "b/../../a.jpg": "unsafe name",
        "link.jpg": "not a regular file",
        "hard.jpg": "not a regular file",
        "device.jpg": "not a regular file",
        "sparse.jpg": "not a regular file",
        "good.jpg": "duplicate",
    }


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_whole(format_: int) -> None:
    out, name = io.BytesIO(), "d/" + "x" * 180 + "é.jpg"
    with tarfile.open(fileobj=out, mode="w", format=format_) as archive:
        member = tarfile.TarInfo(name)
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    members, rejects = listed(out.getvalue())
    assert ([member.name for member in members], rejects) == ([name], [])


@pytest.mark.parametrize("data", [b"", bytes(512), bytes(10240)], ids=["nothing", "a block", "an empty tar"])
def test_an_empty_class_tar_is_a_class_without_images(data: bytes) -> None:
    assert listed(data) == ([], [])


def test_a_class_tar_that_is_none_is_named() -> None:
    members, rejects = listed(b"no tar at all" * 100)
    assert members == []
    assert [(reject.wnid, reject.name, reject.reason) for reject in rejects] == [(None, "n1.tar", "damaged class tar")]


def five_images(tar_of: TarOf) -> bytes:
    return tar_of({f"n1_{number}.jpg": b"abc" for number in range(5)})


def test_a_class_tar_that_ends_early_is_named_and_what_is_there_is_listed(tar_of: TarOf) -> None:
    members, rejects = listed(five_images(tar_of)[: 2 * 1024 + 512 + 1])
    assert [member.name for member in members] == ["n1_0.jpg", "n1_1.jpg", "n1_2.jpg"]
    assert [reject.reason for reject in rejects] == ["damaged class tar"]


@pytest.mark.parametrize("cut", [2 * 1024 + 100, 2 * 1024])
def test_a_class_tar_that_ends_in_or_before_a_header_is_named(tar_of: TarOf, cut: int) -> None:
    members, rejects = listed(five_images(tar_of)[:cut])
    assert [member.name for member in members] == ["n1_0.jpg", "n1_1.jpg"]
    assert [reject.reason for reject in rejects] == ["damaged class tar"]


def test_a_damaged_header_in_a_class_tar_is_named(tar_of: TarOf) -> None:
    data = bytearray(five_images(tar_of))
    data[2 * 1024 + 148 : 2 * 1024 + 156] = b"\xff" * 8
    members, rejects = listed(bytes(data))
    assert [member.name for member in members][:2] == ["n1_0.jpg", "n1_1.jpg"]
    assert [reject.reason for reject in rejects] == ["damaged class tar"]


class StandardInput:
    """Standard input that cannot seek, as a pipe."""

    def __init__(self, content: bytes) -> None:
        class Pipe(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def readinto(self, buffer: bytearray) -> int:
                return io.BytesIO.readinto(source, buffer)

        source = io.BytesIO(content)
        self.buffer = io.BufferedReader(Pipe())


@pytest.fixture(params=["plain", "gzip file", "standard input", "gzipped standard input"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Path]:
    """Give a tar's bytes to `open_raw_tar` in each of the ways it takes them."""

    def opened(content: bytes) -> Path:
        if "gzip" in request.param:
            content = gzip.compress(content)
        if "input" in request.param:
            monkeypatch.setattr(sys, "stdin", StandardInput(content))
            return Path("-")
        (tmp_path / "raw.tar").write_bytes(content)
        return tmp_path / "raw.tar"

    return opened


def test_every_way_to_hand_an_archive_over_gives_the_same_classes(
    opened: Callable[[bytes], Path], tar_of: TarOf
) -> None:
    one, two = tar_of({"a.jpg": b"abc"}), tar_of({"b.jpg": b"defg"})
    content = tar_of({"README": b"hello", "n1.tar": one, "deep/n2.tar": two, "again/n1.tar": two, "n3.tar": b""})
    archives, rejects = scanned(opened(content))
    assert [(archive.wnid, archive.name, archive.read()) for archive in archives] == [
        ("n1", "n1.tar", one),
        ("n2", "deep/n2.tar", two),
        ("n3", "n3.tar", b""),
    ]
    assert reasons(rejects) == {"README": "no class", "again/n1.tar": "duplicate"}


@pytest.mark.parametrize("kept", [0.4, 0.7])
def test_an_archive_cut_off_is_an_error_in_every_way(
    opened: Callable[[bytes], Path], tar_of: TarOf, kept: float
) -> None:
    content = tar_of({f"n{number}.tar": tar_of({"a.jpg": b"abc" * 900}) for number in range(4)})
    with pytest.raises(ValueError, match=r"damaged|ends inside"):
        scanned(opened(content[: int(kept * len(content))]))


def test_a_gzip_file_cut_off_is_an_error(tmp_path: Path, tar_of: TarOf) -> None:
    noise = random.Random(0).randbytes(100_000)
    packed = gzip.compress(tar_of({"n1.tar": tar_of({"a.jpg": noise}), "n2.tar": tar_of({"a.jpg": noise[::-1]})}))
    (tmp_path / "raw.tar.gz").write_bytes(packed[:-50_000])
    with pytest.raises(ValueError, match=r"raw\.tar\.gz: .*damaged"):
        scanned(tmp_path / "raw.tar.gz")


def test_a_hole_of_zeros_does_not_pass_for_the_end(opened: Callable[[bytes], Path], tar_of: TarOf) -> None:
    """As a download that filled the file from several places leaves it."""
    content = bytearray(tar_of({f"n{number}.tar": tar_of({"a.jpg": b"abc"}) for number in range(4)}))
    content[2 * 10_752 : 2 * 10_752 + 512] = bytes(512)
    with pytest.raises(ValueError, match="more follows where the tar seems to end"):
        scanned(opened(bytes(content)))


def test_a_hole_of_zeros_in_a_class_tar_is_named(tar_of: TarOf) -> None:
    data = bytearray(five_images(tar_of))
    data[2 * 1024 : 2 * 1024 + 512] = bytes(512)
    assert reasons(listed(bytes(data))[1]) == {"n1.tar": "damaged class tar"}
