"""Features in files: a vector for each image, with its key, wnid and class index beside it.

`NAME.parquet` holds all of it, the features as lists of a fixed size; `NAME.npy` the features alone, N x D, with the
rest in `NAME.keys.parquet`. What they were made with stands in the Parquet file's metadata as JSON.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from ...shards.files.atomic import whole_file
from ...shards.files.output import check_same, may_write_file
from ..memory import free_bytes

FORMAT, VERSION = "in21k-features", 1
METADATA = b"in21k"  # the key of the JSON in a Parquet file's metadata
KEYS = ("key", "wnid", "class_index")
GROUP_BYTES = 32 << 20  # of features in a row group: what a reader holds at a time

# Bytes of one significance side by side take a tenth less room, and numbers that cannot be missing are read twice as
# fast as others (measured on float16).
_OPTIONS: Any = {
    "compression": "zstd",
    "use_dictionary": ["wnid"],
    "column_encoding": {"features.list.element": "BYTE_STREAM_SPLIT"},
}

pc: Any = pyarrow.compute  # its functions are made at run time, where type checkers do not see them
Rows = NDArray[np.floating[Any]]


def float_rows(features: Rows, device: torch.device) -> torch.Tensor:
    """Return features (n, D) as float32 on a device; always a copy, as a mapped file's rows are not to be written."""
    return torch.from_numpy(np.array(features, np.float32)).to(device)


def keys_path(path: Path) -> Path:
    """Return the Parquet file that has the keys: that of an .npy lies beside it."""
    return path.with_suffix(".keys.parquet") if path.suffix == ".npy" else path


def check_name(path: Path) -> None:
    """Raise ValueError for a path whose suffix is not that of a features file."""
    if path.suffix not in (".parquet", ".npy") or path.name.endswith(".keys.parquet"):
        raise ValueError(f"{path}: features are NAME.parquet or NAME.npy (with NAME.keys.parquet beside it)")


def write_features(
    path: Path, parts: Iterable[tuple[pa.Table, Rows]], provenance: Mapping[str, Any], num_rows: int, dtype: str
) -> None:
    """Write a features file, whole or not at all, from parts as they come.

    parts:     tables of key, wnid and class_index, each with its features (n, num_features).
    provenance: JSON values, with `num_features`; equal features and values give equal bytes.
    num_rows:  of all parts together.
    dtype:     `float16` or `float32`.
    """
    check_name(path)
    width: int = provenance["num_features"]
    fields = [pa.field("key", pa.string()), pa.field("wnid", pa.string()), pa.field("class_index", pa.int32())]
    if path.suffix == ".parquet":
        element = pa.field("element", pa.from_numpy_dtype(np.dtype(dtype)), nullable=False)
        fields.append(pa.field("features", pa.list_(element, width)))
    metadata = {METADATA: json.dumps({"format": FORMAT, "version": VERSION, **provenance})}
    schema = pa.schema([field.with_nullable(False) for field in fields], metadata)
    group_rows = max(1, GROUP_BYTES // (width * np.dtype(dtype).itemsize))
    with ExitStack() as stack:
        # Of an .npy the array takes its name last and an older one goes first: where one is, so are its own keys.
        array = stack.enter_context(whole_file(path)).open("wb") if path.suffix == ".npy" else None
        aside = stack.enter_context(whole_file(keys_path(path)))
        if array is not None:
            stack.push(lambda failed, *_: path.unlink(missing_ok=True) if failed is None else None)
        writer = stack.enter_context(pq.ParquetWriter(aside, schema, **_OPTIONS))
        if array is not None:
            stack.enter_context(array)
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (num_rows, width)}
            np.lib.format.write_array_header_2_0(array, header)
        for table, features in _regrouped(parts, group_rows):
            features = np.ascontiguousarray(features, dtype=dtype)
            if array is not None:
                array.write(features.data)
            else:
                values = pa.array(features.reshape(-1))
                column = pa.FixedSizeListArray.from_arrays(values, type=schema.field("features").type)
                table = table.append_column("features", column)
            writer.write_table(table.cast(schema), row_group_size=max(len(features), 1))


