"""Whatever reads our folders, once over: what it may do with a damaged one is to raise ValueError that says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from in21k.cli.report.prepared.numbers import count_images, reject_reasons
from in21k.cli.report.prepared.sheet import contact_sheet
from in21k.preprocess.classes.release import release_differences
from in21k.shards.dataset import PreparedSet, ShardSet, open_dataset, read_manifest
from in21k.shards.pack import ManifestLocations as Whereabouts
from in21k.shards.pack import ShardSettings, plan_shards
from in21k.shards.reader import CorruptSampleError, SampleReader
from in21k.shards.verify import open_any, verify


def _read_split(path: Path) -> None:
    shards = open_dataset(path)
    for name in shards.num_samples:
        split = shards.split(name)
        assert split.describe(0)
        assert 0 <= split.labels.min() <= split.labels.max() < len(shards.tree)
        reader = SampleReader(split)
        try:
            reader.image(len(split) - 1)
        except (OSError, CorruptSampleError):  # no such shard, or other bytes, which loaders pass over by name
            pass
        finally:
            reader.close()


def _read_tables(path: Path) -> None:
    dataset = open_any(path)
    assert len(dataset.tree.names) == sum(row.kept for row in dataset.classes)
    read_manifest(dataset).to_pylist()


def _compare(path: Path) -> None:
    release_differences(open_any(path), "fall11")


def _verify(path: Path) -> None:
    assert verify(open_any(path)).as_dict()


def _plan(path: Path) -> None:
    prepared = PreparedSet(path)
    plan = plan_shards(prepared, ShardSettings(shard_samples=9))
    Whereabouts(prepared).runs(plan.rows(plan.shards[0]))


def _count(path: Path) -> None:
    count_images(PreparedSet(path))
    reject_reasons(PreparedSet(path))


def _draw(path: Path) -> None:
    contact_sheet(PreparedSet(path), 12, 0)


Reader = Callable[[Path], None]
READERS: dict[str, tuple[Reader, ...]] = {
    ShardSet.format: (_read_split, _read_tables, _compare, _verify),
    PreparedSet.format: (_read_tables, _compare, _verify, _plan, _count, _draw),
}


def read_all(path: Path, kind: str, what: str) -> list[str]:
    """Read a damaged folder by every reader; returns what was refused, and fails on any other exception."""
    refusals: list[str] = []
    for reader in READERS[kind]:
        try:
            reader(path)
        except ValueError as error:
            refusals.append(str(error))
        except FileNotFoundError as error:  # an archive that a changed row names: one line as well
            refusals.append(f"{error.filename}: {error.strerror}")
        except Exception as error:
            raise AssertionError(f"{reader.__name__} with {what}: {type(error).__name__}: {error}") from error
    for refusal in refusals:
        if str(path) not in refusal or "\n" in refusal or "\x1b" in refusal:
            pytest.fail(f"{what}: the message names no file, or is not plain: {refusal!r}")
    return refusals
