"""The table of the members of a sample: a line more in it is written, indexed, described and verified."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest

from in21k.shards import PreparedSet
from in21k.shards import members as members_module
from in21k.shards import pack as pack_module
from in21k.shards import verify as verify_module
from in21k.shards.dataset import read_manifest
from in21k.shards.index import index_path, read_index
from in21k.shards.members import ROW_MEMBERS, RowMember
from in21k.shards.pack import ShardSettings, pack
from in21k.shards.verify import verify


class NamedSample(NamedTuple):
    key: str
    image: bytes
    class_index: int
    source_name: str


@pytest.fixture
def two_row_members(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (*ROW_MEMBERS, RowMember("txt", "source_name", "name in the source", str.encode))
    for module in (members_module, pack_module, verify_module):
        monkeypatch.setattr(module, "ROW_MEMBERS", rows)
    monkeypatch.setattr(verify_module, "_COLUMNS", [*verify_module._COLUMNS, "source_name"])
    monkeypatch.setattr(pack_module, "Sample", NamedSample)


@pytest.mark.usefixtures("two_row_members")
def test_a_member_that_the_table_gains_is_written_indexed_described_and_verified(
    prepared: PreparedSet, tmp_path: Path
) -> None:
    shards = pack(prepared, tmp_path / "shards", ShardSettings(shard_samples=9), workers=1)
    rows = {row["key"]: row for row in read_manifest(shards).to_pylist()}
    assert len(rows) > 9
    for split in shards.num_samples:
        for name in shards.shard_names(split):
            with tarfile.open(shards.path / name, "r:") as archive:
                members = {member.name: archive.extractfile(member).read() for member in archive}
            keys = [key for key, row in rows.items() if row["shard"] == name]
            assert {key: members[f"{key}.txt"].decode() for key in keys} == {
                key: rows[key]["source_name"] for key in keys
            }
            index = read_index(index_path(shards.path / name))
            assert [entry.name for sample in index for entry in sample] == list(members)
            assert [entry.extension for entry in index[0]] == ["cls", "txt", "jpg"]
    assert "`<key>.txt` (name in the source) and `<key>.jpg`" in (shards.path / "README.md").read_text()
    assert verify(shards, deep=True).problems == []

    shard = shards.path / shards.shard_names("train")[0]
    with tarfile.open(shard, "r:") as archive:
        member = next(member for member in archive if member.name.endswith(".txt"))
    data = bytearray(shard.read_bytes())
    data[member.offset_data] ^= 1
    shard.write_bytes(data)
    assert [problem.split(" ", 1)[1] for problem in verify(shards).problems] == [
        f"{member.name}: does not hold the manifest's source name {rows[member.name[:-4]]['source_name']}"
    ]
