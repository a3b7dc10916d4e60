"""What a GPU computes of cached features (`pytest -m gpu`): what a CPU does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from in21k.shards.tree import SemanticTree
from in21k.training.features.knn import knn
from in21k.training.features.probe import probe

from .features_at_hand import blobs, write

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


def test_neighbours_and_probes_come_out_as_on_a_cpu(tmp_path: Path) -> None:
    pair = (
        write(tmp_path / "train.parquet", *blobs(600, 6, 32, seed=1, spread=3)),
        write(tmp_path / "test.npy", *blobs(400, 6, 32, seed=2, spread=3), split="val"),
    )
    tree = SemanticTree.from_parents([f"n{i}" for i in range(6)], list("abcdef"), [-1, 0, 1, 0, -1, 4])

    def both(device: str) -> list[dict[str, Any]]:
        words: dict[str, Any] = {"tree": tree, "device": torch.device(device)}
        neighbours = knn(*pair, ks=[1, 20], **words)["results"]
        probed = probe(*pair, shots=[5], seeds=[0], **words)
        return [*neighbours, *probed["few_shot"], probed["ridge"], probed["linear"]]

    for ours, theirs in zip(both("cuda"), both("cpu"), strict=True):
        for measure in ("top1", "top5", "semantic_top1"):
            assert ours[measure] == pytest.approx(theirs[measure], abs=1)  # four images of the 400
