"""What lies below what, by WordNet and by the parents that a user gives; and the tree over a set of classes."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import NamedTuple

from ...shards.tree import SemanticTree
from ..sources.class_names import class_id, class_name
from .wordnet import WordNet, hypernym_choice, parent_of

log = logging.getLogger(__name__)

NUM_NAMED = 5
_HEADER = ({"child", "class", "id", "wnid", "synset"}, {"parent"}, {"name"})  # of each column, in any case


class CycleError(ValueError):
    """Parents that lead back to where they began; `nodes` names them, the first once more as the last."""

    def __init__(self, nodes: Sequence[str]) -> None:
        super().__init__(nodes)
        self.nodes = nodes

    def __str__(self) -> str:
        return f"a cycle of parents: {' -> '.join(self.nodes)}; wanted every walk of parents to end at a top"


class Taxonomy:
    """WordNet and a user's own parents: one parent per class or synset, a name, a definition.

    wordnet: the synsets.
    parents: per child its parent, None for a root; wins over WordNet. A parent may be a synset, another child, or
             a name that stands nowhere else, which is then a root.
    names:   readable names; win over WordNet's.

    Raises CycleError (a ValueError) where the parents run in a circle, be it through WordNet.

    >>> taxonomy = Taxonomy(WordNet.packaged(), {"my-swan": "n01858441"})
    >>> taxonomy.parent("my-swan"), taxonomy.name("n01858441"), taxonomy.is_below("my-swan", "n01503061")
    ('n01858441', 'swan', True)
    """

    def __init__(self, wordnet: WordNet, parents: Mapping[str, str | None] = {}, names: Mapping[str, str] = {}) -> None:
        self._wordnet = wordnet
        self._own_parents = dict(parents)
        self._own_names = dict(names)
        self._other_names: dict[str, str] = {}
        self._own = {node for row in self._own_parents.items() for node in row if node is not None}
        self._choice = hypernym_choice()
        self._parents = dict(parents)  # grows by what WordNet was asked for
        self._check_cycles()

    @classmethod
    def packaged(cls) -> Taxonomy:
        """WordNet 3.0 as it travels with in21k, and nothing else."""
        return cls(WordNet.packaged())

    @classmethod
    def read(cls, wordnet: Path | None, parents: Path | None) -> Taxonomy:
        """Read a folder of WordNet files (None: the packaged WordNet) and a `parents.csv` (None: no own parents).

        The csv has rows `child,parent[,name]`, with or without such a header; an empty parent makes a root. Raises
        ValueError naming file and line for other columns, names that no class can have, a child with two parents, and
        a cycle.
        """
        nouns = WordNet.read(wordnet) if wordnet else WordNet.packaged()
        if parents is None:
            return cls(nouns)
        rows = _read_parents(parents)
        own_names = {child: row.name for child, row in rows.items() if row.name}
        try:
            taxonomy = cls(nouns, {child: row.parent for child, row in rows.items()}, own_names)
        except CycleError as error:
            line = next(rows[node].line for node in error.nodes if node in rows)
            raise ValueError(f"{parents}, line {line}: {error}") from error
        tops = dict.fromkeys(row.parent for row in rows.values() if row.parent and row.parent not in nouns)
        loose = [top for top in tops if top not in rows]
        if loose:
            log.info(
                "%s: %d parents have no row of their own, are no WordNet synset, and so have nothing above them: %s",
                parents,
                len(loose),
                _first(loose),
            )
        return taxonomy

    def with_names(self, names: Mapping[str, str]) -> Taxonomy:
        """Return this taxonomy with readable names for what it has no name for; its version stays."""
        named = copy(self)
        named._other_names = dict(names)
        return named

    @property
    def version(self) -> dict[str, str | None]:
        """JSON values that tell this taxonomy from others; own parents by their meaning, not by their file's bytes."""
        meaning = json.dumps([self._own_parents, self._own_names], sort_keys=True)
        own = hashlib.sha256(meaning.encode()).hexdigest()[:16]
        return {"wordnet": self._wordnet.version, "parents": own if self._own_parents or self._own_names else None}

    def __contains__(self, wnid: str) -> bool:
        return wnid in self._own or wnid in self._wordnet

    def parent(self, wnid: str) -> str | None:
        """Return what the class or synset lies directly below; None at the top, and for what nobody knows."""
        if wnid not in self._parents:
            known = wnid in self._wordnet
            self._parents[wnid] = parent_of(wnid, self._wordnet, self._choice) if known else None
        return self._parents[wnid]

    def name(self, wnid: str) -> str:
        """Return the user's name for it, else the synset's first lemma, else the name given later, else the wnid."""
        own = self._own_names.get(wnid)
        return own or (self._wordnet.name(wnid) if wnid in self._wordnet else self._other_names.get(wnid, wnid))

    def definition(self, wnid: str) -> str:
        """Return the synset's gloss; empty where it is no synset."""
        return self._wordnet.definition(wnid) if wnid in self._wordnet else ""

    def walk(self, wnid: str) -> Iterator[str]:
        """Yield the class or synset itself, its parent, and so on to the top."""
        node: str | None = wnid
        while node is not None:
            yield node
            node = self.parent(node)

    def is_below(self, wnid: str, top: str) -> bool:
        """Say whether `wnid` is `top` or lies below it."""
        return top in self.walk(wnid)

    def _check_cycles(self) -> None:
        ends: set[str] = set()  # whose walk is known to end
        for child in self._own_parents:
            walked: dict[str, None] = {}
            for node in self.walk(child):
                if node in walked:
                    nodes = list(walked)
                    raise CycleError([*nodes[nodes.index(node) :], node])
                if node in ends:
                    break
                walked[node] = None
            ends.update(walked)


