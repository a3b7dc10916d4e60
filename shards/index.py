"""DALI's index of a shard (`.idx`, v1.2): per sample a line of `extension offset size name` per component."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

VERSION = "v1.2"


class IndexEntry(NamedTuple):
    """One component of a sample: where its data begins in the shard and how many bytes it has."""

    extension: str
    offset: int
    num_bytes: int
    name: str


def index_path(shard: Path) -> Path:
    """Return where the index of a shard lies: beside it, `.idx` instead of `.tar`."""
    return shard.with_suffix(".idx")


def render_index(samples: Sequence[Iterable[IndexEntry]]) -> str:
    """Return the index's text for samples, each a sequence of components in the order of the shard."""
    lines = [f"{VERSION} {len(samples)}"]
    lines += [" ".join(f"{e.extension} {e.offset} {e.num_bytes} {e.name}" for e in sample) for sample in samples]
    return "\n".join(lines) + "\n"


def read_index(path: Path) -> list[list[IndexEntry]]:
    """Read an index; raises ValueError, naming file and line, where it is not as `render_index` writes it."""
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    try:
        version, count = (lines or [""])[0].split()
        if version != VERSION or int(count) != len(lines) - 1:
            raise ValueError
    except ValueError:
        raise ValueError(f"{path}: line 1 is not '{VERSION} <number of samples>' over as many lines") from None
    samples: list[list[IndexEntry]] = []
    for number, line in enumerate(lines[1:], start=2):
        words = line.split(" ")
        try:
            samples.append(
                [
                    IndexEntry(words[i], int(words[i + 1]), int(words[i + 2]), words[i + 3])
                    for i in range(0, len(words), 4)
                ]
            )
        except (ValueError, IndexError):
            raise ValueError(f"{path}: line {number} is not 'extension offset size name' per component") from None
    return samples
