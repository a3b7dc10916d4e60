"""One set of images gives one prepared data set, in whatever layout and way it comes."""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from in21k.preprocess import chunk_rows
from in21k.preprocess.chunk_tasks import MergeTask
from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources import open as sources
from in21k.preprocess.sources import stream
from in21k.preprocess.sources.folders import ClassFolder, class_of_folder
from in21k.preprocess.sources.open import open_folder, open_raw_tar
from in21k.preprocess.sources.units import RawSource
from in21k.shards.dataset import PreparedSet, read_manifest
from in21k.shards.files.parallel import run_tasks
from in21k.shards.verify import verify

from ..conftest import WAYS, Entries, Images, class_folders, class_tars, facts_of, tables_of, write_files, write_tar

HandOver = Callable[[bytes, str], Path]
SMALL = ImageSettings(size=16)
SELECT = SelectSettings(rare_threshold=3, val_per_class=2)


def prepared_of(source: RawSource, out: Path, **options: Any) -> PreparedSet:
    return prepare(source, out, **({"select": SELECT, "image": SMALL, "max_reject_rate": 0.5} | options))


@pytest.fixture(scope="module")
def expected(images: Images, tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    """What a plain tar of class tars gives."""
    folder = tmp_path_factory.mktemp("expected")
    (folder / "raw.tar").write_bytes(write_tar(class_tars(images)))
    return prepared_of(open_raw_tar(folder / "raw.tar"), folder / "out")


def assert_equal(actual: PreparedSet, expected: PreparedSet) -> None:
    assert tables_of(actual.path) == tables_of(expected.path)
    assert facts_of(actual) == facts_of(expected)


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks so small that each class lies in several."""
    monkeypatch.setattr(stream, "CHUNK_IMAGES", 4)
    monkeypatch.setattr(sources, "SLICE_IMAGES", 4)
    monkeypatch.setattr(stream, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(sources, "SLICE_BYTES", 2000)
    monkeypatch.setattr(chunk_rows, "MERGED_ROWS", 4)


TARS: dict[str, Callable[[Images], bytes]] = {
    "class tars": lambda images: write_tar(class_tars(images)),
    "class tars under a folder": lambda images: write_tar(class_tars(images, "fall11/deep/")),
    "class tars with ./": lambda images: write_tar(class_tars(images, "./", "./")),
    "class tars, pax": lambda images: write_tar(class_tars(images, format_=tarfile.PAX_FORMAT), tarfile.PAX_FORMAT),
    "class folders": lambda images: write_tar(class_folders(images)),
    "class folders, pax": lambda images: write_tar(class_folders(images), tarfile.PAX_FORMAT),
    "class folders under a folder": lambda images: write_tar(class_folders(images, "data set/images/")),
    "class folders with ./": lambda images: write_tar(class_folders(images, "./")),
    "class folders with ./ and folders": lambda images: write_tar(
        [*((f"./{wnid}", folder_entry(f"./{wnid}/")) for wnid in images), *class_folders(images, "./")]
    ),
    "shuffled": lambda images: write_tar(class_folders(images, shuffled=True)),
    "a class tar and class folders": lambda images: write_tar(
        [*class_tars(images)[:1], *class_folders(images, "sub/")[len(images["n01503061"]) :]]
    ),
}


def folder_entry(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.DIRTYPE
    return entry


@pytest.mark.parametrize("layout", TARS)
def test_every_layout_in_every_way_gives_the_same_bytes(
    layout: str, images: Images, expected: PreparedSet, hand_over: HandOver, tmp_path: Path
) -> None:
    content = TARS[layout](images)
    for way in WAYS:
        actual = prepared_of(open_raw_tar(hand_over(content, way)), tmp_path / way)
        assert_equal(actual, expected)


@pytest.mark.parametrize("layout", ["class folders", "shuffled", "a class tar and class folders"])
@pytest.mark.parametrize("way", ["plain", "stdin"])
def test_chunks_however_small_do_not_show(
    layout: str, way: str, tiny_chunks: None, images: Images, expected: PreparedSet, hand_over: HandOver, tmp_path: Path
) -> None:
    assert_equal(prepared_of(open_raw_tar(hand_over(TARS[layout](images), way)), tmp_path / "out"), expected)


def test_the_set_that_all_layouts_give_is_the_one_that_is_wanted(expected: PreparedSet) -> None:
    rows = [(row.wnid, row.num_raw, row.num_train, row.num_val, row.kept) for row in expected.classes]
    assert rows == [
        ("n01503061", 8, 5, 1, True),
        ("n01858441", 5, 3, 2, True),
        ("n09450163", 1, 0, 0, False),
    ]
    rejects = [tuple(row.values())[:3] for row in pq.read_table(expected.path / "rejects.parquet").to_pylist()]
    assert rejects == [
        ("n01503061", "cut.jpg", "truncated"),
        ("n01503061", "empty.jpg", "empty"),
        ("n01503061", "sub/notes.txt", "no image suffix"),
    ]
    names = {row["source_name"]: row["split"] for row in read_manifest(expected).to_pylist() if "0150" in row["wnid"]}
    assert names == {
        "a/b/n01503061_10.JPEG": "val",  # by bytes, before cut.jpg, which is not replaced, and empty.jpg
        "long/" + "x" * 150 + ".jpeg": "train",
        "n01503061_9.JPEG": "train",
        "z.jpg": "train",
        "ä ö.png": "train",
        r"\xff.jpg": "train",
    }
    assert verify(expected, deep=True).problems == []


def list_of(images: Images, folder: Path, line_end: str = "\n") -> Path:
    path = folder / "list.txt"
    lines = [f"{name} {name.split('/')[1]}" for name, _ in class_folders(images, "images/")]
    path.write_bytes((line_end.join(lines) + line_end).encode("utf-8", "surrogateescape"))
    return path


def as_list(images: Images, folder: Path) -> Path:
    write_files(folder, class_folders(images, "images/"))
    return list_of(images, folder)


def as_linked_folders(images: Images, folder: Path) -> Path:
    write_files(folder / "elsewhere", class_folders(images))
    (folder / "links").mkdir()
    for wnid in images:
        (folder / "links" / wnid).symlink_to(f"../elsewhere/{wnid}")
    return folder / "links"


def as_linked_files(images: Images, folder: Path) -> Path:
    write_files(folder / "elsewhere", class_folders(images))
    for name, _ in class_folders(images):
        (folder / "links" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "links" / name).symlink_to(folder / "elsewhere" / name)
    return folder / "links"


def some(entries: Entries, wnid: str) -> Entries:
    return [(name, data) for name, data in entries if wnid in name]


FOLDERS: dict[str, Callable[[Images, Path], Path]] = {
    "class folders": lambda images, folder: write_files(folder, class_folders(images)),
    "class folders, nested": lambda images, folder: write_files(folder, class_folders(images, "my data/")),
    "class tars": lambda images, folder: write_files(folder, class_tars(images, "tars/")),
    "a mixture": lambda images, folder: write_files(
        folder, [*some(class_tars(images), "n01858441"), *class_folders({**images, "n01858441": {}}, "folders/")]
    ),
    "linked folders": as_linked_folders,
    "linked files": as_linked_files,
    "a list": as_list,
}


@pytest.mark.parametrize("layout", FOLDERS)
def test_every_kind_of_folder_gives_the_same_bytes(
    layout: str, images: Images, expected: PreparedSet, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = FOLDERS[layout](images, tmp_path / "source")
    assert_equal(prepared_of(open_folder(source), tmp_path / "out"), expected)
    request.getfixturevalue("tiny_chunks")
    assert_equal(prepared_of(open_folder(source), tmp_path / "in chunks"), expected)


@pytest.mark.parametrize("way", ["plain", "gzip"])
def test_two_workers_and_tiny_chunks_give_the_bytes_of_one(
    way: str,
    images: Images,
    expected: PreparedSet,
    hand_over: HandOver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "CHUNK_IMAGES", 2)
    monkeypatch.setattr(sources, "SLICE_IMAGES", 2)
    source = hand_over(write_tar(class_folders(images, shuffled=True)), way)
    two = prepared_of(open_raw_tar(source), tmp_path / "out", run_tasks=partial(run_tasks, workers=2))
    assert_equal(two, expected)


class StopError(Exception):
    pass


class Stopping:
    """An engine that raises after so many tasks, in whatever phase."""

    def __init__(self, after: int, *, before_task: bool = False) -> None:
        self.left, self.done, self.before_task = after, 0, before_task

    def __call__(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        for task in tasks:
            if self.before_task and not self.left:
                raise StopError
            result = function(task)
            self.done += 1
            if not self.before_task and not self.left:  # done, but nobody was told
                raise StopError
            self.left -= 1
            yield result


@pytest.mark.parametrize("before_task", [True, False])
@pytest.mark.parametrize("layout", ["shuffled", "a class tar and class folders"])
@pytest.mark.parametrize("way", ["plain", "gzip", "stdin"])
def test_stopped_after_every_task_it_goes_on_to_equal_bytes_and_does_nothing_twice(
    way: str,
    layout: str,
    before_task: bool,
    images: Images,
    expected: PreparedSet,
    hand_over: HandOver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "CHUNK_IMAGES", 4)
    monkeypatch.setattr(sources, "SLICE_IMAGES", 4)
    monkeypatch.setattr(chunk_rows, "MERGED_ROWS", 1)
    content = TARS[layout](images)
    undisturbed = Stopping(1000)
    prepared_of(open_raw_tar(hand_over(content, way)), tmp_path / "undisturbed", run_tasks=undisturbed)
    done = 0
    for _ in range(100):
        engine = Stopping(int(before_task), before_task=before_task)
        try:
            actual = prepared_of(open_raw_tar(hand_over(content, way)), tmp_path / "out", run_tasks=engine)
        except StopError:
            done += engine.done
            continue
        break
    else:
        pytest.fail("it did not come to an end")
    assert done + engine.done == undisturbed.done
    assert_equal(actual, expected)
    assert not (actual.path / ".work").exists()


@pytest.mark.parametrize("way", ["plain", "gzip"])
def test_images_of_chunks_go_as_their_classes_are_put_together(
    way: str, images: Images, hand_over: HandOver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order of the classes: not all are there a second time."""
    monkeypatch.setattr(stream, "CHUNK_IMAGES", 2)
    monkeypatch.setattr(sources, "SLICE_IMAGES", 2)
    monkeypatch.setattr(chunk_rows, "MERGED_ROWS", 1)
    backwards = dict(reversed(images.items()))
    most: list[int] = []

    def watched(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        for task in tasks:
            yield function(task)
            most.append(len(list((tmp_path / "out" / ".work" / "chunks").glob("*.tar"))))

    source = hand_over(write_tar(class_folders(backwards)), way)
    prepared_of(open_raw_tar(source), tmp_path / "out", run_tasks=watched)
    assert max(most) > 4
    assert most[-1] < max(most)


def test_what_a_worker_gets_of_a_class_in_chunks_is_that_class_alone(
    images: Images, hand_over: HandOver, tmp_path: Path
) -> None:
    """Not the table of all classes that are held at a time."""
    classes = {f"n{number:08d}": images["n09450163"] for number in range(40)}
    sizes: list[int] = []

    def pickled(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        for task in tasks:
            sizes.append(len(pickle.dumps(task.rows)) if isinstance(task, MergeTask) else 0)
            yield function(task)

    source = open_raw_tar(hand_over(write_tar(class_folders(classes)), "gzip"))
    prepared_of(source, tmp_path / "out", select=SelectSettings(rare_threshold=0, val_per_class=0), run_tasks=pickled)
    assert len(sizes) == 41
    assert max(sizes) < 6_000


@pytest.mark.parametrize(
    ("folder", "place"),
    [
        ("", ClassFolder(None, "", None)),
        ("n01440764", ClassFolder("n01440764", "n01440764", None)),
        ("a/n01440764/b", ClassFolder("n01440764", "a/n01440764", None)),
        ("n01440764/n01443537", ClassFolder("n01443537", "n01440764/n01443537", None)),
        ("cats/black", ClassFolder("black", "cats/black", None)),
        ("black cats", ClassFolder("black cats", "black cats", None)),
        ("n01440764/black cats", ClassFolder("n01440764", "n01440764", None)),
        ("x/imagenet21k_train/n01440764", ClassFolder("n01440764", "x/imagenet21k_train/n01440764", "train")),
        ("imagenet21k_small_classes/cat", ClassFolder("cat", "imagenet21k_small_classes/cat", "small")),
    ],
)
def test_a_folders_path_tells_class_and_split(folder: str, place: ClassFolder) -> None:
    assert class_of_folder(folder) == place


def processed(images: Images, prefix: str = "data/", *, shuffled: bool = False) -> Entries:
    """The official processed archive: birds and swans, the last image of each for validation; suns are few."""
    folders = {
        f"imagenet21k_{split}/{wnid}": {name: images[wnid][name] for name in names}
        for wnid in ("n01503061", "n01858441")
        for split, names in (("train", list(images[wnid])[:-1]), ("val", list(images[wnid])[-1:]))
        if names
    }
    return class_folders(
        {**folders, "imagenet21k_small_classes/n09450163": images["n09450163"]}, prefix, shuffled=shuffled
    )


@pytest.fixture
def good(images: Images) -> Images:
    """The images that can be stored."""
    return {
        wnid: {name: data for name, data in members.items() if name not in ("empty.jpg", "cut.jpg", "sub/notes.txt")}
        for wnid, members in images.items()
    }


def test_the_processed_archive_keeps_its_split_and_its_classes_in_every_way(
    good: Images, tiny_chunks: None, hand_over: HandOver, tmp_path: Path
) -> None:
    """With a threshold that none of its classes would pass."""
    items: list[PreparedSet] = []
    image = ImageSettings(resize="none")
    for shuffled, ways in ((False, WAYS), (True, WAYS[:2])):
        content = write_tar(processed(good, shuffled=shuffled))
        for way in ways:
            source = open_raw_tar(hand_over(content, way))
            assert source.is_processed()
            out = tmp_path / f"{way} {shuffled}"
            items.append(prepared_of(source, out, select=SelectSettings(), image=image))
    folder = open_folder(write_files(tmp_path / "unpacked", processed(good)))
    assert folder.is_processed()
    items.append(prepared_of(folder, tmp_path / "of folder", select=SelectSettings(), image=image))
    for other in items[1:]:
        assert_equal(other, items[0])
    rows = [(row.wnid, row.num_raw, row.num_train, row.num_val, row.kept) for row in items[0].classes]
    assert rows == [("n01503061", 6, 5, 1, True), ("n01858441", 5, 4, 1, True), ("n09450163", 1, 0, 0, False)]
    stored = {
        (row["wnid"], row["source_name"]): (items[0].path / row["archive"]).read_bytes()[row["offset"] :][
            : row["num_bytes"]
        ]
        for row in read_manifest(items[0]).to_pylist()
    }
    for (wnid, name), data in stored.items():
        original = {key.replace("\udcff", r"\xff"): value for key, value in good[wnid].items()}[name]
        assert data == original or name.endswith(".png")
    assert len(stored) == 11


def test_named_classes_come_out_of_the_processed_archive_too(good: Images, tmp_path: Path) -> None:
    """A small class by name has no split of its own, so the first images of it are for validation."""
    good["n09450163"] |= {"n09450163_2.JPEG": good["n09450163"]["n09450163_1.JPEG"]}
    (tmp_path / "raw.tar").write_bytes(write_tar(processed(good)))
    select = SelectSettings(classes=frozenset({"n01858441", "n09450163"}), val_per_class=1)
    actual = prepared_of(open_raw_tar(tmp_path / "raw.tar"), tmp_path / "out", select=select)
    rows = [(row.wnid, row.num_train, row.num_val, row.kept) for row in actual.classes]
    assert rows == [("n01503061", 0, 0, False), ("n01858441", 4, 1, True), ("n09450163", 1, 1, True)]
    assert {(row["width"], row["height"]) for row in read_manifest(actual).to_pylist()} == {(16, 16)}


def test_small_classes_alone_leave_nothing(images: Images, tmp_path: Path) -> None:
    entries = class_folders({"imagenet21k_small_classes/n09450163": images["n09450163"]})
    (tmp_path / "raw.tar").write_bytes(write_tar(entries))
    with pytest.raises(ValueError, match="every class of more than 0 images is in the folder of small classes"):
        prepared_of(open_raw_tar(tmp_path / "raw.tar"), tmp_path / "out", select=SelectSettings(rare_threshold=0))
    assert not (tmp_path / "out").exists()