def _regrouped(parts: Iterable[tuple[pa.Table, Rows]], size: int) -> Iterator[tuple[pa.Table, Rows]]:
    """Yield the same rows in parts of `size`; the last is what is left."""
    tables: list[pa.Table] = []
    arrays: list[Rows] = []
    waiting = 0
    for table, features in parts:
        tables.append(table)
        arrays.append(features)
        waiting += len(features)
        if waiting >= size:
            rows, values = pa.concat_tables(tables), np.concatenate(arrays)
            whole = waiting // size * size
            for start in range(0, whole, size):
                yield rows.slice(start, size), values[start : start + size]
            tables, arrays, waiting = [rows.slice(whole)], [values[whole:]], waiting - whole
    if waiting:
        yield pa.concat_tables(tables), np.concatenate(arrays)


@dataclass(frozen=True)
class FeatureFile:
    """A features file, opened by `open_features`; its features are read when they are asked for.

    provenance: what it was made with: model, fingerprint (of the weights), layer, split, shards, ...
    """

    path: Path
    provenance: dict[str, Any]
    num_rows: int
    num_features: int

    def __len__(self) -> int:
        return self.num_rows

    @cached_property
    def classes(self) -> tuple[list[str], NDArray[np.int64]]:
        """The wnids in the file, sorted, and for each row the place of its own among them: int64 (N,)."""
        column = pq.read_table(keys_path(self.path), columns=["wnid"])["wnid"].combine_chunks().dictionary_encode()
        wnids: list[str] = column.dictionary.to_pylist()
        order = sorted(wnids)
        place = {wnid: number for number, wnid in enumerate(order)}
        places = np.array([place[wnid] for wnid in wnids], np.int64)
        return order, places[column.indices.to_numpy()]

    def labels(self, wnids: list[str]) -> NDArray[np.int64]:
        """Return for each row the place of its class in `wnids`, int64 (N,); ValueError where one is not there."""
        place = {wnid: number for number, wnid in enumerate(wnids)}
        own, numbers = self.classes
        lacking = [wnid for wnid in own if wnid not in place]
        if lacking:
            raise ValueError(
                f"{self.path}: has images of {len(lacking):,} classes that are not among the {len(wnids):,} "
                f"({', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''})"
            )
        return np.array([place[wnid] for wnid in own], np.int64)[numbers]

    def find(self, keys: list[str]) -> list[int]:
        """Return the row of each key; raises ValueError for one that is not there."""
        column = pq.read_table(keys_path(self.path), columns=["key"])["key"].combine_chunks()
        rows = pc.index_in(pa.array(keys, pa.string()), value_set=column).to_pylist()
        for key, row in zip(keys, rows, strict=True):
            if row is None:
                same_class = column.filter(pc.starts_with(column, key.partition("_")[0] + "_"))[:2000]
                near = difflib.get_close_matches(key, same_class.to_pylist(), 2)
                hint = f"; near ones: {', '.join(near)}" if near else f"; it begins with {column[0]}"
                raise ValueError(f"{key}: neither an image file nor a key in {self.path}{hint}")
        return rows

    def names(self, rows: list[int]) -> list[tuple[str, str]]:
        """Return key and wnid of some rows."""
        names: dict[int, tuple[str, str]] = {}
        first, wanted = 0, sorted(set(rows))
        with pq.ParquetFile(keys_path(self.path)) as file:
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                here = [row for row in wanted if first <= row < end]
                if here:
                    table = file.read_row_group(group, columns=["key", "wnid"]).take([row - first for row in here])
                    named = zip(table["key"].to_pylist(), table["wnid"].to_pylist(), strict=True)
                    names |= dict(zip(here, named, strict=True))
                first = end
        return [names[row] for row in rows]

    def chunks(self) -> Iterator[Rows]:
        """Yield the features in order, a few tens of megabytes at a time: (n, D)."""
        if self.path.suffix == ".npy":
            array = self.array()
            size = max(1, GROUP_BYTES // (self.num_features * array.itemsize))
            for start in range(0, self.num_rows, size):
                yield array[start : start + size]
            return
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                yield self._values(file.read_row_group(group, columns=["features"]))

    def rows(self, wanted: list[int]) -> Rows:
        """Return the features of some rows, (n, D), in their order."""
        features = np.empty((len(wanted), self.num_features), np.float32)
        numbers, first = np.array(wanted, np.int64), 0
        for chunk in self.chunks():
            here = (numbers >= first) & (numbers < first + len(chunk))
            features[here] = chunk[numbers[here] - first]
            first += len(chunk)
        return features

    def array(self) -> Rows:
        """Return all features, (N, D): of an .npy mapped from the file, of a Parquet file in memory.

        Raises ValueError where they would not fit into the memory that is free.
        """
        if self.path.suffix == ".npy":
            return np.load(self.path, mmap_mode="r", allow_pickle=False)
        needed, free = self.num_rows * self.num_features * self._dtype.itemsize, free_bytes()
        if needed > free:
            raise ValueError(
                f"{self.path}: its features take {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; "
                "write them as an .npy, which is read where it lies"
            )
        whole = np.empty((self.num_rows, self.num_features), self._dtype)
        first = 0
        for chunk in self.chunks():
            whole[first : first + len(chunk)] = chunk
            first += len(chunk)
        return whole

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(self.provenance["dtype"])

    def _values(self, table: pa.Table) -> Rows:
        column = table["features"].combine_chunks()
        return column.flatten().to_numpy().reshape(-1, self.num_features)


def check_memory(batch_size: int, image_size: int) -> None:
    """Raise ValueError where the pixels of a batch alone do not fit into the memory that is free."""
    needed, free = 3 * batch_size * image_size**2, free_bytes()
    if needed > free:
        raise ValueError(
            f"a batch of {batch_size:,} images of {image_size} pixels takes {needed / 1e9:,.1f} GB of memory or more, "
            f"and {free / 1e9:,.1f} GB are free; lower --batch-size or --image-size"
        )


def finished_features(path: Path, provenance: Mapping[str, Any], *, overwrite: bool = False) -> FeatureFile | None:
    """Return the finished features file at a path; None where it has to be written, also over an older one.

    Raises ValueError for a path with another suffix, for another file there, and (unless `overwrite`) for features of
    another provenance.
    """
    check_name(path)
    wanted = {"format": FORMAT, "version": VERSION, **json.loads(json.dumps(dict(provenance)))}

    def is_same(path: Path) -> bool:
        check_same(path, open_features(path).provenance, wanted)
        return True

    what = "a features file"
    if keys_path(path) != path and not path.exists():  # killed before the array took its name
        may_write_file(keys_path(path), what=what, is_ours=lambda keys: bool(_metadata(keys)), overwrite=True)
    if may_write_file(path, what=what, is_ours=_opens, is_same=is_same, overwrite=overwrite):
        return None
    return open_features(path)


def _opens(path: Path) -> bool:
    try:
        open_features(path)
    except ValueError:
        return False
    return True


def _metadata(path: Path) -> dict[str, Any]:
    """Return the content of a features file's metadata; empty for any other file."""
    try:
        content: Any = json.loads((pq.read_schema(path).metadata or {}).get(METADATA, b"{}"))
    except (pa.ArrowException, OSError, ValueError):
        return {}
    return content if (content.get("format"), content.get("version")) == (FORMAT, VERSION) else {}


def open_features(path: str | Path) -> FeatureFile:
    """Open a file that `in21k features` wrote; raises ValueError for any other."""
    path = Path(path)
    check_name(path)
    for part in (path, keys_path(path)):
        if not part.is_file():
            raise ValueError(f"{part}: no such file; wanted features that `in21k features` wrote")
    provenance = _metadata(keys_path(path))
    try:
        if not provenance:
            raise ValueError(f"its metadata says nothing of {FORMAT} version {VERSION}")
        with pq.ParquetFile(keys_path(path)) as file:
            schema, num_rows = file.schema_arrow, file.metadata.num_rows
        shape = (num_rows, provenance["num_features"])
        if path.suffix == ".npy":
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
            if stored.shape != shape or stored.dtype != np.dtype(provenance["dtype"]):
                raise ValueError(f"it is {stored.dtype} {stored.shape}, its keys are of {provenance['dtype']} {shape}")
        elif schema.field("features").type.list_size != shape[1]:
            raise ValueError(f"its lists have {schema.field('features').type.list_size} numbers, it says {shape[1]}")
    except (pa.ArrowException, AttributeError, KeyError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: no features that `in21k features` wrote ({reason})") from error
    return FeatureFile(path, provenance, *shape)
