"""Damaged and hostile tars: seeded mutants of a good one."""

from __future__ import annotations

import random
from collections.abc import Callable

BLOCK = 512
SIZES = [-1, -1024, 1, 511, 513, 1 << 20, 10**9, (1 << 33) - 1, 10**12, 10**12 + 1, 1 << 40, 1 << 62, (1 << 63) - 1]
TYPES = b"\0" + b"0123456789ABDKLMNSVXgxQ\xff"
NAMES = [
    b"",
    b"/",
    b"..",
    b"../x.jpg",
    b"a" * 100,
    b"\xff\xfe.jpg",
    b"n1.tar",
    b"n1/x.jpg",
    b"././@LongLink",
    b"\n\x1b[2J",
]


def headers(tar: bytes | bytearray) -> list[int]:
    """Return where headers begin, those of tars in the tar included."""
    return [at for at in range(0, len(tar) - BLOCK + 1, BLOCK) if tar[at + 257 : at + 262] == b"ustar"]


def set_size(header: bytearray, size: int) -> None:
    """Write a member's size as GNU tar does: octal, or as a large number in base 256."""
    if 0 <= size < 8**11:
        header[124:136] = b"%011o\0" % size
    else:
        header[124:136] = (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, "big", signed=True)


def seal(header: bytearray) -> None:
    """Write the checksum that a header needs to be believed."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)


def with_size(tar: bytes, number: int, size: int) -> bytes:
    """Return the tar with another size in the header of that number."""
    at = headers(tar)[number]
    header = bytearray(tar[at : at + BLOCK])
    set_size(header, size)
    seal(header)
    return tar[:at] + bytes(header) + tar[at + BLOCK :]


def _change_header(tar: bytearray, draw: random.Random) -> None:
    places = headers(tar)
    if not places:
        return
    at = draw.choice(places)
    header = tar[at : at + BLOCK]
    kind = draw.randrange(4)
    if kind == 0:
        set_size(header, draw.choice(SIZES))
    elif kind == 1:
        header[156] = draw.choice(TYPES)
    elif kind == 2:
        header[0:100] = draw.choice(NAMES).ljust(100, b"\0")
    else:
        start = draw.randrange(BLOCK)
        header[start : start + 4] = draw.randbytes(len(header[start : start + 4]))
    seal(header)
    tar[at : at + BLOCK] = header


def _cut(tar: bytearray, draw: random.Random) -> None:
    del tar[draw.randrange(len(tar) + 1) :]


def _drop(tar: bytearray, draw: random.Random) -> None:
    start = draw.randrange(0, len(tar) + 1, BLOCK)
    del tar[start : start + BLOCK * draw.randint(1, 4)]


def _repeat(tar: bytearray, draw: random.Random) -> None:
    start = draw.randrange(0, len(tar) + 1, BLOCK)
    tar[start:start] = tar[start : start + BLOCK * draw.randint(1, 4)]


def _blank(tar: bytearray, draw: random.Random) -> None:
    start = draw.randrange(0, len(tar) + 1, BLOCK)
    tar[start : start + BLOCK] = bytes(len(tar[start : start + BLOCK]))


def _flip(tar: bytearray, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 20) if tar else 0):
        tar[draw.randrange(len(tar))] ^= 1 << draw.randrange(8)


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    *[_change_header] * 5,
    *(_cut, _drop, _repeat, _blank, _flip),
]


def mutate(tar: bytes, seed: int) -> bytes:
    """Return the tar with one to three mutations that follow from the seed."""
    draw, mutant = random.Random(seed), bytearray(tar)
    for _ in range(draw.randint(1, 3)):
        draw.choice(MUTATIONS)(mutant, draw)
    return bytes(mutant)
