"""Images that cannot be read count and are named; files that are known to be no images are counted by kind."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.members import IGNORED_FILES, IGNORED_FOLDERS, ignored_kind
from in21k.preprocess.sources.open import open_folder, open_raw_tar
from in21k.preprocess.sources.units import RawSource
from in21k.shards.dataset import PreparedSet
from in21k.shards.verify import verify

from .conftest import WAYS, Images, class_folders, class_tars, tables_of, write_files, write_tar

HandOver = Callable[[bytes, str], Path]
Special = Callable[[str], tuple[str, tarfile.TarInfo]]
ALL = SelectSettings(rare_threshold=0, val_per_class=1)


def prepared_of(source: RawSource, out: Path, **options: Any) -> PreparedSet:
    settings: dict[str, Any] = {"select": ALL, "image": ImageSettings(size=16), "max_reject_rate": 1}
    return prepare(source, out, **(settings | options))


def rejects_of(prepared: PreparedSet) -> list[tuple[str | None, str, str]]:
    rows = pq.read_table(prepared.path / "rejects.parquet").to_pylist()
    return [(row["wnid"], row["name"], row["reason"]) for row in rows]


@pytest.fixture(scope="module")
def photos(draw: Callable[..., Image.Image], encode: Callable[..., bytes]) -> Images:
    """Three classes of five images."""
    return {
        wnid: {f"{number}.jpg": encode(draw(20, 18, seed=5 * place + number)) for number in range(5)}
        for place, wnid in enumerate(("n01503061", "n01858441", "n09450163"))
    }


def special(member_type: bytes) -> Special:
    def make(name: str) -> tuple[str, tarfile.TarInfo]:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = member_type, "gone.jpg"
        return name, member

    return make


SPECIAL = {
    "hard links": special(tarfile.LNKTYPE),
    "symbolic links": special(tarfile.SYMTYPE),
    "devices": special(tarfile.CHRTYPE),
    "absolute names": lambda name: (f"/{name}", tarfile.TarInfo(f"/{name}")),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_in_a_class_folder_of_a_tar_is_a_reject_of_its_class_and_counts(
    kind: str, photos: Images, hand_over: HandOver, tmp_path: Path
) -> None:
    """In every way alike."""
    entries: list[Any] = class_folders(photos)
    entries += [SPECIAL[kind](f"{wnid}/lost {number}.jpg") for wnid in photos for number in range(5)]
    items: list[PreparedSet] = []
    for way in WAYS:
        source = hand_over(write_tar(entries), way)
        with pytest.raises(ValueError, match=r"15 of 30 members were rejected"):
            prepared_of(open_raw_tar(source), tmp_path / f"refused {way}", max_reject_rate=0.01)
        items.append(prepared_of(open_raw_tar(hand_over(write_tar(entries), way)), tmp_path / way))
        assert tables_of(items[-1].path) == tables_of(items[0].path)
    reason = "unsafe name" if kind == "absolute names" else "not a regular file"
    assert rejects_of(items[0]) == [(wnid, f"lost {number}.jpg", reason) for wnid in photos for number in range(5)]
    assert [row.num_raw for row in items[0].classes] == [5, 5, 5]
    assert items[0].info["rejects"] == {reason: 15}


def test_links_to_files_that_are_not_there_are_rejects_of_their_class_and_count(photos: Images, tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", class_folders(photos))
    for wnid in photos:
        for number in range(5):
            (source / wnid / f"lost {number}.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(ValueError, match=r"15 of 30 members were rejected.*most as 'not a regular file'"):
        prepared_of(open_folder(source), tmp_path / "refused", max_reject_rate=0.01)
    actual = prepared_of(open_folder(source), tmp_path / "out")
    assert {(wnid, reason) for wnid, _, reason in rejects_of(actual)} == {(w, "not a regular file") for w in photos}
    assert actual.num_samples == {"train": 12, "val": 3}


def named(data: Any, name: str) -> Any:
    """Return a special member under another name, and bytes as they are."""
    return special(data.type)(name)[1] if isinstance(data, tarfile.TarInfo) else data


LAYOUTS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "class tars": lambda classes: write_tar(class_tars(classes)),
    "class folders": lambda classes: write_tar((name, named(data, name)) for name, data in class_folders(classes)),
}


@pytest.mark.parametrize("num_read", [0, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_class_that_only_its_rejects_keep_under_the_threshold_is_named_and_counts(
    layout: str,
    num_read: int,
    photos: Images,
    hand_over: HandOver,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    swans = list(photos["n01858441"].items())
    links = dict(special(tarfile.SYMTYPE)(name) for name, _ in swans[num_read:])
    content = LAYOUTS[layout]({**photos, "n01858441": {**dict(swans[:num_read]), **links}})
    select = SelectSettings(rare_threshold=4, val_per_class=1)
    named = rf"have no more than 4 images only because some cannot be read: n01858441 \({num_read} of 5\)"
    for way in WAYS:
        with pytest.raises(ValueError, match=rf"{5 - num_read} of 15 members were rejected.*{named}"):
            prepared_of(
                open_raw_tar(hand_over(content, way)), tmp_path / f"refused {way}", select=select, max_reject_rate=0.01
            )
        caplog.clear()
        actual = prepared_of(open_raw_tar(hand_over(content, way)), tmp_path / way, select=select)
        assert (
            f"have no more than 4 images only because some cannot be read: n01858441 ({num_read} of 5)" in caplog.text
        )
        assert rejects_of(actual) == []  # as of any class that is dropped
        assert [(row.wnid, row.num_raw, row.kept) for row in actual.classes] == [
            ("n01503061", 5, True),
            ("n01858441", num_read, False),
            ("n09450163", 5, True),
        ]
        assert actual.info["dropped_for_rejects"] == {"n01858441": 5 - num_read}
        assert not verify(actual, deep=True).problems


def test_a_class_that_is_rare_anyhow_or_not_wanted_counts_no_rejects(photos: Images, tmp_path: Path) -> None:
    links: dict[str, Any] = dict(special(tarfile.SYMTYPE)(f"{number}.jpg") for number in range(3))
    entries: list[Any] = [*class_folders(photos), *class_tars({"n02051845": links})]
    (tmp_path / "raw.tar").write_bytes(write_tar(entries))
    for number, select in enumerate(
        (
            SelectSettings(rare_threshold=4, val_per_class=1),
            SelectSettings(classes=frozenset(photos), val_per_class=1),
            SelectSettings(rare_threshold=0, val_per_class=1, drop_subtree=("n02051845",)),
        )
    ):
        out = tmp_path / str(number)
        actual = prepared_of(open_raw_tar(tmp_path / "raw.tar"), out, select=select, max_reject_rate=0)
        assert actual.info["dropped_for_rejects"] == {}
        assert rejects_of(actual) == []


@pytest.mark.parametrize("name", ["n02051845.tar", "n02051845"])
def test_a_class_tar_or_a_class_folder_that_cannot_be_read_fails_the_run_however_many_others_there_are(
    name: str, photos: Images, tmp_path: Path
) -> None:
    """Nobody knows how many images it has."""
    (tmp_path / "raw.tar").write_bytes(write_tar([*class_tars(photos), special(tarfile.SYMTYPE)(name)]))
    source = write_files(tmp_path / "source", class_tars(photos))
    (source / name).symlink_to("nowhere")
    for number, opened in enumerate((open_raw_tar(tmp_path / "raw.tar"), open_folder(source))):
        with pytest.raises(ValueError, match=rf"1 class tars are damaged or cannot be read.*the first: {name}, "):
            prepared_of(opened, tmp_path / f"refused {number}", max_reject_rate=0.5)
        actual = prepared_of(opened, tmp_path / str(number))
        assert rejects_of(actual) == [(None, name, "not a regular file")]
    select = SelectSettings(classes=frozenset(photos), val_per_class=1)
    prepared_of(open_folder(source), tmp_path / "unwanted", select=select, max_reject_rate=0.5)


JUNK = {
    "._0.jpg": "._*",
    "._notes": "._*",
    ".ds_store": ".DS_Store",
    "THUMBS.DB": "Thumbs.db",
    "desktop.ini": "desktop.ini",
    "@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg": "@eaDir/",
    ".ipynb_checkpoints/0-checkpoint.jpg": ".ipynb_checkpoints/",
    "__macosx/0.jpg": "__MACOSX/",
}


@pytest.mark.parametrize(("path", "kind"), JUNK.items())
def test_a_file_that_is_known_to_be_no_image_is_of_a_kind(path: str, kind: str) -> None:
    assert ignored_kind(path) == ignored_kind(f"n01440764/{path}") == kind
    assert ignored_kind(f"x{path}") is None


@given(st.text("._ax/DSINstorehumbdkp@CXM", max_size=20))
def test_the_kind_of_a_path_is_what_a_plain_reading_finds(path: str) -> None:
    *folders, name = path.lower().split("/")
    kinds = {kind for kind in IGNORED_FOLDERS if kind.lower().rstrip("/") in folders}
    kinds |= {kind for kind in IGNORED_FILES if name == kind.lower() or (kind == "._*" and name.startswith("._"))}
    assert ignored_kind(path) in (kinds or {None})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_known_to_be_no_image_is_ignored_and_counted_by_kind(
    layout: str, photos: Images, hand_over: HandOver, tmp_path: Path
) -> None:
    """It takes no place of validation, none in the threshold and none in the table of rejects."""
    (tmp_path / "raw.tar").write_bytes(LAYOUTS[layout](photos))
    select = SelectSettings(rare_threshold=4, val_per_class=2)
    expected = prepared_of(open_raw_tar(tmp_path / "raw.tar"), tmp_path / "expected", select=select)
    littered: dict[str, Any] = {wnid: {**dict.fromkeys(JUNK, b"junk"), **images} for wnid, images in photos.items()}
    littered["n01858441"] |= {"._link.jpg": special(tarfile.SYMTYPE)("._link.jpg")[1]}
    beside = {"n01858441": {f"._{number}.jpg": b"junk" for number in range(9)}}
    content = LAYOUTS[layout]({**littered, "n02051845": {"0.jpg": photos["n01858441"]["0.jpg"], **beside["n01858441"]}})
    wanted = {"__MACOSX/": 3, "@eaDir/": 3, ".ipynb_checkpoints/": 3, "._*": 16}
    wanted |= {".DS_Store": 3, "Thumbs.db": 3, "desktop.ini": 3}
    for way in WAYS:
        actual = prepared_of(open_raw_tar(hand_over(content, way)), tmp_path / way, select=select, max_reject_rate=0)
        assert actual.info["ignored"] == wanted
        assert [row.num_raw for row in actual.classes] == [5, 5, 1, 5]
        for name in ("manifest.parquet", "rejects.parquet", "tree.json"):
            assert (actual.path / name).read_bytes() == (expected.path / name).read_bytes()


def test_class_tars_that_are_known_to_be_none_are_ignored_too(
    photos: Images, hand_over: HandOver, tmp_path: Path
) -> None:
    entries = [("._n01503061.tar", b"junk"), ("__MACOSX/n01858441.tar", b"junk"), *class_tars(photos)]
    for way in WAYS:
        actual = prepared_of(open_raw_tar(hand_over(write_tar(entries), way)), tmp_path / way, max_reject_rate=0)
        assert actual.info["ignored"] == {"._*": 1, "__MACOSX/": 1}
        assert actual.num_samples == {"train": 12, "val": 3}


def test_files_that_a_list_names_and_that_are_known_to_be_no_images_are_ignored(photos: Images, tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", class_folders(photos))
    names = [name for name, _ in class_folders(photos)]
    lines = [f"{name} {name.partition('/')[0]}\n" for name in (*names, "n01503061/._0.jpg", "n01503061/.DS_Store")]
    (source / "list.txt").write_text("".join(lines))
    actual = prepared_of(open_folder(source / "list.txt"), tmp_path / "out", max_reject_rate=0)
    assert actual.info["ignored"] == {"._*": 1, ".DS_Store": 1}
    (source / "list.txt").write_text("n01503061/._0.jpg n01503061\n")
    with pytest.raises(
        ValueError, match=r"none of the 1 listed files is an image .*of the kind \._\*, which is ignored"
    ):
        open_folder(source / "list.txt").classes()


def test_empty_class_folders_and_class_tars_are_named(photos: Images, tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", [*class_folders(photos), *class_tars({"n02051845": {}}, "tars/")])
    (source / "cat").mkdir()
    (source / "dog" / "puppies").mkdir(parents=True)
    (source / "dog" / "puppies" / ".DS_Store").write_bytes(b"junk")
    actual = prepared_of(open_folder(source), tmp_path / "out")
    assert actual.info["empty_classes"] == ["cat", "dog/puppies", "n02051845"]

    def folder(name: str) -> tuple[str, tarfile.TarInfo]:
        entry = tarfile.TarInfo(name)
        entry.type = tarfile.DIRTYPE
        return name, entry

    entries: list[Any] = [*map(folder, ("./cat/", "dog", "dog/puppies", "n01503061")), *class_folders(photos, "./")]
    (tmp_path / "raw.tar").write_bytes(write_tar(entries))
    actual = prepared_of(open_raw_tar(tmp_path / "raw.tar"), tmp_path / "of tar")
    assert actual.info["empty_classes"] == ["cat", "dog/puppies"]


def test_a_class_says_how_many_of_its_validation_images_are_rejects(photos: Images, tmp_path: Path) -> None:
    birds = {**photos["n01503061"], "0.jpg": b"no image", "1.jpg": b""}
    (tmp_path / "raw.tar").write_bytes(write_tar(class_folders({**photos, "n01503061": birds})))
    select = SelectSettings(rare_threshold=0, val_per_class=2)
    actual = prepared_of(open_raw_tar(tmp_path / "raw.tar"), tmp_path / "out", select=select)
    assert actual.info["val_rejects"] == {"n01503061": 2}
    assert actual.info["rejects"] == {"empty": 1, "not an image": 1}
    assert [row.num_val for row in actual.classes] == [0, 2, 2]
