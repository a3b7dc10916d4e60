"""Loaders of every backend that runs here, and shards that are broken."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from in21k.datapipe import Loader, catalog, create_loader
from in21k.shards import ShardSet, open_dataset
from in21k.shards.reader import SampleReader
from in21k.shards.sample import checksum

SIZE = 32  # as the images are stored
BACKENDS = [
    name
    for name, backend in reversed(catalog.BACKENDS.items())
    if backend.is_indexed and backend.is_installed and not backend.needs_gpu
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(shard_set: ShardSet) -> Iterator[Callable[..., Loader]]:
    """Make loaders over `shard_set`, or the one named; they are closed at the end."""
    made: list[Loader] = []

    def make(backend: str, split: str = "train", shards: ShardSet | Path | None = None, **settings: Any) -> Loader:
        settings = {"batch_size": 8, "image_size": SIZE, "workers": 1} | settings
        made.append(create_loader(shards or shard_set, split=split, backend=backend, **settings))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


@pytest.fixture(scope="session")
def originals(shard_set: ShardSet) -> dict[str, Tensor]:
    """Per split the stored pixels by position, decoded by Pillow: N x 3 x 32 x 32, uint8."""

    def pixels(split: str) -> Tensor:
        opened = shard_set.split(split)
        reader = SampleReader(opened)
        images = [Image.open(io.BytesIO(reader.image(position))).convert("RGB") for position in range(len(opened))]
        reader.close()
        return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()

    return {split: pixels(split) for split in ("train", "val")}


@pytest.fixture
def damage(shards_copy: Path, reseal: Callable[[Path], None]) -> Callable[..., Path]:
    """Break samples of a copy of `shard_set`: `damage({position: kind}, split)` returns the folder.

    changed:      bytes other than those written.
    headless:     what was written is not a JPEG.
    undecodable:  what was written has a JPEG's header and no pixels.
    """

    def damage(faults: dict[int, str], split: str = "train") -> Path:
        opened = open_dataset(shards_copy).split(split)
        checksums = {}
        for position, kind in faults.items():
            path = shards_copy / opened.shard_names[opened.shard_of(position)]
            start, num_bytes = int(opened.offsets[position]), int(opened.num_bytes[position])
            tar = bytearray(path.read_bytes())
            jpeg = bytes(tar[start : start + num_bytes])
            broken = {
                "changed": jpeg[:200] + bytes([jpeg[200] ^ 0xFF]) + jpeg[201:],
                "headless": b"no JPEG" + bytes(num_bytes - 7),
                "undecodable": jpeg[: jpeg.index(b"\xff\xc4")].ljust(num_bytes, b"\0"),
            }[kind]
            tar[start : start + num_bytes] = broken
            path.write_bytes(tar)
            if kind != "changed":
                checksums[int(opened.manifest_rows[position])] = checksum(broken)
        table = pq.read_table(shards_copy / "manifest.parquet")
        written = table["checksum"].to_pylist()
        for row, digits in checksums.items():
            written[row] = digits
        table = table.set_column(table.schema.get_field_index("checksum"), "checksum", pa.array(written))
        pq.write_table(table, shards_copy / "manifest.parquet")
        reseal(shards_copy)
        return shards_copy

    return damage


@pytest.fixture
def open_stream(shard_set: ShardSet) -> Iterator[Callable[..., Loader]]:
    """Make loaders of the backend over `shard_set`, a folder or a pattern; they are closed at the end."""
    made: list[Loader] = []

    def open_stream(shards: Any = None, split: str = "train", **settings: Any) -> Loader:
        settings = {"batch_size": 4, "image_size": SIZE, "workers": 1} | settings
        made.append(create_loader(shards or shard_set, split=split, backend="webdataset", **settings))
        return made[-1]

    yield open_stream
    for loader in made:
        loader.close()


@pytest.fixture
def shard(shard_set: ShardSet) -> Path:
    """The first training shard, of nine samples."""
    return shard_set.path / "train" / "in21k-train-000000.tar"
