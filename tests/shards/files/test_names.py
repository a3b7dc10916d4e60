"""Names in tables and `dataset.json`: none that leads out of its data set, or means something to a shell, is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from in21k.cli.report.prepared.sheet import contact_sheet
from in21k.shards import PreparedSet, ShardSet, open_dataset
from in21k.shards.files.atomic import read_json, write_json
from in21k.shards.files.names import archive_name, file_name
from in21k.shards.pack import ShardSettings, pack
from in21k.shards.verify import verify

from ...fuzz.mutators import HOSTILE_NAMES

pytestmark = pytest.mark.security

PARTS = st.sampled_from(["train", "val", "..", ".", "/", "\\", ".tar", ".idx", "\0", "\n", " ", "$(id)", "|", "é", "a"])
NAMES = st.text(max_size=30) | st.lists(PARTS, max_size=9).map("".join)
Reseal = Callable[[Path], None]


def taken(check: Callable[[str, str], str], name: str, folder: Path) -> tuple[str, Path | None]:
    """Return the refusal of a name, or the path that is made of it."""
    try:
        return "", folder / check(name, "here")
    except ValueError as error:
        return str(error), None


@given(NAMES.map(lambda name: f"train/{name}.tar") | NAMES)
@example("train/...tar")
def test_a_name_that_is_taken_lies_in_a_split_and_is_plain(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    message, path = taken(archive_name, name, folder)
    assert message.isprintable()
    if path:
        assert path.resolve().parent in (folder / "train", folder / "val")
        assert path.name.endswith(".tar")
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/")


@given(NAMES)
def test_a_file_name_that_is_taken_lies_in_the_folder_or_a_split(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    message, path = taken(file_name, name, folder)
    assert message.isprintable()
    if path:
        assert path.resolve().parent in (folder, folder / "train", folder / "val")
        assert path.resolve().name == name.rpartition("/")[2]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"here: names the archive .*; wanted train/NAME\.tar or val/NAME\.tar"):
        archive_name(name, "here")


@pytest.mark.parametrize("name", ["train/in21k-train-000000.tar", "val/n01440764.tar", "train/My_class-2.x.tar"])
def test_names_that_we_make_are_taken(name: str) -> None:
    assert archive_name(name, "here") == file_name(name, "here") == name


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_a_shard_of_a_hostile_name_is_refused_where_it_is_listed_and_where_it_is_in_the_manifest(
    name: str, shards_copy: Path, reseal: Reseal
) -> None:
    table = pq.read_table(shards_copy / "manifest.parquet")
    set_names(shards_copy / "manifest.parquet", table, "shard", name)
    reseal(shards_copy)
    with pytest.raises(ValueError, match=r"counts per shard of train differ"):
        open_dataset(shards_copy).split("train")
    assert any("names the archive" in problem for problem in verify(ShardSet(shards_copy)).problems)
    info = read_json(shards_copy / "dataset.json")
    info["shards"]["train"][0]["name"] = name
    write_json(shards_copy / "dataset.json", {**info, "version": 1})
    with pytest.raises(ValueError, match=r"its dataset\.json is damaged \(it: names the archive"):
        open_dataset(shards_copy)


@pytest.mark.parametrize("name", HOSTILE_NAMES[:6], ids=ascii)
def test_an_archive_of_a_hostile_name_is_neither_packed_nor_drawn_from(
    name: str, prepared_copy: Path, tmp_path: Path, reseal: Reseal
) -> None:
    table = pq.read_table(prepared_copy / "manifest.parquet")
    set_names(prepared_copy / "manifest.parquet", table, "archive", name)
    reseal(prepared_copy)
    before = files_below(tmp_path)
    prepared = PreparedSet(prepared_copy)
    with pytest.raises(ValueError, match=r"manifest\.parquet: names the archive"):
        pack(prepared, tmp_path / "out", ShardSettings())
    with pytest.raises(ValueError, match="names the archive"):
        contact_sheet(prepared, 400, 0)
    assert any("names the archive" in problem for problem in verify(prepared).problems)
    assert {path: data for path, data in files_below(tmp_path).items() if "out" not in path.parts} == before


def set_names(path: Path, table: pa.Table, column: str, name: str) -> None:
    """Write a manifest whose rows all name another archive."""
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, table.schema.field(column), pa.array([name] * len(table))), path)
