"""Seeded damage: flipped bits, JSON without a key or with another value, tables of other columns and values."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

HOSTILE_NAMES = (
    "../../../x.tar",
    "/home/u/.bashrc",
    "train/../../x.tar",
    "train/./x.tar",
    "train//x.tar",
    "train/x.tar/",
    "train/x.tar\n",
    "train/x\0.tar",
    "train/a b.tar",
    "train/$(id).tar",
    "train/|id.tar",
    "train/\x1b[2J.tar",
    "train/é.tar",
    "train\\x.tar",
    "TRAIN/x.tar",
    "test/x.tar",
    "train/x.TAR",
    "train/x",
    "train/.tar",
    "x.tar",
    "pipe:id",
    "https://host/x.tar",
    f"train/{'x' * 201}.tar",
    "",
)
HOSTILE_VALUES = {
    "string": ("", "../x", "\x1b[31m", "é" * 40, "train/none.tar", "x" * 5000),
    "int": (-1, 0, 5, 99_999, 2**31 - 1),
    "bool": (True, False),
}
OTHER_JSON: tuple[Any, ...] = (None, True, -1, 1.5, 2**70, "text", "", [], {}, [[]], {"a": 1}, [None])


def flips(num_bytes: int, count: int, seed: int) -> Iterator[tuple[int, int]]:
    """Draw places of bits, byte and bit in it, spread over a file: one in each of `count` equal parts."""
    draws = random.Random(seed)
    for part in range(count):
        start, stop = part * num_bytes // count, max((part + 1) * num_bytes // count, part * num_bytes // count + 1)
        yield min(draws.randrange(start, stop), num_bytes - 1), draws.randrange(8)


def flipped(data: bytes, place: int, bit: int) -> bytes:
    """Return data with a bit flipped."""
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def changed_bytes(data: bytes, seed: int) -> bytes:
    """Return data cut, doubled in part, filled with other bytes in part, or with several bits flipped."""
    draws = random.Random(seed)
    start, stop = sorted(draws.randrange(len(data) + 1) for _ in range(2))
    kind = draws.randrange(5)
    if kind == 0:
        return data[:start] + data[stop:]
    if kind == 1:
        return data[:stop] + data[start:]
    if kind == 2:
        stop = min(stop, start + 8)
        return data[:start] + draws.randbytes(stop - start) + data[stop:]
    for _ in range(draws.randint(1, 4)):
        data = flipped(data, draws.randrange(len(data)), draws.randrange(8))
    return data


def changed_json(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield JSON with one part removed, or of another value; with the name of the change."""
    for place in _places(content):
        for number, value in enumerate(OTHER_JSON):
            yield f"{place} {number}", _replaced(content, place, value)
        if place:
            yield f"{place} removed", _replaced(content, place, ..., remove=True)


def _places(content: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield above
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _places(value, (*above, key))
    elif isinstance(content, list):
        for number, value in list(enumerate(content))[:2]:  # the others are alike
            yield from _places(value, (*above, number))


def _replaced(content: Any, place: tuple[str | int, ...], value: Any, *, remove: bool = False) -> Any:
    if not place:
        return value
    copy = content.copy()
    if remove and len(place) == 1:
        del copy[place[0]]
    else:
        copy[place[0]] = _replaced(content[place[0]], place[1:], value, remove=remove)
    return copy


def changed_tables(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Yield tables with one thing changed: a column, or values of one; with the name of the change."""
    yield "no rows", table.slice(0, 0)
    yield "half of the rows", table.slice(0, len(table) // 2)
    yield "rows twice", pa.concat_tables([table, table])
    yield "backwards", table.take(pa.array(range(len(table) - 1, -1, -1), pa.int64()))
    yield "no columns", table.select([])
    for number, field in enumerate(table.schema):
        yield f"{field.name} removed", table.remove_column(number)
        yield (
            f"{field.name} renamed",
            table.rename_columns([*table.column_names[:number], "x", *table.column_names[number + 1 :]]),
        )
        yield f"{field.name} twice", table.append_column(field.name, table.column(number))
        for kind in (pa.float64(), pa.int8(), pa.large_string(), pa.binary(), pa.list_(pa.int32())):
            yield f"{field.name} as {kind}", _with(table, number, pa.nulls(len(table), kind))
        if len(table):
            yield from _changed_values(table, number, field)


def _changed_values(table: pa.Table, number: int, field: pa.Field) -> Iterator[tuple[str, pa.Table]]:
    values = table.column(number).to_pylist()
    kind = "int" if pa.types.is_integer(field.type) else str(field.type)
    for place in {0, len(values) // 2}:
        others = (None, *HOSTILE_VALUES.get(kind, ([None], ["\x1b[31m"])))
        for value in others:
            changed = [*values[:place], value, *values[place + 1 :]]
            yield f"{field.name} {value!r:.20} at {place}", _with(table, number, pa.array(changed, field.type))
    if pa.types.is_string(field.type):
        texts = [b"\xff\xfe", *(value.encode() for value in values[1:])]
        bad = pa.array(texts, pa.binary()).view(pa.string())
        yield f"{field.name} not UTF-8", _with(table, number, bad)


def _with(table: pa.Table, number: int, column: pa.Array) -> pa.Table:
    return table.set_column(number, pa.field(table.schema.field(number).name, column.type), column)
