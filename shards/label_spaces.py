"""The table of the label spaces that published ImageNet-21K networks have; timm's package data holds their wnids.

All are of WordNet 3.0, so a class has the same wnid in each of them. No space has a background class.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class PublishedSpace(NamedTuple):
    """A published label space: its size, and timm's list of its wnids in the order of the outputs.

    is_pruned: whether it leaves out the rare classes of a release; `preprocess --classes` takes these by name.
    """

    num_classes: int
    file: str
    is_pruned: bool = False


LABEL_SPACES = {
    "in1k": PublishedSpace(1_000, "imagenet_synsets.txt"),
    "winter21p": PublishedSpace(10_450, "imagenet21k_miil_w21_synsets.txt", is_pruned=True),  # of the 2021 release
    "fall11p": PublishedSpace(11_221, "imagenet21k_miil_synsets.txt", is_pruned=True),  # of the 2011 release
    "in12k": PublishedSpace(11_821, "imagenet12k_synsets.txt", is_pruned=True),  # timm's ImageNet-12K
    "fall11": PublishedSpace(21_841, "imagenet22k_synsets.txt"),
    # Begins with ImageNet-1K's classes, and adds n04399382.
    "fall11-ms": PublishedSpace(21_842, "imagenet22k_ms_synsets.txt"),
    # Adds n03931044 and n09859684, classes of other releases.
    "fall11-goog": PublishedSpace(21_843, "imagenet21k_goog_synsets.txt"),
}
PRUNED_SPACES = sorted(name for name, space in LABEL_SPACES.items() if space.is_pruned)


def label_space_wnids(name: str) -> list[str]:
    """Return the wnids of a label space in the order of its outputs.

    Timm is not imported, as that takes seconds. Raises ValueError if the installed timm lacks the list.

    >>> len(label_space_wnids("fall11p"))
    11221
    """
    file = LABEL_SPACES[name].file
    spec = find_spec("timm")
    for folder in (spec.submodule_search_locations if spec else None) or []:
        path = Path(folder) / "data" / "_info" / file
        if path.is_file():
            return path.read_text(encoding="utf-8").split()
    raise ValueError(f"the installed timm lacks its list {file}; install timm 1.0.15 or later")
