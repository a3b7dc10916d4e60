"""The table of the members that each shard sample has: writer, index, card, packing and verifying read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .sample import Sample

IMAGE = "jpg"  # the extension of the stored image, which is the last member of a sample
LABEL = "cls"


class RowMember(NamedTuple):
    """A member whose bytes are made from a manifest column; `Sample` has a field of the column's name.

    extension: of the member's name, `<key>.<extension>`.
    column:    of the manifest.
    content:   what the member holds, in words.
    encode:    makes its bytes from the column's value: at most one tar block of 512 bytes.
    """

    extension: str
    column: str
    content: str
    encode: Callable[[Any], bytes]


# In the order of the shard; the image follows.
ROW_MEMBERS = (RowMember(LABEL, "class_index", "class index in ASCII", lambda index: b"%d" % index),)


def member_columns() -> list[str]:
    """Return the manifest columns that members are made from."""
    return [member.column for member in ROW_MEMBERS]


def encode_row(row: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the bytes of each row member by its extension, in the order of the shard.

    >>> encode_row({"class_index": 7})
    {'cls': b'7'}
    """
    return {member.extension: member.encode(row[member.column]) for member in ROW_MEMBERS}


def sample_members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    """Yield extension and bytes of each member of a sample, in the order of the shard."""
    yield from encode_row(sample._asdict()).items()
    yield IMAGE, sample.image


def describe_members() -> str:
    """Return the members of a sample in Markdown.

    >>> describe_members()
    '`<key>.cls` (class index in ASCII) and `<key>.jpg`'
    """
    listed = ", ".join(f"`<key>.{member.extension}` ({member.content})" for member in ROW_MEMBERS)
    return f"{listed} and `<key>.{IMAGE}`"
