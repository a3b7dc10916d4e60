"""A bit flipped anywhere in a data set: `verify --deep` finds it, and nothing is ever read as it was not written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_raw_tar
from in21k.shards import PreparedSet, ShardSet, open_dataset
from in21k.shards.pack import ShardSettings, pack
from in21k.shards.verify import open_any, verify

from .mutators import flipped, flips

TABLES = ("dataset.json", "manifest.parquet", "classes.parquet", "tree.json")
NUM_FILES = {PreparedSet.format: 5 + 4, ShardSet.format: 6 + 4}


@pytest.fixture(scope="module")
def small_sets(
    tmp_path_factory: pytest.TempPathFactory,
    draw: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    write_archive: Callable[..., Path],
) -> dict[str, Path]:
    """A prepared set of two classes of three images of 8 x 8, and its shards: {format: folder}."""
    folder = tmp_path_factory.mktemp("small")
    classes = {
        wnid: {f"{wnid}_{number}.JPEG": encode(draw(9, 9, seed=number)) for number in range(3)}
        for wnid in ("n01503061", "n01858441")
    }
    source = open_raw_tar(write_archive(folder / "raw.tar", classes))
    select = SelectSettings(rare_threshold=0, val_per_class=1)
    prepared = prepare(source, folder / "prepared", select=select, image=ImageSettings(size=8))
    shards = pack(prepared, folder / "shards", ShardSettings())
    return {prepared.format: prepared.path, shards.format: shards.path}


def is_noticed(folder: Path) -> bool:
    """Tell whether a deep look finds anything; what cannot be opened at all is refused by name."""
    try:
        dataset = open_any(folder)
    except ValueError as error:
        return str(folder) in str(error)
    return bool(verify(dataset, deep=True).problems)


def missed_flips(folder: Path, name: str, count: int, seed: int) -> list[tuple[int, int]]:
    """Flip bits spread over a file, one at a time; returns those that nothing notices."""
    path = folder / name
    whole = path.read_bytes()
    missed: list[tuple[int, int]] = []
    try:
        for place, bit in flips(len(whole), count, seed):
            path.write_bytes(flipped(whole, place, bit))
            if not is_noticed(folder):
                missed.append((place, bit))
    finally:
        path.write_bytes(whole)
    return missed


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_small_sets_are_whole_and_have_every_kind_of_file(small_sets: dict[str, Path]) -> None:
    for kind, folder in small_sets.items():
        assert not is_noticed(folder)
        assert len(files_of(folder)) == NUM_FILES[kind]


@pytest.mark.parametrize("number", range(10))
def test_a_bit_flipped_anywhere_in_a_shard_set_is_found(number: int, small_sets: dict[str, Path]) -> None:
    folder = small_sets[ShardSet.format]
    name = files_of(folder)[number]
    assert missed_flips(folder, name, 20, seed=number) == [], name


@pytest.mark.parametrize("number", range(9))
def test_a_bit_flipped_anywhere_in_a_prepared_set_is_found(number: int, small_sets: dict[str, Path]) -> None:
    folder = small_sets[PreparedSet.format]
    name = files_of(folder)[number]
    assert missed_flips(folder, name, 20, seed=number) == [], name


@pytest.mark.slow
@pytest.mark.parametrize("kind", NUM_FILES)
def test_five_thousand_flipped_bits_are_found(kind: str, small_sets: dict[str, Path]) -> None:
    folder = small_sets[kind]
    for number, name in enumerate(files_of(folder)):
        assert missed_flips(folder, name, 270, seed=1000 + number) == [], name


@pytest.mark.parametrize("name", TABLES)
def test_no_flipped_bit_in_a_table_gives_another_label(name: str, small_sets: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_sets[ShardSet.format], tmp_path / "shards"))
    labels = open_dataset(folder).split("train").labels
    whole = (folder / name).read_bytes()
    refused = 0
    for place, bit in flips(len(whole), 40, seed=2):
        (folder / name).write_bytes(flipped(whole, place, bit))
        try:
            shards = open_dataset(folder)
            split, tree, classes = shards.split("train"), shards.tree, shards.classes
        except ValueError as error:
            refused += str(folder) in str(error)
        else:
            np.testing.assert_array_equal(split.labels, labels)
            assert (len(tree), len(classes)) == (2, 2)
    assert refused == 40


def test_a_changed_card_is_no_reason_to_refuse_a_set(small_sets: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_sets[ShardSet.format], tmp_path / "shards"))
    (folder / "README.md").write_text("# Mine\n")
    shards = open_dataset(folder)
    assert len(shards.split("train")) == 4
    (problem,) = verify(shards).problems
    assert problem.startswith("README.md: has 7 bytes; dataset.json records ")


def test_a_set_that_records_no_files_opens_with_one_warning(
    small_sets: dict[str, Path], tmp_path: Path, as_version_1: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    for kind, source in small_sets.items():
        folder = Path(shutil.copytree(source, tmp_path / kind))
        as_version_1(folder)
        for _ in range(3):
            assert verify(open_any(folder), deep=True).problems == []
        (warning,) = [record.message for record in caplog.records if str(folder) in record.message]
        assert "version 1 of the format, which has no checksums of its tables" in warning
        assert f"`{open_any(folder).made_by}` makes version 2" in warning


def test_dataset_json_in_other_bytes_that_say_the_same_opens_and_verify_says_so(
    small_sets: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small_sets[ShardSet.format], tmp_path / "shards"))
    mark = folder / "dataset.json"
    mark.write_text(mark.read_text().replace("\n", "\r\n"))
    assert verify(open_dataset(folder)).problems == [
        "dataset.json: has the same content as when it was written, in other bytes"
    ]
