"""Nearest neighbours: beside a loop over rows."""

from __future__ import annotations

import math
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from in21k.shards.tree import SemanticTree
from in21k.training.features import feature_file, neighbours
from in21k.training.features.feature_file import FeatureFile
from in21k.training.features.knn import default_ks, knn
from in21k.training.features.neighbours import nearest, unit_rows
from in21k.training.features.retrieve import retrieve

from .features_at_hand import blobs, write

knn_module = import_module("in21k.training.features.knn")  # the package has the function by this name

KS = (1, 3, 10, 40)


def by_a_loop(train: Any, train_labels: Any, test: Any, k: int, temperature: float) -> list[dict[int, float]]:
    """Per test row the votes of each class that has any, as Wu et al. say it."""
    items: list[dict[int, float]] = []
    for row in test:
        cosines = [(float(row @ item / np.linalg.norm(row) / np.linalg.norm(item)), i) for i, item in enumerate(train)]
        votes: dict[int, float] = defaultdict(float)
        for cosine, place in sorted(cosines, reverse=True)[:k]:
            votes[int(train_labels[place])] += math.exp(cosine / temperature)
        items.append(votes)
    return items


def share(hits: list[bool]) -> float:
    return 100 * sum(hits) / len(hits)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[FeatureFile, FeatureFile]:
    train = write(tmp_path / "train.parquet", *blobs(90, 6, 8, seed=1, spread=2))
    return train, write(tmp_path / "test.npy", *blobs(35, 6, 8, seed=2, spread=2), split="val")


def as_stored(file: FeatureFile) -> NDArray[np.float64]:
    return np.asarray(file.array(), np.float64)


@pytest.mark.parametrize("form", ["whole", "in small parts"])
def test_votes_are_those_of_a_loop_over_rows(
    pair: tuple[FeatureFile, FeatureFile], form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train, test = pair
    block = None
    if form == "in small parts":  # row groups, blocks of test rows, similarities and votes at a time
        monkeypatch.setattr(feature_file, "GROUP_BYTES", 7 * 16)
        monkeypatch.setattr(neighbours, "SIMILARITIES", 30)
        monkeypatch.setattr(knn_module, "VOTES", 1500)
        train = write(tmp_path / "parts.parquet", *blobs(90, 6, 8, seed=1, spread=2))
        block = 11
    result = knn(train, test, ks=KS, block_rows=block)
    assert [row["k"] for row in result["results"]] == list(KS)
    assert (result["num_train"], result["num_test"], result["num_classes"]) == (90, 35, 6)
    labels = test.classes[1]
    for row in result["results"]:
        votes = by_a_loop(as_stored(train), train.classes[1], as_stored(test), row["k"], 0.07)
        ranked = [sorted(vote, key=lambda label: -vote[label]) for vote in votes]
        assert row["top1"] == pytest.approx(share([r[0] == y for r, y in zip(ranked, labels, strict=True)]))
        assert row["top5"] == pytest.approx(share([y in r[:5] for r, y in zip(ranked, labels, strict=True)]))
    assert 30 < result["results"][2]["top1"] < 100


def test_a_vote_counts_for_the_ancestors_of_its_class_in_the_semantic_top1(
    pair: tuple[FeatureFile, FeatureFile],
) -> None:
    train, test = pair
    # n0 > (n1 > n2, n3), n4 > n5: every level is a hierarchy but the last, of n2 alone.
    tree = SemanticTree.from_parents([f"n{i}" for i in range(6)], list("abcdef"), [-1, 0, 1, 0, -1, 4])
    (row,) = knn(train, test, ks=[10], tree=tree)["results"]
    right = valid = 0
    votes = by_a_loop(as_stored(train), train.classes[1], as_stored(test), 10, 0.07)
    for vote, label in zip(votes, test.classes[1], strict=True):
        for level in (0, 1):
            lifted: dict[int, float] = defaultdict(float)
            for voted, weight in vote.items():
                if tree.levels[voted] >= level:
                    lifted[tree.paths[voted][-1 - level]] += weight
            if tree.levels[label] >= level:
                valid += 1
                right += bool(lifted) and max(lifted, key=lambda c: lifted[c]) == tree.paths[label][-1 - level]
    assert row["semantic_top1"] == pytest.approx(100 * right / valid)


def test_nothing_voted_for_is_no_hit(tmp_path: Path) -> None:
    train = write(tmp_path / "train.parquet", np.eye(4, dtype=np.float32), np.array([1, 1, 1, 1]))
    test = write(tmp_path / "test.parquet", np.eye(4, dtype=np.float32), np.array([0, 1, 2, 3]), split="val")
    (row,) = knn(train, test, ks=[1])["results"]  # four classes, so that all of them are among the first five
    assert (row["top1"], row["top5"]) == (25, 25)


def test_a_level_where_nobody_votes_is_no_hit(tmp_path: Path) -> None:
    # n0 > n2, n1 > n3: of the second level's classes no neighbour is any, so the first of them is not an answer either.
    tree = SemanticTree.from_parents([f"n{i}" for i in range(4)], list("abcd"), [-1, -1, 0, 1])
    train = write(tmp_path / "train.parquet", np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1]))
    test = write(tmp_path / "test.parquet", np.eye(4, dtype=np.float32), np.array([2, 3, 2, 3]), split="val")
    (row,) = knn(train, test, ks=[1], tree=tree)["results"]
    assert row["semantic_top1"] == 50