class _ParentRow(NamedTuple):
    line: int
    parent: str | None
    name: str


def _read_parents(path: Path) -> dict[str, _ParentRow]:
    """Read a `parents.csv` as rows by child."""
    rows: dict[str, _ParentRow] = {}
    for line, cells in _read_cells(path):
        child, row = _parent_row(path, line, cells)
        earlier = rows.setdefault(child, row)
        if earlier[1:] != row[1:]:
            raise ValueError(
                f"{path}, line {line}: {child} has the parent {_shown(row)}, and on line {earlier.line} "
                f"{_shown(earlier)}; wanted one row a child"
            )
    if not rows:
        raise ValueError(f"{path}: holds no rows; wanted child,parent[,name], one child a line")
    return rows


def _read_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the stripped cells of each row that is neither blank nor the header."""
    # utf-8-sig: spreadsheets put a byte order mark first.
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            is_first = True
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells) and not (is_first and _is_header(path, reader.line_num, cells)):
                    yield reader.line_num, cells
                is_first = is_first and not any(cells)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is no UTF-8 text ({error.reason}); save it as UTF-8") from error
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}; wanted child,parent[,name]") from error


def _is_header(path: Path, line: int, cells: Sequence[str]) -> bool:
    """Say whether the first row is a header; raise ValueError where it has our columns in another order."""
    words = [cell.casefold() for cell in cells]
    if len(words) not in (2, 3) or not set(words) <= set().union(*_HEADER):
        return False
    if any(word not in known for word, known in zip(words, _HEADER, strict=False)):
        raise ValueError(
            f"{path}, line {line}: the columns are {','.join(cells)}; wanted child,parent[,name], in this order"
        )
    return True


def _parent_row(path: Path, line: int, cells: list[str]) -> tuple[str, _ParentRow]:
    if len(cells) not in (2, 3):
        raise ValueError(
            f"{path}, line {line}: {','.join(cells)!r} has {len(cells)} columns; wanted child,parent[,name] "
            "(a name that holds a comma stands in double quotes)"
        )
    child, parent = cells[:2]
    if not child:
        raise ValueError(f"{path}, line {line}: {','.join(cells)!r} names no child; wanted child,parent[,name]")
    wnid = class_id(child)
    name = cells[2] if len(cells) == 3 else ""
    if not name and child != wnid:
        name = class_name(child)
    return wnid, _ParentRow(line, class_id(parent) if parent else None, name)


def _shown(row: _ParentRow) -> str:
    return (row.parent or "(none)") + (f" and the name {row.name!r}" if row.name else "")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")


def build_tree(wnids: Iterable[str], taxonomy: Taxonomy | None = None) -> SemanticTree:
    """Build the semantic tree over a set of classes.

    From each class the parents are climbed to the top; ancestors that are classes too make its path. Class indices
    follow the order of `wnids`. A class that the taxonomy (default: the packaged WordNet) does not know is a top class
    named by its wnid; the log says so.

    >>> tree = build_tree(["n01503061", "n01858441", "n09450163"])
    >>> tree.names, tree.parents
    (('bird', 'swan', 'sun'), (-1, 0, -1))
    """
    wnids = list(wnids)
    taxonomy = taxonomy or Taxonomy.packaged()
    strangers = [wnid for wnid in wnids if wnid not in taxonomy]
    if strangers:
        log.warning(
            "%d classes are no WordNet synset and become top classes: %s (a file for --parents would place them)",
            len(strangers),
            _first([taxonomy.name(wnid) for wnid in strangers]),
        )
    return SemanticTree.from_parents(wnids, [taxonomy.name(wnid) for wnid in wnids], _class_parents(wnids, taxonomy))


def _class_parents(wnids: Sequence[str], taxonomy: Taxonomy) -> list[int]:
    """Return per class the index of the nearest class above it, -1 where there is none."""
    nearest = {wnid: index for index, wnid in enumerate(wnids)}  # per node the class that it is, or the nearest above
    parents: list[int] = []
    for wnid in wnids:
        passed: list[str] = []
        node = taxonomy.parent(wnid)
        while node is not None and node not in nearest:
            passed.append(node)
            node = taxonomy.parent(node)
        parents.append(-1 if node is None else nearest[node])
        nearest.update(dict.fromkeys(passed, parents[-1]))
    return parents
