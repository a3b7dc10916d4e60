"""Raw archives to a prepared data set: scan, prune, split, resize; WordNet to the semantic tree."""

from .classes.taxonomy import build_tree

__all__ = ["build_tree"]