@pytest.mark.parametrize("temperature", [1e-2, 1e-4, 1e-30, 5e-324])
def test_the_colder_the_more_the_nearest_alone_decides(
    pair: tuple[FeatureFile, FeatureFile], temperature: float
) -> None:
    train, test = pair
    tree = SemanticTree.from_parents([f"n{i}" for i in range(6)], list("abcdef"), [-1, 0, 1, 0, -1, 4])
    alone, cold = knn(train, test, ks=[1, 8], temperature=temperature, tree=tree)["results"]
    assert cold["top1"] == alone["top1"]
    assert cold["semantic_top1"] >= alone["semantic_top1"]  # whose one neighbour may lie on no level of the image's
    cosines = unit_rows(test.array(), torch.device("cpu")) @ unit_rows(train.array(), torch.device("cpu")).T
    hits = [
        label in list(dict.fromkeys(train.classes[1][row.argsort(descending=True)[:8]].tolist()))[:5]
        for row, label in zip(cosines, test.classes[1].tolist(), strict=True)
    ]
    assert cold["top5"] == pytest.approx(share(hits))
    assert alone["top5"] < cold["top5"]


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, pair: tuple[FeatureFile, FeatureFile]) -> None:
    train, test = pair
    other = write(tmp_path / "other.parquet", *blobs(9, 3, 8), split="val", layer="layer3")
    with pytest.raises(ValueError, match=r"two kinds \(layer 'pre-logits' and 'layer3'\)"):
        knn(train, other, ks=[1])
    with pytest.raises(ValueError, match="hold the same images"):
        knn(train, train, ks=[1])
    for k in (91, 0, -3, 10**30):
        with pytest.raises(ValueError, match=f"k is 1, {k}; wanted 1 to 90"):
            knn(train, test, ks=[1, k])
    for temperature in (0, -0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"temperature is {temperature}; wanted a number above 0"):
            knn(train, test, ks=[1], temperature=temperature)
    assert default_ks(90) == [10, 20]
    assert default_ks(4) == [4]
    assert default_ks(10_000) == [10, 20, 100, 200]


def test_nearest_rows_are_those_of_a_full_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "SIMILARITIES", 9)
    rows = np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32)
    queries = unit_rows(np.random.default_rng(1).standard_normal((7, 5)), torch.device("cpu"))
    actual = nearest(queries, [rows[:4], rows[4:4], rows[4:31], rows[31:]], 6)
    cosines = queries.numpy() @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    assert np.array_equal(actual.rows.numpy(), np.argsort(-cosines, axis=1)[:, :6])
    assert np.allclose(actual.similarity.numpy(), -np.sort(-cosines, axis=1)[:, :6], atol=1e-6)
    assert nearest(queries, [rows[:3]], 6).rows.shape == (7, 3)


def test_an_image_is_no_answer_to_itself(tmp_path: Path) -> None:
    features, labels = blobs(20, 4, 6)
    features[7] = 3 * features[2]  # as near as can be
    file = write(tmp_path / "out.parquet", features, labels, dtype="float32")
    own, outside = retrieve(file, [features[2], features[2]], 3, own_rows=[2, None])
    assert own[0] == {"key": "n1_7", "wnid": "n1", "similarity": pytest.approx(1)}
    assert "n0_2" not in [item["key"] for item in own]
    assert {item["key"] for item in outside[:2]} == {"n0_2", "n1_7"}
    assert [item["key"] for item in outside if item["key"] != "n0_2"] == [item["key"] for item in own[:2]]
    assert len(own) == len(outside) == 3
    with pytest.raises(ValueError, match="has 19 images to find; 20 were asked for"):
        retrieve(file, [features[2]], 20, own_rows=[2])
    with pytest.raises(ValueError, match="has 6 features an image"):
        retrieve(file, [features[2][:5]], 2)
