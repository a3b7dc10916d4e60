"""Sources that are odd: every member is accounted for, and what goes wrong is one clear error or a reject."""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import sys
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from in21k.preprocess import chunk_rows
from in21k.preprocess import run as run_module
from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources import open as sources
from in21k.preprocess.sources import stream
from in21k.preprocess.sources.class_names import class_id
from in21k.preprocess.sources.folders import Layout, class_of_folder, read_layout
from in21k.preprocess.sources.members import UselessError
from in21k.preprocess.sources.open import open_folder, open_raw_tar
from in21k.preprocess.sources.units import RawSource
from in21k.shards.dataset import PreparedSet, read_manifest
from in21k.shards.verify import verify

from ..conftest import WAYS, Images, class_folders, class_tars, tables_of, write_files, write_tar

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]
HandOver = Callable[[bytes, str], Path]
SMALL = ImageSettings(size=16)
ALL = SelectSettings(rare_threshold=0, val_per_class=0)


def prepared_of(source: RawSource, out: Path, **options: Any) -> PreparedSet:
    return prepare(source, out, **({"select": ALL, "image": SMALL, "max_reject_rate": 1} | options))


def rejects_of(prepared: PreparedSet) -> list[tuple[str | None, str, str]]:
    rows = pq.read_table(prepared.path / "rejects.parquet").to_pylist()
    assert prepared.info["counts"]["num_rejects"] == len(rows)
    assert all(row["detail"] for row in rows)
    return [(row["wnid"], row["name"], row["reason"]) for row in rows]


def sources_of(prepared: PreparedSet) -> list[tuple[str, str]]:
    return [(row["wnid"], row["source_name"]) for row in read_manifest(prepared).to_pylist()]


class Odd(NamedTuple):
    """A member of a random archive."""

    name: str
    kind: str


class OddTar(NamedTuple):
    """A class tar of a random archive."""

    name: str
    members: list[Odd]


SPECIAL = {
    "link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "device": tarfile.CHRTYPE,
    "pipe": tarfile.FIFOTYPE,
    "sparse": tarfile.GNUTYPE_SPARSE,
    "unknown": b"Q",
}
FOLDERS = [
    *("n01503061/", "a/n01503061/", "./n01858441/", "n01858441/sub/", "cats/", "cats/black/", "my cats/", "docs/", ""),
    *("x/imagenet21k_train/n09450163/", "x/imagenet21k_val/n09450163/", "imagenet21k_small_classes/n02051845/"),
    *("../n01503061/", "/n01503061/", "n01503061/../../", "n01503061//"),
]
MY_CATS = class_id("my cats")
FILES = ["1.jpg", "2.JPEG", "x_y.png", "x y.png", "\udcff.gif", "notes.txt", ".jpg"]
MEMBERS = st.builds(
    Odd,
    st.builds(str.__add__, st.sampled_from(FOLDERS), st.sampled_from(FILES)),
    st.sampled_from([*["good"] * 9, "png", "empty", "text", "cut", *SPECIAL]),
)
TARS = st.builds(
    OddTar, st.sampled_from(["n01503061.tar", "sub/n01858441.tar", "cats.tar", "my cats.tar"]), st.lists(MEMBERS)
)


def build(item: Odd | OddTar, contents: dict[str, bytes]) -> tuple[str, bytes | tarfile.TarInfo]:
    if isinstance(item, OddTar):
        return item.name, write_tar(build(member, contents) for member in item.members)
    entry = tarfile.TarInfo(item.name)
    entry.type, entry.linkname = SPECIAL.get(item.kind, tarfile.REGTYPE), "../../etc/passwd"
    return item.name, entry if item.kind in SPECIAL else contents[item.kind]


def class_of(folder: str, layout: Layout) -> str | None:
    name = class_of_folder(folder, layout).name
    return None if name is None else class_id(name)


