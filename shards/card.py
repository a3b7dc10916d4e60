"""The data-set card that lies in a shard set as README.md."""

from __future__ import annotations

from typing import Any

from .members import describe_members
from .tree import SemanticTree

_CARD = """\
---
task_categories: [image-classification]
configs:
- config_name: default
  data_files:
{data_files}
---
# Images in shards, in the manner of ImageNet-21K

{num_classes:,} classes of `{source}`, made with [in21k](https://pypi.org/project/in21k/) as WebDataset shards.

| split | samples | shards | bytes of images |
|---|---|---|---|
{splits}

Each sample is {members}; a key begins with the class's wnid. `classes.parquet`
lists the classes, `manifest.parquet` every image with its origin and checksum, `tree.json` the semantic tree
({num_levels} levels; classes per level {levels}).

## Made with

{settings}

## Terms

Images of an ImageNet archive: ImageNet does not own their copyright; access is given to researchers for non-commercial
research and educational use, under the terms of access at <https://image-net.org/download>. Who passes these shards on
passes those terms on with them. Images of another source keep the terms of that source.

Class names, definitions and the tree come from WordNet 3.0, Copyright 2006 by Princeton University. All rights
reserved. The WordNet licence allows use, copying, modification and distribution for any purpose and without fee, with
its notice kept: <https://wordnet.princeton.edu/license-and-commercial-use>.
"""


def render_card(info: dict[str, Any], tree: SemanticTree) -> str:
    """Return the card's Markdown for a shard set's `dataset.json` content."""
    counts: dict[str, dict[str, int]] = info["counts"]["splits"]
    return _CARD.format(
        data_files="\n".join(f"  - split: {split}\n    path: {split}/*.tar" for split in counts),
        num_classes=info["counts"]["num_classes"],
        source=info["images"]["source"],
        splits="\n".join(
            f"| {split} | {count['num_samples']:,} | {len(info['shards'][split]):,} | {count['num_bytes']:,} |"
            for split, count in counts.items()
        ),
        members=describe_members(),
        num_levels=len(tree.classes_by_level),
        levels=", ".join(str(len(classes)) for classes in tree.classes_by_level),
        settings="\n".join(f"- {key}: {value}" for key, value in info["images"].items() if key != "source"),
    )
