"""Recall and mean average precision of retrieval: beside a loop over pairs of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from in21k.shards.tree import SemanticTree
from in21k.training.features import feature_file, neighbours
from in21k.training.features.feature_file import FeatureFile
from in21k.training.features.retrieval_metrics import evaluate_retrieval

from .features_at_hand import blobs, write

# n0 and n1 are n4's children, n2 is n5's; n3 lies beside n4 and n5.
TREE = SemanticTree.from_parents([f"n{i}" for i in range(6)], [f"name {i}" for i in range(6)], [4, 4, 5, -1, -1, -1])


def by_a_loop(features: NDArray[Any], groups: list[int | None], k: int) -> dict[str, Any]:
    """Rank the other images of each image one by one, and count as the papers say; a group of None is not a query."""
    recalls: dict[int, list[bool]] = {1: [], 5: [], 10: []}
    averages: list[float] = []
    for query, group in enumerate(groups):
        others = [row for row in range(len(groups)) if row != query]
        num_hits = sum(groups[row] == group for row in others)
        if group is None or not num_hits:
            continue
        cosines = {
            row: float(
                features[query] @ features[row] / np.linalg.norm(features[query]) / np.linalg.norm(features[row])
            )
            for row in others
        }
        hits = [groups[row] == group for row in sorted(others, key=lambda row: -cosines[row])]
        for count, recall in recalls.items():
            recall.append(any(hits[:count]))
        precisions = [sum(hits[:place]) / place for place in range(1, k + 1) if place <= len(hits) and hits[place - 1]]
        averages.append(sum(precisions) / min(k, num_hits))
    names = {f"recall_at_{count}": 100 * sum(recall) / len(recall) for count, recall in recalls.items()}
    return {**names, "map_at_k": 100 * sum(averages) / len(averages), "num_queries": len(averages)}


def as_stored(file: FeatureFile) -> NDArray[np.float64]:
    return np.asarray(file.array(), np.float64)


@pytest.mark.parametrize("k", [1, 4, 10, 60])
@pytest.mark.parametrize("form", ["whole", "in small parts"])
def test_recall_and_precision_are_those_of_a_loop(
    tmp_path: Path, form: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = None
    if form == "in small parts":
        monkeypatch.setattr(feature_file, "GROUP_BYTES", 7 * 16)
        monkeypatch.setattr(neighbours, "SIMILARITIES", 30)
        block = 11
    features, labels = blobs(48, 4, 8, seed=3, spread=2.5)
    file = write(tmp_path / "features.parquet", features, labels)
    result = evaluate_retrieval(file, k=k, tree=TREE, block_rows=block)
    expected = by_a_loop(as_stored(file), labels.tolist(), k)
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert 0 < result["recall_at_1"] < 100
    assert (result["num_images"], result["num_features"], result["k"], result["num_classes"]) == (48, 8, k, 4)
    top = [[4, 4, 5, 3][label] for label in labels]
    low = [label if label < 3 else None for label in labels.tolist()]  # n3 reaches level 0 alone
    for row, level, groups, num_classes in zip(result["per_level"], [0, 1], [top, low], [3, 3], strict=True):
        expected = by_a_loop(as_stored(file), groups, k)
        assert {name: row[name] for name in expected} == pytest.approx(expected)
        assert (row["level"], row["num_classes"]) == (level, num_classes)
    assert "per_level" not in (plain := evaluate_retrieval(file, k=k))
    assert plain["map_at_k"] == pytest.approx(result["map_at_k"])


def test_a_class_of_one_image_is_no_query_and_an_image_does_not_find_itself(tmp_path: Path) -> None:
    features = np.array([[1, 0], [1, 0.1], [0, 1], [-1, 0]], np.float32)
    file = write(tmp_path / "features.npy", features, np.array([0, 1, 1, 2]))
    result = evaluate_retrieval(file, k=2)
    # Of n1_1 the nearest are n0_0 and n1_2, of n1_2 they are n1_1 and n0_0.
    assert (result["num_queries"], result["num_classes"]) == (2, 3)
    assert (result["recall_at_1"], result["recall_at_5"], result["map_at_k"]) == (50, 100, 75)


def test_equal_images_find_each_other(tmp_path: Path) -> None:
    file = write(tmp_path / "features.npy", np.ones((30, 4), np.float32), np.zeros(30, np.int64))
    result = evaluate_retrieval(file, k=3)
    assert [result[name] for name in ("recall_at_1", "recall_at_10", "map_at_k")] == [100, 100, 100]
    one = write(tmp_path / "other.npy", np.eye(3, dtype=np.float32), np.array([0, 1, 2]))
    assert evaluate_retrieval(one)["map_at_k"] is None  # no image has another of its class


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "one.npy", np.ones((1, 4), np.float32), np.array([0]))
    with pytest.raises(ValueError, match=r"one\.npy: has 1 images; wanted two or more"):
        evaluate_retrieval(file)
    file = write(tmp_path / "two.npy", np.ones((2, 4), np.float32), np.array([0, 9]))
    with pytest.raises(ValueError, match="k is 0; wanted 1 to 1,000"):
        evaluate_retrieval(file, k=0)
    with pytest.raises(ValueError, match="has images of 1 classes that are not among the 6"):
        evaluate_retrieval(file, tree=TREE)
