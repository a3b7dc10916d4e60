"""Folders whose tables or `dataset.json` somebody changed: each reader takes them or refuses them in one line.

With `dataset.json` as it was, a change is noticed by the checksums. Here it either records none, as of version 1, or
records the changed file, as whoever forges a data set would have it.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from in21k.shards import PreparedSet, ShardSet
from in21k.shards.files.atomic import read_json, sealed, write_json

from .mutators import changed_bytes, changed_json, changed_tables
from .readers import READERS, read_all

CRASHERS = Path(__file__).parent / "crashers" / "tables"
TABLES = {
    ShardSet.format: ("manifest.parquet", "classes.parquet", "tree.json", "_info.json"),
    PreparedSet.format: ("manifest.parquet", "classes.parquet", "tree.json", "rejects.parquet"),
}
CASES = [(kind, name) for kind, names in TABLES.items() for name in names]
Change = Callable[[Path], None]


@pytest.fixture(scope="session")
def old_sets(
    tmp_path_factory: pytest.TempPathFactory, prepared: PreparedSet, shard_set: ShardSet, as_version_1: Change
) -> dict[str, Path]:
    """Copies of version 1, which record no files: {format: folder}. Each test puts back what it changes."""
    copies: dict[str, Path] = {}
    for dataset in (prepared, shard_set):
        copies[dataset.format] = Path(shutil.copytree(dataset.path, tmp_path_factory.mktemp("old") / "set"))
        as_version_1(copies[dataset.format])
    return copies


def try_each(folder: Path, kind: str, name: str, contents: Sequence[tuple[str, bytes]]) -> float:
    """Read the folder with each content of a file; returns the share that at least one reader refused."""
    whole = (folder / name).read_bytes()
    refused = 0
    try:
        for what, content in contents:
            (folder / name).write_bytes(content)
            refused += bool(read_all(folder, kind, f"{name}: {what}"))
    finally:
        (folder / name).write_bytes(whole)
    return refused / len(contents)


def some(cases: Iterable[tuple[str, bytes]], share: str) -> list[tuple[str, bytes]]:
    """Draw a few of the cases, or take all."""
    listed = list(cases)
    return listed if share == "all" else random.Random(0).sample(listed, min(len(listed), NUM_DRAWN))


SHARES = ["some", pytest.param("all", marks=pytest.mark.slow)]
NUM_DRAWN = 16


def test_what_is_not_damaged_is_read_by_every_reader(old_sets: dict[str, Path]) -> None:
    for kind, folder in old_sets.items():
        assert read_all(folder, kind, "as it was") == []


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1].endswith(".parquet")])
def test_other_columns_and_values_are_refused_in_one_line(
    kind: str, name: str, share: str, old_sets: dict[str, Path]
) -> None:
    table = pq.read_table(old_sets[kind] / name)

    def written(changed: pa.Table) -> bytes:
        sink = io.BytesIO()
        pq.write_table(changed, sink)
        return sink.getvalue()

    contents = ((what, written(changed)) for what, changed in changed_tables(table))
    assert try_each(old_sets[kind], kind, name, some(contents, share)) > 0.4


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1].endswith(".json")])
def test_json_of_another_shape_is_refused_in_one_line(
    kind: str, name: str, share: str, old_sets: dict[str, Path]
) -> None:
    content = json.loads((old_sets[kind] / name).read_text())
    contents = [(what, json.dumps(changed).encode()) for what, changed in changed_json(content)]
    contents = some(contents, share)
    contents += [("nested", b"[" * 100_000), ("nested objects", b'{"a":' * 100_000), ("not UTF-8", b"\xff\xfe{}")]
    refused = try_each(old_sets[kind], kind, name, contents)
    assert refused > 0.4 or name == "_info.json"  # which `verify` alone reads


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", TABLES)
def test_a_dataset_json_of_another_shape_is_refused_in_one_line(
    kind: str, version: int, share: str, old_sets: dict[str, Path], prepared: PreparedSet, shard_set: ShardSet
) -> None:
    """Also where its checksum is right."""
    source = prepared if kind == PreparedSet.format else shard_set
    content = read_json((old_sets[kind] if version == 1 else source.path) / "dataset.json")
    contents: list[tuple[str, bytes]] = []
    for what, changed in changed_json(content):
        whole = sealed(changed) if version == 2 and isinstance(changed, dict) else changed
        contents.append((what, json.dumps(whole).encode()))
    contents = [*some(contents, share), ("nested", b'{"a":' * 100_000)]
    assert try_each(old_sets[kind], kind, "dataset.json", contents) > 0.2


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("kind", "name"), [*CASES, *((kind, "dataset.json") for kind in TABLES)])
def test_bytes_that_changed_are_refused_in_one_line(
    kind: str, name: str, share: str, old_sets: dict[str, Path]
) -> None:
    data = (old_sets[kind] / name).read_bytes()
    contents = [(f"seed {seed}", changed_bytes(data, seed)) for seed in range(300)]
    try_each(old_sets[kind], kind, name, some(contents, share))


@pytest.mark.parametrize("crasher", sorted(CRASHERS.glob("*/*/*")), ids=lambda path: "-".join(path.parts[-3:]))
def test_what_crashed_a_reader_once_is_refused_in_one_line(crasher: Path, old_sets: dict[str, Path]) -> None:
    """Each lies as `<format>/<file name>/<the exception and what was wrong with the file>`."""
    kind, name = crasher.parts[-3:-1]
    assert try_each(old_sets[kind], kind, name, [(crasher.name, crasher.read_bytes())]) == 1


def test_every_kind_of_folder_has_its_readers() -> None:
    assert READERS.keys() == TABLES.keys()


def test_a_set_that_records_none_of_its_tables_is_refused(shards_copy: Path) -> None:
    write_json(shards_copy / "dataset.json", sealed({**read_json(shards_copy / "dataset.json"), "files": {}}))
    refusals = read_all(shards_copy, ShardSet.format, "no records")
    assert refusals
    assert all("dataset.json records no such file" in refusal for refusal in refusals)
