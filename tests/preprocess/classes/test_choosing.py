"""Choosing classes and images: by lists, by subtrees, by exclusion; in whole runs."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.classes.taxonomy import Taxonomy
from in21k.preprocess.classes.wordnet import WordNet
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources import open as sources
from in21k.preprocess.sources import stream
from in21k.preprocess.sources.open import open_raw_tar
from in21k.shards.dataset import PreparedSet, read_manifest

from ..conftest import Images, class_folders, class_tars, tables_of, write_tar

BIRD, SWAN, PELICAN, SUN = "n01503061", "n01858441", "n02051845", "n09450163"
SMALL = ImageSettings(size=16)


@pytest.fixture(scope="module")
def photos(draw: Callable[..., Image.Image], encode: Callable[..., bytes]) -> Images:
    """Four classes of four images; swans and pelicans lie below birds. One image stands twice."""
    photos = {
        wnid: {f"{wnid}_{n}.JPEG": encode(draw(20, 18, seed=4 * place + n)) for n in range(4)}
        for place, wnid in enumerate((BIRD, SWAN, PELICAN, SUN))
    }
    photos[SUN][f"{SUN}_3.JPEG"] = photos[SWAN][f"{SWAN}_3.JPEG"]
    return photos


@pytest.fixture(params=["class tars", "a stream of class folders"])
def choose(
    request: pytest.FixtureRequest, photos: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., PreparedSet]:
    """Prepare those images as class tars, and through chunks, into a new folder."""
    source = tmp_path / "raw.tar"
    if request.param == "class tars":
        source.write_bytes(write_tar(class_tars(photos)))
    else:
        monkeypatch.setattr(stream, "CHUNK_IMAGES", 3)
        monkeypatch.setattr(sources, "SLICE_IMAGES", 3)
        source.write_bytes(gzip.compress(write_tar(class_folders(photos)), 1))

    def choose(out: str = "out", **select: Any) -> PreparedSet:
        settings = SelectSettings(**({"rare_threshold": 0, "val_per_class": 0} | select))
        return prepare(open_raw_tar(source), tmp_path / out, select=settings, image=SMALL)

    return choose


@pytest.fixture
def listing(tmp_path: Path) -> Callable[..., Path]:
    def listing(*lines: str, name: str = "list.txt") -> Path:
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    return listing


def kept(prepared: PreparedSet) -> list[str]:
    return [row.wnid for row in prepared.classes if row.kept]


def rejects_of(prepared: PreparedSet) -> list[tuple[str, str, str]]:
    return [tuple(row.values())[:3] for row in pq.read_table(prepared.path / "rejects.parquet").to_pylist()]


def splits_of(prepared: PreparedSet) -> dict[str, list[str]]:
    rows = read_manifest(prepared).to_pylist()
    return {split: [row["key"] for row in rows if row["split"] == split] for split in ("train", "val")}


def test_named_classes_are_kept_however_few_images_they_have(
    choose: Callable[..., PreparedSet], caplog: pytest.LogCaptureFixture
) -> None:
    prepared = choose(classes=frozenset({SWAN, SUN}), rare_threshold=500)
    assert kept(prepared) == [SWAN, SUN]
    assert [row.num_raw for row in prepared.classes] == [4, 4, 4, 4]
    assert "--classes" not in caplog.text


def test_named_classes_that_are_not_there_are_warned_of(
    choose: Callable[..., PreparedSet], caplog: pytest.LogCaptureFixture
) -> None:
    choose(classes=frozenset({SWAN, SUN, "n01440764"}))
    assert "--classes: 1 of 3 classes are not in the source" in caplog.text


def test_named_classes_of_which_none_is_there_leave_nothing(choose: Callable[..., PreparedSet], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"holds none of the 1 classes of --classes; it holds {BIRD} and so on"):
        choose(classes=frozenset({"n01440764"}))
    assert not (tmp_path / "out").exists()


def test_a_subtree_is_dropped_with_all_below_it(choose: Callable[..., PreparedSet]) -> None:
    assert kept(choose(drop_subtree=(BIRD,))) == [SUN]
    assert kept(choose("two", drop_subtree=(SWAN, PELICAN))) == [BIRD, SUN]
    assert kept(choose("both", drop_subtree=(SWAN,), classes=frozenset({SWAN, SUN}))) == [SUN]


def test_a_damaged_class_tar_of_a_class_that_is_dropped_by_name_does_no_harm(photos: Images, tmp_path: Path) -> None:
    (tmp_path / "raw.tar").write_bytes(write_tar([*class_tars(photos), ("n01861778.tar", b"no tar" * 300)]))
    source, out = open_raw_tar(tmp_path / "raw.tar"), tmp_path / "out"
    select = SelectSettings(classes=frozenset({BIRD}), val_per_class=0)
    assert kept(prepare(source, out, select=select, image=SMALL)) == [BIRD]
    with pytest.raises(ValueError, match="1 class tars are damaged"):
        prepare(source, tmp_path / "all", select=SelectSettings(rare_threshold=0, val_per_class=0), image=SMALL)


def test_when_every_class_is_dropped_the_subtrees_are_named(choose: Callable[..., PreparedSet]) -> None:
    with pytest.raises(ValueError, match="every class of more than 0 images is below --drop-subtree"):
        choose(drop_subtree=(BIRD, SUN))


def test_a_subtree_that_nobody_knows_is_refused(choose: Callable[..., PreparedSet], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--drop-subtree n00000001: not a WordNet synset"):
        choose(drop_subtree=("n00000001",))
    assert not (tmp_path / "out").exists()


def test_excluded_images_are_rejects_that_do_not_count_as_bad(
    choose: Callable[..., PreparedSet], photos: Images, listing: Callable[..., Path]
) -> None:
    """By key, by path, by either length of the original's checksum, and by that of what is stored."""
    originals = [hashlib.sha256(photos[SWAN][f"{SWAN}_{n}.JPEG"]).hexdigest() for n in range(4)]
    stored = {row["key"]: row["checksum"] for row in read_manifest(choose("all")).to_pylist()}
    path = listing(
        *(f"{BIRD}_0", f"any/where/{BIRD}/{BIRD}_1.JPEG", originals[0], originals[1][:16], stored[f"{PELICAN}_2"])
    )
    prepared = choose(exclude=path)
    assert rejects_of(prepared) == [
        (BIRD, f"{BIRD}_0.JPEG", "excluded"),
        (BIRD, f"{BIRD}_1.JPEG", "excluded"),
        (SWAN, f"{SWAN}_0.JPEG", "excluded"),
        (SWAN, f"{SWAN}_1.JPEG", "excluded"),
        (PELICAN, f"{PELICAN}_2.JPEG", "excluded"),
    ]
    assert prepared.num_samples == {"train": 11}
    assert [row.num_raw for row in prepared.classes] == [4, 4, 4, 4]


