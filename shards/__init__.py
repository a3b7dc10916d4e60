"""What a sample, a shard, an index, a manifest, a class table and a semantic tree are: reading, writing, verifying."""

from .dataset import PreparedSet, ShardSet, open_dataset
from .tree import SemanticTree

__all__ = ["PreparedSet", "SemanticTree", "ShardSet", "open_dataset"]
