"""What must not be lost in silence, nor kept by mistake: found by people who tried."""

from __future__ import annotations

import gzip
import io
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings, RejectedImageError, store_image
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_folder, open_raw_tar
from in21k.shards.dataset import PreparedSet
from in21k.shards.files import atomic, output

TarOf = Callable[..., bytes]
FilesOf = Callable[[Path], dict[str, bytes]]
ALL = SelectSettings(rare_threshold=0, val_per_class=0)
SMALL = ImageSettings(size=16)


@pytest.fixture
def photo(draw: Callable[..., Image.Image], encode: Callable[..., bytes]) -> bytes:
    return encode(draw(30, 20))


def test_a_discard_that_was_killed_leaves_nothing_that_counts(
    tmp_path: Path,
    raw_archive: Path,
    prepared: PreparedSet,
    select: SelectSettings,
    image_settings: ImageSettings,
    monkeypatch: pytest.MonkeyPatch,
    files_of: FilesOf,
) -> None:
    """A gzipped stream whose checksum does not fit is given up; killed on the way, the marks of classes are left."""
    good = gzip.compress(raw_archive.read_bytes())
    bad = bytearray(good)
    bad[-6] ^= 1
    run = partial(prepare, out=tmp_path / "out", select=select, image=image_settings)

    def hand_over(data: bytes) -> Any:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(data))))
        return open_raw_tar(Path("-"))

    def kill(path: Path, **_: Any) -> None:
        shutil.rmtree(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(output, "shutil", SimpleNamespace(rmtree=kill))
        with pytest.raises(KeyboardInterrupt):
            run(hand_over(bytes(bad)))
    assert list((tmp_path / "out").glob(".work/classes/*.json"))
    done, wanted = files_of(run(hand_over(good)).path), files_of(prepared.path)
    assert done.pop("dataset.json") != wanted.pop("dataset.json")
    assert done == wanted


def test_a_damaged_class_tar_is_done_again_when_the_archive_was_put_right(
    tmp_path: Path, tar_of: TarOf, photo: bytes
) -> None:
    whole = tar_of({f"n{n}.tar": tar_of({f"{i}.jpg": photo for i in range(4)}) for n in (1, 2)})
    source = tmp_path / "raw.tar"
    damaged = bytearray(whole)
    at = whole.rindex(b"3.jpg")
    damaged[at : at + 512] = b"\xff" * 512
    source.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"n2\.tar.*copy or download the archive again"):
        prepare(open_raw_tar(source), tmp_path / "out", select=ALL, image=SMALL)
    source.write_bytes(whole)
    assert prepare(open_raw_tar(source), tmp_path / "out", select=ALL, image=SMALL).num_samples == {"train": 8}


def test_images_beside_the_class_folders_fail_the_run(tmp_path: Path, photo: bytes) -> None:
    (tmp_path / "raw" / "dog").mkdir(parents=True)
    for number in range(4):
        (tmp_path / "raw" / f"{number}.jpg").write_bytes(photo)
        (tmp_path / "raw" / "dog" / f"{number}.jpg").write_bytes(photo)
    with pytest.raises(ValueError, match=r"4 of 8 members were rejected.*no class, such as"):
        prepare(open_folder(tmp_path / "raw"), tmp_path / "out", select=ALL, image=SMALL)
    actual = prepare(open_folder(tmp_path / "raw"), tmp_path / "out", select=ALL, image=SMALL, max_reject_rate=0.5)
    assert actual.num_samples == {"train": 4}


def test_a_class_folder_without_an_image_that_can_be_read_fails_the_run(tmp_path: Path, photo: bytes) -> None:
    for name, suffix in (("cat", "tif"), ("dog", "jpg")):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / f"1.{suffix}").write_bytes(photo)
    with pytest.raises(ValueError, match=r"1 of 2 members were rejected.*no class, such as cat/1\.tif"):
        prepare(open_folder(tmp_path / "raw"), tmp_path / "out", select=ALL, image=SMALL)


