"""A semantic tree that the user gives: it fixes classes and parents, and WordNet supplies names and definitions."""

from __future__ import annotations

import logging
from pathlib import Path

from ...shards.tree import SemanticTree
from ...shards.tree_view import load_tree
from .taxonomy import Taxonomy, build_tree
from .wordnet import WordNet

log = logging.getLogger(__name__)

NUM_NAMED = 5


def read_given_tree(path: Path, wordnet: Path | None = None) -> tuple[SemanticTree, Taxonomy]:
    """Read a tree, and return it with a taxonomy in which every class has the parent that the tree gives it.

    path:    what `load_tree` takes: a tree.json, a `.pth` of the reference code, a folder that has a tree.
    wordnet: a folder of WordNet files; None: the packaged WordNet.

    The log says where the tree differs from ours. Raises ValueError for anything else than a tree.
    """
    tree = load_tree(path)
    nouns = WordNet.read(wordnet) if wordnet else WordNet.packaged()
    names = {wnid: name for wnid, name in zip(tree.wnids, tree.names, strict=True) if wnid not in nouns}
    images = tree.wnids[: tree.num_image_classes]
    if list(images) != sorted(images):
        log.warning("%s: its classes are not in the order of their wnids, which class indices follow here", path)
    for difference in differences_from_ours(tree):
        log.info("%s: %s", path, difference)
    return tree, Taxonomy(nouns, _parents(tree), names)


def differences_from_ours(tree: SemanticTree) -> list[str]:
    """Say where a tree differs from the one that WordNet gives its classes, one line for each kind of difference."""
    nouns = Taxonomy.packaged()
    known = [wnid for wnid in tree.wnids if wnid in nouns]
    ours = build_tree(known)
    own, other = _parents(ours), _parents(tree)
    moved = [wnid for wnid in known if own[wnid] != other[wnid]]
    named = dict(zip(tree.wnids, tree.names, strict=True))
    renamed = [wnid for wnid, name in zip(ours.wnids, ours.names, strict=True) if named[wnid] != name]
    unknown = [wnid for wnid in tree.wnids if wnid not in nouns]
    lines = {
        "classes are not in WordNet": unknown,
        "classes have another parent than in our tree": [
            f"{wnid} ({nouns.name(wnid)}: {other[wnid] or 'none'}, ours {own[wnid] or 'none'})" for wnid in moved
        ],
        "classes have another name": [f"{wnid} ({named[wnid]}, ours {nouns.name(wnid)})" for wnid in renamed],
    }
    lists = [
        f"{len(items):,} of {len(tree):,} {what}: {', '.join(items[:NUM_NAMED])}"
        + (", ..." if len(items) > NUM_NAMED else "")
        for what, items in lines.items()
        if items
    ]
    return lists or [f"equals our tree over its {len(tree):,} classes"]


def _parents(tree: SemanticTree) -> dict[str, str | None]:
    """Return the parent of each class by wnid; None for a root."""
    return {
        wnid: None if parent < 0 else tree.wnids[parent] for wnid, parent in zip(tree.wnids, tree.parents, strict=True)
    }
