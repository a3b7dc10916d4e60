"""The parents of classes, by WordNet and by a user's `parents.csv`, and the semantic tree over a set of classes."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ...shards.tree import SemanticTree
from ..sources.class_names import class_id, class_name
from .wordnet import WordNet, hypernym_choice, parent_of

log = logging.getLogger(__name__)

NUM_NAMED = 5
_HEADER = ({"child", "class", "id", "wnid", "synset"}, {"parent"}, {"name"})  # of each column, in any case


class CycleError(ValueError):
    """Parents that form a cycle; `nodes` names them, with the first again at the end."""

    def __init__(self, nodes: Sequence[str]) -> None:
        super().__init__(nodes)
        self.nodes = nodes

    def __str__(self) -> str:
        return f"a cycle of parents: {' -> '.join(self.nodes)}; wanted parents that end at a root"


class Taxonomy:
    """WordNet and a user's own parents: one parent per class or synset, a name, a definition.

    wordnet: the synsets.
    parents: per child its parent, None for a root; it takes precedence over WordNet. A parent may be a synset, another
             child, or a new name, which is then a root.
    names:   readable names; they take precedence over WordNet's.

    Raises CycleError (a ValueError) where the parents form a cycle, also through WordNet.

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
        self._parents = dict(parents)  # also caches WordNet's
        self._check_cycles()

    @classmethod
    def packaged(cls) -> Taxonomy:
        """The packaged WordNet 3.0 alone."""
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
                "%s: %d parents have no row and are not WordNet synsets; they become roots: %s",
                parents,
                len(loose),
                _first(loose),
            )
        return taxonomy

    def with_names(self, names: Mapping[str, str]) -> Taxonomy:
        """Return this taxonomy with names for classes that have none; its version stays the same."""
        named = copy(self)
        named._other_names = dict(names)
        return named

    @property
    def version(self) -> dict[str, str | None]:
        """What identifies this taxonomy, as JSON values: own parents by content, not by the file's bytes."""
        meaning = json.dumps([self._own_parents, self._own_names], sort_keys=True)
        own = hashlib.sha256(meaning.encode()).hexdigest()[:16]
        return {"wordnet": self._wordnet.version, "parents": own if self._own_parents or self._own_names else None}

    def __contains__(self, wnid: str) -> bool:
        return wnid in self._own or wnid in self._wordnet

    def parent(self, wnid: str) -> str | None:
        """Return the parent of a class or synset; None for a root, and for an unknown class."""
        if wnid not in self._parents:
            known = wnid in self._wordnet
            self._parents[wnid] = parent_of(wnid, self._wordnet, self._choice) if known else None
        return self._parents[wnid]

    def name(self, wnid: str) -> str:
        """Return the user's name, else the synset's first lemma, else the name from `with_names`, else the wnid."""
        own = self._own_names.get(wnid)
        return own or (self._wordnet.name(wnid) if wnid in self._wordnet else self._other_names.get(wnid, wnid))

    def definition(self, wnid: str) -> str:
        """Return the synset's gloss; empty for a class that is not a synset."""
        return self._wordnet.definition(wnid) if wnid in self._wordnet else ""

    def walk(self, wnid: str) -> Iterator[str]:
        """Yield the class or synset itself, its parent, and so on to the top."""
        node: str | None = wnid
        while node is not None:
            yield node
            node = self.parent(node)

    def is_below(self, wnid: str, top: str) -> bool:
        """Tell whether `wnid` is `top` or lies below it."""
        return top in self.walk(wnid)

    def _check_cycles(self) -> None:
        ends: set[str] = set()  # nodes from which the walk reaches a root
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
                f"{path}, line {line}: {child} has the parent {_describe(row)}, and on line {earlier.line} "
                f"{_describe(earlier)}; wanted one row for each child"
            )
    if not rows:
        raise ValueError(f"{path}: is empty; wanted child,parent[,name], one child a line")
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
            raise ValueError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}; wanted child,parent[,name]") from error


def _is_header(path: Path, line: int, cells: Sequence[str]) -> bool:
    """Tell whether the first row is a header; raises ValueError for the right columns in another order."""
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
            "(put a name with a comma in double quotes)"
        )
    child, parent = cells[:2]
    if not child:
        raise ValueError(f"{path}, line {line}: {','.join(cells)!r} has no child; wanted child,parent[,name]")
    wnid = class_id(child)
    name = cells[2] if len(cells) == 3 else ""
    if not name and child != wnid:
        name = class_name(child)
    return wnid, _ParentRow(line, class_id(parent) if parent else None, name)


def _describe(row: _ParentRow) -> str:
    return (row.parent or "(none)") + (f" and the name {row.name!r}" if row.name else "")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")


def build_tree(wnids: Iterable[str], taxonomy: Taxonomy | None = None, *, inner_classes: bool = False) -> SemanticTree:
    """Build the semantic tree over a set of classes.

    A class's path holds its ancestors that are classes too, from the nearest to the topmost. Class indices follow the
    order of `wnids`. A class that the taxonomy (default: the packaged WordNet) does not know becomes a root, with a
    warning.

    inner_classes: add the ancestors at which two or more branches with classes meet, as the last classes.

    >>> tree = build_tree(["n01503061", "n01858441", "n09450163"])
    >>> tree.names, tree.parents
    (('bird', 'swan', 'sun'), (-1, 0, -1))
    """
    wnids = list(wnids)
    taxonomy = taxonomy or Taxonomy.packaged()
    unknown = [wnid for wnid in wnids if wnid not in taxonomy]
    if unknown:
        log.warning(
            "%d classes are not WordNet synsets and become roots of the tree: %s (a --parents file would place them)",
            len(unknown),
            _first([taxonomy.name(wnid) for wnid in unknown]),
        )
    inner = _meeting_ancestors(wnids, taxonomy) if inner_classes else []
    wnids += inner
    names = [taxonomy.name(wnid) for wnid in wnids]
    return SemanticTree.from_parents(wnids, names, _class_parents(wnids, taxonomy), len(inner))


def _meeting_ancestors(wnids: Sequence[str], taxonomy: Taxonomy) -> list[str]:
    """Return the ancestors, not among the classes, that have classes in two or more of their branches; sorted.

    >>> _meeting_ancestors(["n01858441", "n01860187", "n02084071"], Taxonomy.packaged())  # of swans and dog: animal
    ['n00015388']
    """
    branches: defaultdict[str, set[str]] = defaultdict(set)  # per node its children on the way to a class
    for wnid in wnids:
        for child, parent in pairwise(taxonomy.walk(wnid)):
            if child in branches[parent]:
                break  # this way up was walked before
            branches[parent].add(child)
    classes = set(wnids)
    return sorted(node for node, children in branches.items() if len(children) > 1 and node not in classes)


def _class_parents(wnids: Sequence[str], taxonomy: Taxonomy) -> list[int]:
    """Return per class the index of its nearest ancestor among the classes, -1 for a root."""
    nearest = {wnid: index for index, wnid in enumerate(wnids)}  # per node its own or the nearest class
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