def test_a_checksum_excludes_every_image_that_has_it(
    choose: Callable[..., PreparedSet], photos: Images, listing: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    prepared = choose(exclude=listing(hashlib.sha256(photos[SWAN][f"{SWAN}_3.JPEG"]).hexdigest(), "0" * 16))
    assert [name for _, name, _ in rejects_of(prepared)] == [f"{SWAN}_3.JPEG", f"{SUN}_3.JPEG"]
    assert "--exclude: 1 of 2 lines name an image of the kept classes" in caplog.text


def test_excluded_images_do_not_make_others_validation_images(
    choose: Callable[..., PreparedSet], listing: Callable[..., Path]
) -> None:
    prepared = choose(exclude=listing(f"{SUN}_0"), val_per_class=2)
    assert [key for key in splits_of(prepared)["val"] if SUN in key] == [f"{SUN}_1"]


def test_a_list_of_validation_images_goes_before_any_number_of_them(
    choose: Callable[..., PreparedSet], listing: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = listing(f"{BIRD}_3", f"x/{SUN}/{SUN}_0.JPEG")
    prepared = choose(val_list=path, val_per_class=3)
    assert splits_of(prepared)["val"] == [f"{BIRD}_3", f"{SUN}_0"]
    assert "--val-list" not in caplog.text


@pytest.mark.parametrize("option", ["exclude", "val_list"])
def test_lines_that_name_nothing_are_told_in_one_line(
    option: str, choose: Callable[..., PreparedSet], listing: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    choose(**{option: listing(f"{BIRD}_3", f"{BIRD}_33", f"{SUN}/nothing.jpg")})
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [f"--{option.replace('_', '-')}: 1 of 3 lines name an image of the kept classes"]


@pytest.mark.parametrize("option", ["exclude", "val_list"])
def test_a_list_that_changed_makes_other_settings(
    option: str, choose: Callable[..., PreparedSet], listing: Callable[..., Path]
) -> None:
    first = choose(**{option: listing(f"{BIRD}_3")})
    before = tables_of(first.path)
    choose(**{option: listing(f"{BIRD}_3", "", name="the same.txt")})
    with pytest.raises(ValueError, match=f"made with other settings .{option} '"):
        choose(**{option: listing(f"{BIRD}_2")})
    assert tables_of(first.path) == before


def test_a_class_all_of_whose_images_are_listed_for_validation_is_refused_with_the_way_out(
    choose: Callable[..., PreparedSet], listing: Callable[..., Path]
) -> None:
    path = listing(*(f"{SUN}_{n}" for n in range(4)))
    with pytest.raises(ValueError, match=rf"{SUN} would have no training image: of its 4 images 4 .*off --val-list"):
        choose(val_list=path)


def test_classes_of_ones_own_are_dropped_and_placed_by_their_parents(
    draw: Callable[..., Image.Image], encode: Callable[..., bytes], tmp_path: Path
) -> None:
    images = {wnid: {"1.jpg": encode(draw(20, 18))} for wnid in ("my-swan", "my-sun", SWAN)}
    (tmp_path / "raw.tar").write_bytes(write_tar(class_tars(images)))
    taxonomy = Taxonomy(WordNet.packaged(), {"my-swan": SWAN, "my-sun": SUN})
    select = SelectSettings(rare_threshold=0, val_per_class=0, drop_subtree=(SUN,))
    prepared = prepare(
        open_raw_tar(tmp_path / "raw.tar"), tmp_path / "out", select=select, image=SMALL, taxonomy=taxonomy
    )
    assert prepared.tree.wnids == ("my-swan", SWAN)
    assert prepared.tree.parents == (1, -1)