def accounted(items: list[Odd | OddTar]) -> tuple[Counter[str | None], set[str]]:
    """Say, slowly and plainly, how many members each class has, None among them; and which classes there are."""
    actual: Counter[str | None] = Counter()
    classes: set[str] = set()
    for item in items:
        if isinstance(item, OddTar):
            wnid = class_id(item.name.rpartition("/")[2].removesuffix(".tar"))
            if wnid in classes:
                actual[None] += 1
            else:
                classes.add(wnid)
                actual[wnid] += len(item.members)
    names = [re.sub(r"^\./", "", item.name).replace("//", "/") for item in items if isinstance(item, Odd)]
    members = [(name.rpartition("/")[0], name.endswith(".txt")) for name in names]
    layout = read_layout([folder for folder, is_text in members if not is_text])
    loose = [(class_of(folder, layout), is_text) for folder, is_text in members]
    classes |= {wnid for wnid, is_text in loose if wnid and not is_text}
    actual.update(wnid if wnid in classes else None for wnid, _ in loose)
    return actual, classes


REFUSALS = (
    r"no class has more than|none of its|would have no training image|holds no classes|no class is left|"
    r"holds none of the"
)


@settings(max_examples=20)
@given(
    members=st.lists(MEMBERS, max_size=14),
    tars=st.lists(TARS, max_size=3),
    order=st.randoms(use_true_random=False),
    select=st.builds(
        SelectSettings,
        rare_threshold=st.sampled_from([0, 0, 1, 2]),
        val_per_class=st.sampled_from([0, 0, 1]),
        classes=st.sampled_from([None, None, frozenset({"n01503061", "cats", "n02051845"})]),
        drop_subtree=st.sampled_from([(), (), ("n01503061",)]),
    ),
    chunk_images=st.sampled_from([1, 3, 4096]),
)
def test_every_member_is_stored_rejected_or_of_a_dropped_class(
    tmp_path_factory: pytest.TempPathFactory,
    draw: Draw,
    encode: Encode,
    members: list[Odd],
    tars: list[OddTar],
    order: Any,
    select: SelectSettings,
    chunk_images: int,
) -> None:
    """Exactly one of the three, the same for a stream; and nothing is written elsewhere."""
    good = encode(draw(20, 18))
    contents = {"good": good, "png": encode(draw(20, 18), "PNG"), "empty": b"", "text": b"text", "cut": good[:-150]}
    items = order.sample([*members, *tars], len(members) + len(tars))
    home = tmp_path_factory.mktemp("random")
    folder = home / "a" / "b" / "c"  # below which `../..` would lead to what is looked at
    folder.mkdir(parents=True)
    (folder / "raw.tar").write_bytes(write_tar(build(item, contents) for item in items))
    (folder / "raw.tar.gz").write_bytes(gzip.compress((folder / "raw.tar").read_bytes(), 1))
    outs: list[PreparedSet | str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK_IMAGES", chunk_images)
        patch.setattr(sources, "SLICE_IMAGES", chunk_images)
        patch.setattr(chunk_rows, "MERGED_ROWS", chunk_images)
        for name in ("raw.tar", "raw.tar.gz"):
            out = folder / f"out of {name}"
            try:
                outs.append(prepared_of(open_raw_tar(folder / name), out, select=select))
            except ValueError as error:
                actual = re.search(REFUSALS, str(error))
                assert actual, error  # noqa: PT017
                outs.append(actual[0])
                assert not out.exists()
    assert {path.name for path in home.rglob("*")} <= {
        *("a", "b", "c", "raw.tar", "raw.tar.gz", "out of raw.tar", "out of raw.tar.gz", "train", "val"),
        *("dataset.json", "classes.parquet", "tree.json", "manifest.parquet", "rejects.parquet"),
        *(
            f"{wnid}.tar"
            for wnid in ("n01503061", "n01858441", "n02051845", "n09450163", "cats", "black", MY_CATS, "sub", "docs")
        ),
    }
    plain, gzipped = outs
    if isinstance(plain, str) or isinstance(gzipped, str):
        assert plain == gzipped
        return
    assert tables_of(plain.path) == tables_of(gzipped.path)
    wanted, classes = accounted(items)
    assert {row.wnid for row in plain.classes} == classes
    stored = sources_of(plain)
    assert len(set(stored)) == len(stored)
    rejects = rejects_of(plain)
    kept = {row.wnid for row in plain.classes if row.kept}
    listed = Counter(wnid for wnid, _ in stored) + Counter(wnid for wnid, _, _ in rejects)
    assert listed == +Counter({wnid: count for wnid, count in wanted.items() if wnid is None or wnid in kept})
    for row in plain.classes:
        num_lost = plain.info["dropped_for_rejects"].get(row.wnid, 0)
        assert not num_lost or row.num_raw <= select.rare_threshold < row.num_raw + num_lost <= wanted[row.wnid]
    assert not kept & {wnid for wnid in classes if wnid == "n01503061" and select.drop_subtree}
    assert verify(plain, deep=True).problems == []


@pytest.fixture
def photo(draw: Draw, encode: Encode) -> bytes:
    return encode(draw(20, 18))


def test_a_folder_without_images_is_no_class_in_every_way(photo: bytes, hand_over: HandOver, tmp_path: Path) -> None:
    """And does not change the keys of a class that its name begins with."""
    entries = [("set/docs/README", b"hello"), ("cat_1/notes.txt", b"hello"), ("set/cat/1_x.jpg", photo)]
    items = [prepared_of(open_raw_tar(hand_over(write_tar(entries), way)), tmp_path / way) for way in ("plain", "gzip")]
    items.append(prepared_of(open_folder(write_files(tmp_path / "folder", entries)), tmp_path / "out"))
    for item in items:
        assert tables_of(item.path) == tables_of(items[0].path)
    assert [row.wnid for row in items[0].classes] == ["cat"]
    assert read_manifest(items[0])["key"].to_pylist() == ["cat_1_x"]
    assert rejects_of(items[0]) == [(None, "cat_1/notes.txt", "no class"), (None, "set/docs/README", "no class")]


@pytest.mark.parametrize("way", ["plain", "gzip", "stdin"])
@pytest.mark.parametrize("entries", [[], [("docs/README", b"hello")], [("README", b"hello")]], ids=str)
def test_a_source_without_a_class_is_refused_and_leaves_nothing(
    entries: list[tuple[str, bytes]], way: str, hand_over: HandOver, tmp_path: Path
) -> None:
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    source = open_raw_tar(hand_over(write_tar([("folder", folder), *entries]), way))
    assert not source.is_processed()
    with pytest.raises(ValueError, match="holds no classes"):
        prepared_of(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_of_a_class_that_also_came_as_a_class_tar_are_rejects_in_every_way(
    photo: bytes, hand_over: HandOver, tmp_path: Path
) -> None:
    entries = [
        ("n1/b.jpg", photo),
        ("n1/c.jpg", b""),
        ("set/n1.tar", write_tar([("a.jpg", photo), ("x.txt", b"hello")])),
        ("n1/notes.txt", b"hello"),
        ("n1/b.jpg", photo),
    ]
    items = [prepared_of(open_raw_tar(hand_over(write_tar(entries), way)), tmp_path / way) for way in ("plain", "gzip")]
    assert tables_of(items[0].path) == tables_of(items[1].path)
    assert sources_of(items[0]) == [("n1", "a.jpg")]
    assert rejects_of(items[0]) == [
        ("n1", "n1/b.jpg", "duplicate"),
        ("n1", "n1/b.jpg", "duplicate"),
        ("n1", "n1/c.jpg", "duplicate"),
        ("n1", "notes.txt", "no image suffix"),
        ("n1", "x.txt", "no image suffix"),
    ]


def test_of_two_images_of_one_name_in_different_folders_both_are_stored_whatever_their_order(
    draw: Draw, encode: Encode, tmp_path: Path
) -> None:
    entries = [(f"{place}/n01503061/1.jpg", encode(draw(20, 18, seed=n))) for n, place in enumerate("bac")]
    items: list[PreparedSet] = []
    for number, some in enumerate((entries, entries[::-1])):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "raw.tar").write_bytes(write_tar(some))
        items.append(prepared_of(open_raw_tar(tmp_path / str(number) / "raw.tar"), tmp_path / str(number) / "out"))
    assert tables_of(items[0].path) == tables_of(items[1].path)
    assert [name for _, name in sources_of(items[0])] == ["1.jpg", "b/n01503061/1.jpg", "c/n01503061/1.jpg"]


@pytest.mark.parametrize("way", WAYS)
def test_a_name_of_any_script_is_a_class_in_every_way(
    way: str, photo: bytes, hand_over: HandOver, tmp_path: Path
) -> None:
    names = ["golden retriever", "café", "金毛犬", "001.Black_footed_Albatross", "x" * 200, "plain-1"]
    folders = [(f"images/{name}/{number} a.jpg", photo) for name in names for number in range(2)]
    prepared = prepared_of(
        open_raw_tar(hand_over(write_tar([*folders, ("Ünal.tar", write_tar(folders))]), way)), tmp_path / "out"
    )
    wanted = {class_id(name): name for name in [*names, "Ünal"]}
    assert prepared.tree.wnids == tuple(sorted(wanted))
    assert dict(zip(prepared.tree.wnids, prepared.tree.names, strict=True)) == wanted
    assert {row.wnid: row.name for row in prepared.classes} == wanted
    assert rejects_of(prepared) == []
    assert verify(prepared, deep=True).problems == []


def test_one_name_in_two_normal_forms_is_one_class(photo: bytes, tmp_path: Path) -> None:
    files = [(unicodedata.normalize(form, f"café/{form}.jpg"), photo) for form in ("NFC", "NFD")]
    prepared = prepared_of(open_folder(write_files(tmp_path / "source", files)), tmp_path / "out")
    assert prepared.tree.names == ("café",)
    assert len(sources_of(prepared)) == 2


def test_a_stream_that_goes_on_when_it_was_read_knows_the_names_still(
    photo: bytes, hand_over: HandOver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write_tar([("my cats/1.jpg", photo), ("my dogs/1.jpg", photo)])
    with monkeypatch.context() as patch:
        patch.setattr(run_module._Run, "_merge", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepared_of(open_raw_tar(hand_over(content, "stdin")), tmp_path / "out")
    prepared = prepared_of(open_raw_tar(hand_over(content, "stdin")), tmp_path / "out")
    assert prepared.tree.names == ("my cats", "my dogs")


@pytest.mark.parametrize("way", ["plain", "gzip", "stdin"])
@pytest.mark.parametrize("name", ["caf\udce9/1.jpg", "caf\udce9.tar"])
def test_a_class_whose_name_is_not_utf8_is_refused_by_name(
    name: str, way: str, photo: bytes, hand_over: HandOver, tmp_path: Path
) -> None:
    content = write_tar([("cats/1.jpg", photo), (name, photo)])
    with pytest.raises(UselessError, match=r": caf\\xe9.*: the class name 'caf\\xe9' is not UTF-8; rename it"):
        prepared_of(open_raw_tar(hand_over(content, way)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class TestFolders:
    def test_names_may_hold_spaces_and_any_letters(self, photo: bytes, tmp_path: Path) -> None:
        write_files(tmp_path / "my data", [("cats/ä b .jpg", photo), ("cats/日本.jpeg", photo), ("ä/1.jpg", photo)])
        prepared = prepared_of(open_folder(tmp_path / "my data"), tmp_path / "out")
        assert sorted(sources_of(prepared)) == [
            *((class_id("ä"), "1.jpg"), ("cats", "ä b .jpg"), ("cats", "日本.jpeg"))
        ]

    def test_a_linked_folder_that_came_already_is_a_reject_and_the_real_one_counts(
        self, photo: bytes, tmp_path: Path
    ) -> None:
        source = write_files(tmp_path / "source", [("n01858441/1.jpg", photo), ("n01858441/sub/2.jpg", photo)])
        (source / "n01503061").symlink_to("n01858441")
        (source / "n01858441" / "sub" / "up").symlink_to("../..")
        prepared = prepared_of(open_folder(source), tmp_path / "out")
        assert sources_of(prepared) == [("n01858441", "1.jpg"), ("n01858441", "sub/2.jpg")]
        assert rejects_of(prepared) == [
            (None, "n01503061", "duplicate"),
            (None, "n01858441/sub/up", "duplicate"),
        ]

    def test_links_that_lead_nowhere_pipes_and_folders_called_like_images_are_no_images(
        self, photo: bytes, tmp_path: Path
    ) -> None:
        source = write_files(tmp_path / "source", [("cats/1.jpg", photo), ("cats/folder.jpg/2.jpg", photo)])
        (source / "cats" / "broken.jpg").symlink_to("nowhere.jpg")
        (source / "cats" / "itself.jpg").symlink_to("itself.jpg")
        os.mkfifo(source / "cats" / "pipe.jpg")
        prepared = prepared_of(open_folder(source), tmp_path / "out")
        assert sources_of(prepared) == [("cats", "1.jpg"), ("cats", "folder.jpg/2.jpg")]
        assert rejects_of(prepared) == [
            ("cats", "broken.jpg", "not a regular file"),
            ("cats", "itself.jpg", "not a regular file"),
            ("cats", "pipe.jpg", "not a regular file"),
        ]

    @pytest.mark.parametrize(("change", "reason"), [(-100, "truncated"), (100, "changed")])
    def test_an_image_that_changes_its_size_on_the_way_is_a_reject(
        self, change: int, reason: str, photo: bytes, tmp_path: Path
    ) -> None:
        source = write_files(tmp_path / "source", [("cats/1.jpg", photo), ("cats/2.jpg", photo)])
        opened = open_folder(source)
        (source / "cats" / "2.jpg").write_bytes((photo + bytes(200))[: len(photo) + change])
        prepared = prepared_of(opened, tmp_path / "out")
        assert sources_of(prepared) == [("cats", "1.jpg")]
        assert rejects_of(prepared) == [("cats", "2.jpg", reason)]

    def test_an_image_that_vanishes_on_the_way_ends_the_run_by_name_and_the_rest_is_kept(
        self, photo: bytes, tmp_path: Path
    ) -> None:
        source = write_files(tmp_path / "source", [("cats/1.jpg", photo), ("cats/2.jpg", photo), ("dogs/1.jpg", photo)])
        opened = open_folder(source)
        (source / "dogs" / "1.jpg").rename(tmp_path / "away.jpg")
        with pytest.raises(OSError, match=r"dogs/1\.jpg"):
            prepared_of(opened, tmp_path / "out")
        assert [path.stem for path in (tmp_path / "out" / ".work" / "classes").glob("*.json")] == ["cats"]
        (tmp_path / "away.jpg").rename(source / "dogs" / "1.jpg")
        assert prepared_of(open_folder(source), tmp_path / "out").num_samples == {"train": 3}

    def test_what_is_neither_folder_nor_list_is_refused(self, photo: bytes, tmp_path: Path) -> None:
        (tmp_path / "raw.tar").write_bytes(write_tar([("cats/1.jpg", photo)]))
        (tmp_path / "raw.tar.gz").write_bytes(gzip.compress(b"cats/1.jpg cat"))
        for name in ("raw.tar", "raw.tar.gz"):
            with pytest.raises(ValueError, match=rf"{name}: not a text file; wanted a folder, or a list"):
                open_folder(tmp_path / name)
        with pytest.raises(OSError, match="nowhere"):
            open_folder(tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="empty: holds no classes"):
            open_folder(tmp_path / "empty").classes()


class TestLists:
    @pytest.mark.parametrize("line_end", ["\n", "\r\n"])
    def test_a_line_is_a_path_from_the_lists_folder_or_the_root_and_a_label(
        self, line_end: str, photo: bytes, tmp_path: Path
    ) -> None:
        files = write_files(tmp_path / "my files", [("a b/1.jpg", photo), ("a b/ä.jpg", photo), ("c/1.jpg", photo)])
        lines = ["a b/1.jpg cat", "", "  a b/ä.jpg\tcat  ", "c/1.jpg dog", f"{files}/c/1.jpg cat", "c/gone.jpg dog"]
        (files / "list.txt").write_bytes(("\ufeff" + line_end.join(lines)).encode())
        prepared = prepared_of(open_folder(files / "list.txt"), tmp_path / "out")
        assert sources_of(prepared) == [("cat", "1.jpg"), ("cat", "a b/1.jpg"), ("cat", "ä.jpg"), ("dog", "1.jpg")]
        assert rejects_of(prepared) == [("dog", "c/gone.jpg", "missing")]

    def test_numbers_as_labels_are_filled_up_so_that_classes_come_in_their_order(
        self, photo: bytes, tmp_path: Path
    ) -> None:
        write_files(tmp_path, [(f"{number}.jpg", photo) for number in (0, 9, 10, 100)])
        (tmp_path / "list.txt").write_text("".join(f"{number}.jpg {number}\n" for number in (10, 9, 100, 0)))
        prepared = prepared_of(open_folder(tmp_path / "list.txt"), tmp_path / "out")
        assert list(prepared.tree.wnids) == ["000", "009", "010", "100"]

    def test_what_a_list_names_and_is_no_image_is_a_reject(self, photo: bytes, tmp_path: Path) -> None:
        write_files(tmp_path, [("cats/1.jpg", photo), ("cats/notes.txt", b"hello"), ("cats/sub.jpg/2.jpg", photo)])
        lines = ["cats/1.jpg cat", "cats/1.jpg cat", "cats/notes.txt cat", "cats/sub.jpg cat", "cats/1.jpg/x.jpg cat"]
        (tmp_path / "list.txt").write_text("\n".join([*lines, "gone.jpg bird"]))
        prepared = prepared_of(open_folder(tmp_path / "list.txt"), tmp_path / "out")
        assert sources_of(prepared) == [("cat", "1.jpg")]
        assert rejects_of(prepared) == [
            ("cat", "1.jpg", "duplicate"),
            ("cat", "cats/1.jpg/x.jpg", "missing"),
            ("cat", "cats/sub.jpg", "not a regular file"),
            ("cat", "notes.txt", "no image suffix"),
            (None, "gone.jpg", "missing"),
        ]

    def test_a_label_is_any_text_and_the_name_of_its_class(self, photo: bytes, tmp_path: Path) -> None:
        write_files(tmp_path, [(f"{number}.jpg", photo) for number in range(3)])
        (tmp_path / "list.txt").write_text("0.jpg traffic light\n1.jpg\tchat♥\n2.jpg a/b\n")
        prepared = prepared_of(open_folder(tmp_path / "list.txt"), tmp_path / "out")
        names = dict(zip(prepared.tree.wnids, prepared.tree.names, strict=True))
        assert names == {class_id(name): name for name in ("traffic light", "chat♥", "a/b")}

    @pytest.mark.parametrize(
        ("line", "wanted"),
        [
            ("cats/1.jpg", "wanted a path and labels"),
            ("cats/1.jpg cat,dog", "has cat,dog; wanted one label an image"),
            ("cats/1.jpg -", "has no label; wanted one label an image"),
            ("cats/1.jpg caf\udce9", "is not UTF-8"),
        ],
    )
    def test_a_line_of_another_number_of_labels_is_refused_with_its_number(
        self, line: str, wanted: str, tmp_path: Path
    ) -> None:
        (tmp_path / "list.txt").write_bytes(f"cats/1.jpg cat\n{line}\n".encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match=rf"list\.txt, line 2: .*{wanted}"):
            open_folder(tmp_path / "list.txt").classes()

    @pytest.mark.parametrize(
        ("content", "wanted"),
        [
            ("\n\n", "lists nothing; wanted lines of a path and a label"),
            (
                "gone.jpg cat\nlost.jpg dog\n",
                r"none of the 2 listed files is .*the first: gone\.jpg, missing\); paths begin",
            ),
            ("notes.txt cat\n", r"none of the 1 listed files is .*the first: notes\.txt, no image suffix\)"),
        ],
    )
    def test_a_list_of_no_images_is_refused_by_what_it_lists(self, content: str, wanted: str, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text(content)
        (tmp_path / "notes.txt").write_text("hello")
        with pytest.raises(ValueError, match=rf"list\.txt: {wanted}"):
            open_folder(tmp_path / "list.txt").classes()


def test_a_pipe_by_name_is_sent_to_standard_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe: not a regular file .*standard input"):
        open_raw_tar(tmp_path / "pipe")


def test_an_archive_that_gets_shorter_on_the_way_ends_the_run_by_name(photo: bytes, tmp_path: Path) -> None:
    """Its images are not rejects: the archive may be whole again when the run goes on."""
    path = tmp_path / "raw.tar"
    path.write_bytes(write_tar([("cats/1.jpg", photo), ("cats/2.jpg", photo)]))
    source = open_raw_tar(path)
    assert source.classes()
    path.write_bytes(path.read_bytes()[: 512 + len(photo) + 800])
    with pytest.raises(ValueError, match=r"raw\.tar: ends inside cats/2\.jpg; it was longer when the run began"):
        prepared_of(source, tmp_path / "out")


class TestRunsInSequence:
    @pytest.fixture
    def streamed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., PreparedSet]:
        """Prepare what standard input holds; with `num_tasks` as far as that."""
        monkeypatch.setattr(stream, "CHUNK_IMAGES", 2)
        monkeypatch.setattr(sources, "SLICE_IMAGES", 2)

        def streamed(entries: list[tuple[str, bytes]], num_tasks: int = 1000) -> PreparedSet:
            def engine(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
                nonlocal num_tasks
                for task in tasks:
                    if num_tasks == 0:
                        raise KeyboardInterrupt
                    num_tasks -= 1
                    yield function(task)

            stdin = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(write_tar(entries))))
            monkeypatch.setattr(sys, "stdin", stdin)
            return prepared_of(open_raw_tar(Path("-")), tmp_path / "out", run_tasks=engine)

        return streamed

    def test_an_unfinished_output_refuses_another_stream_and_takes_its_own(
        self, images: Images, streamed: Callable[..., PreparedSet]
    ) -> None:
        entries = class_folders(images)
        with pytest.raises(KeyboardInterrupt):
            streamed(entries, 3)
        with pytest.raises(ValueError, match="chunk 0 differs from what an earlier run"):
            streamed(entries[1:])
        with pytest.raises(ValueError, match="lacks chunk 1 and 1 more that an earlier run"):
            streamed(entries[:2])
        assert streamed(entries).num_samples == {"train": 12}

    def test_a_finished_output_says_so_whatever_the_stream(
        self, images: Images, streamed: Callable[..., PreparedSet], caplog: pytest.LogCaptureFixture
    ) -> None:
        first = tables_of(streamed(class_folders(images)).path)
        with caplog.at_level("INFO"):
            assert tables_of(streamed([], 0).path) == first
        assert "finished already; nothing to do" in caplog.text

    def test_a_stream_read_to_its_end_is_not_read_again(
        self, images: Images, streamed: Callable[..., PreparedSet]
    ) -> None:
        entries = [*class_folders(images), ("README", b"hello")]
        with pytest.raises(KeyboardInterrupt):
            streamed(entries, 9)  # 15 members in chunks of 2, and a class
        actual = streamed([])
        assert actual.num_samples == {"train": 12}
        assert (None, "README", "no class") in rejects_of(actual)


class TestRoom:
    @pytest.fixture
    def disk(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
        """Of which so many bytes are free."""
        free = {"bytes": 0}
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free["bytes"]))
        return free

    @pytest.mark.parametrize("way", ["plain", "gzip"])
    def test_a_run_that_cannot_fit_says_so_early_and_keeps_what_was_done(
        self,
        way: str,
        draw: Draw,
        encode: Encode,
        hand_over: HandOver,
        disk: dict[str, int],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """On a disk on which nothing is free: after the first tasks that are 2 % of the whole, not at the end."""
        monkeypatch.setattr(stream, "CHUNK_IMAGES", 4)
        monkeypatch.setattr(sources, "SLICE_IMAGES", 4)
        monkeypatch.setattr(run_module, "ROOM_FRACTION", 0.06)
        # A small file is read at once; a large one as its chunks are.
        chunks_seen = iter(range(1, 100))
        monkeypatch.setattr(stream.Stream, "position", lambda self: self.num_bytes * next(chunks_seen) // 40)
        photos = {f"c{n:02d}": {f"{i}.jpg": encode(draw(20, 18, seed=4 * n + i)) for i in range(4)} for n in range(30)}
        source = hand_over(write_tar(class_folders(photos)), way)
        with pytest.raises(ValueError, match=r"out: about 0 MB more are needed .*make room and start the same"):
            prepared_of(open_raw_tar(source), tmp_path / "out")
        done = list((tmp_path / "out" / ".work").glob("c*/*.json"))
        assert 1 <= len(done) <= 2
        disk["bytes"] = 10**9
        tasks: list[Any] = []

        def engine(function: Callable[[Any], Any], given: Iterable[Any]) -> Iterator[Any]:
            for task in given:
                tasks.append(task)
                yield function(task)

        actual = prepared_of(open_raw_tar(source), tmp_path / "out", run_tasks=engine)
        assert actual.num_samples == {"train": 120}
        # Of a stream the classes are then put together from the chunks.
        assert len(tasks) == 30 - len(done) + (0 if way == "plain" else 30)

    def test_a_run_that_fits_is_not_refused(self, images: Images, disk: dict[str, int], tmp_path: Path) -> None:
        disk["bytes"] = 10**6
        (tmp_path / "raw.tar").write_bytes(write_tar(class_tars(images)))
        prepared_of(open_raw_tar(tmp_path / "raw.tar"), tmp_path / "out")