def test_images_of_several_folders_that_become_one_class_are_said(
    tmp_path: Path, photo: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "raw" / name / "n01503061").mkdir(parents=True)
        (tmp_path / "raw" / name / "n01503061" / f"{name}.jpg").write_bytes(photo)
    prepare(open_folder(tmp_path / "raw"), tmp_path / "out", select=ALL, image=SMALL)
    assert (
        "n01503061: the images of 2 folders become one class, for example cat/n01503061 and dog/n01503061"
        in caplog.text
    )


def test_a_class_without_training_images_is_told_before_anything_is_stored(
    tmp_path: Path, tar_of: TarOf, photo: bytes
) -> None:
    """Classes are done the largest first, and such a one may be the smallest."""
    sizes = {"n1": 1, "n2": 9, "n3": 8}
    classes = {f"{n}.tar": tar_of({f"{i}.jpg": photo for i in range(size)}) for n, size in sizes.items()}
    (tmp_path / "raw.tar").write_bytes(tar_of(classes))
    done: list[object] = []
    select = SelectSettings(rare_threshold=0, val_per_class=1)
    with pytest.raises(ValueError, match="n1 would have no training image: of its 1 images 1 are for validation"):
        prepare(
            open_raw_tar(tmp_path / "raw.tar"), tmp_path / "out", select=select, image=SMALL, on_progress=done.append
        )
    assert done == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", ["plain", "gzip", "stdin"])
def test_a_processed_archive_is_known_though_something_else_comes_first(
    tmp_path: Path, tar_of: TarOf, photo: bytes, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {"README": b"hello", "notes/a.txt": b"b", "x/imagenet21k_train/n01440764/1.jpg": photo}
    data = tar_of(members)
    path = tmp_path / "raw.tar"
    path.write_bytes(gzip.compress(data) if way == "gzip" else data)
    if way == "stdin":
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(data))))
        path = Path("-")
    source = open_raw_tar(path)
    assert source.is_processed()
    actual = prepare(source, tmp_path / "out", select=ALL, image=ImageSettings(resize="none"), max_reject_rate=1)
    assert actual.num_samples == {"train": 1}
    assert actual.info["counts"]["num_rejects"] == 2


@pytest.mark.parametrize(("head", "message"), [(b"BZh9", "bzcat"), (b"\xfd7zXZ\0", "xzcat"), (b"PK\x03\x04", "zip")])
def test_other_packers_are_named(tmp_path: Path, head: bytes, message: str) -> None:
    (tmp_path / "raw").write_bytes(head + bytes(100))
    with pytest.raises(ValueError, match=message):
        open_raw_tar(tmp_path / "raw")


def test_a_closed_standard_input_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ValueError, match="standard input: is closed"):
        prepare(open_raw_tar(Path("-")), tmp_path / "out", select=ALL, image=SMALL)
    assert not (tmp_path / "out").exists()


def test_a_list_of_validation_images_by_checksum_is_refused(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("0123456789abcdef\n")
    with pytest.raises(ValueError, match=r"val\.txt: lists checksums.*wanted keys or paths"):
        SelectSettings(val_list=tmp_path / "val.txt")


def test_a_png_whose_pixels_are_broken_is_a_reject(
    draw: Callable[..., Image.Image], encode: Callable[..., bytes]
) -> None:
    """Reading its EXIF decodes it, and what went wrong there once went unseen."""
    data = bytearray(encode(draw(400, 300), "PNG"))
    data[len(data) // 2] ^= 255
    with pytest.raises(RejectedImageError, match="undecodable"):
        store_image(bytes(data), SMALL)


def test_another_writer_of_the_same_file_does_not_touch_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that the cluster took for lost may go on beside the one that does its work again."""
    monkeypatch.setattr(atomic, "_writer", "")
    with atomic.whole_file(tmp_path / "a.tar") as ours:
        ours.write_bytes(b"ours")
        atomic.write_as("elsewhere-7")
        with atomic.whole_file(tmp_path / "a.tar") as theirs:
            theirs.write_bytes(b"same")
        assert ours.read_bytes() == b"ours"
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
