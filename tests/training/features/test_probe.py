"""Probes: beside numpy's solve, and what they may and may not look at."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from in21k.shards.tree import SemanticTree
from in21k.training.features import linear_probe, probe_data, ridge
from in21k.training.features.feature_file import FeatureFile
from in21k.training.features.linear_probe import LinearProbe
from in21k.training.features.probe import probe
from in21k.training.features.probe_data import draw
from in21k.training.features.ridge import Ridge, moments
from in21k.training.losses.levels import Levels

from .features_at_hand import blobs, write

CPU = torch.device("cpu")


@pytest.mark.parametrize(("num_rows", "width"), [(60, 7), (9, 30)], ids=["more rows", "more features"])
@pytest.mark.parametrize("lambda_", [2.0**-10, 1.0, 2.0**20])
def test_ridge_is_what_numpy_solves(num_rows: int, width: int, lambda_: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "CHUNK_ROWS", 8)
    features, labels = blobs(num_rows + 5, 3, width, spread=2)
    features = features * 3 + 7
    rows = np.arange(num_rows) + 2
    fitted = Ridge(features, rows, labels, 4, CPU)  # a class without rows is one that is never answered
    x = features[rows].astype(np.float64)
    x = (x - x.mean(0)) / (x.std(0) + 1e-5)
    x = np.column_stack([x, np.full(num_rows, 100.0)])
    y = 2.0 * (labels[rows][:, None] == np.arange(4)) - 1
    solved = np.linalg.solve(x.T @ x + lambda_ * np.eye(width + 1), x.T @ y)
    assert np.allclose(fitted.inputs(features[rows]).numpy(), x, atol=1e-4)
    assert np.allclose(fitted.weights(lambda_).numpy(), solved, rtol=1e-3, atol=1e-5 * np.abs(solved).max() + 1e-7)


def test_one_step_of_the_linear_probe_goes_down_autograds_gradient() -> None:
    features, labels = blobs(40, 3, 5)
    rows = np.arange(4, 40)
    mean, std = moments(features, rows, CPU)
    assert torch.allclose(mean, torch.from_numpy(features[rows].mean(0)), atol=1e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_probe, "MIN_STEPS", 1)
        fitted = LinearProbe(
            features, rows, labels, 3, mean=mean, std=std, learning_rates=(0.5, 2.0), epochs=1
        )  # one batch of all rows
    weights = torch.zeros(6, 3, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(fitted.inputs(features[rows]) @ weights, torch.from_numpy(labels[rows]))
    (gradient,) = torch.autograd.grad(loss, weights)
    assert torch.allclose(fitted.weights, torch.stack([-0.5 * gradient, -2 * gradient]), atol=1e-6)


def test_the_linear_probe_reaches_the_minimum_of_its_loss() -> None:
    features, labels = blobs(300, 3, 4, spread=2)
    rows = np.arange(300)
    mean, std = moments(features, rows, CPU)
    fitted = LinearProbe(features, rows, labels, 3, mean=mean, std=std, learning_rates=(10.0,))
    x, y = fitted.inputs(features), torch.from_numpy(labels)
    weights = fitted.weights[0].clone().requires_grad_()
    reached = torch.nn.functional.cross_entropy(x @ weights, y)
    solver = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure() -> Any:
        solver.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weights, y)
        loss.backward()
        return loss

    solver.step(closure)
    assert reached.item() == pytest.approx(closure().item(), abs=2e-3)


@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=8), seed=st.integers(0, 9), shots=st.integers(1, 12))
def test_draws_hold_a_tenth_back_and_share_no_row(counts: list[int], seed: int, shots: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    few, more, rest = (draw(labels, item, seed) for item in (shots, shots + 2, None))
    for label, count in enumerate(counts):
        held = int((labels[few.held_back] == label).sum())
        assert held == (0 if count < 2 else max(1, round(count / 10)))
        assert (labels[few.shots] == label).sum() == min(shots, count - held)
        assert (labels[rest.shots] == label).sum() == count - held
    assert not set(few.held_back) & set(rest.shots)
    assert set(few.shots) <= set(more.shots) <= set(rest.shots)
    assert np.array_equal(few.held_back, rest.held_back)
    assert np.array_equal(draw(labels, shots, seed).shots, few.shots)


def test_of_many_classes_fewer_are_held_back_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_data, "MAX_ROWS", 21)
    labels = np.repeat(np.arange(6), [1, 2, 40, 40, 40, 400])
    assert np.bincount(labels[draw(labels, None, 0).held_back]).tolist() == [0, 1, 4, 4, 4, 4]
    monkeypatch.setattr(probe_data, "MAX_ROWS", 2)
    assert np.bincount(labels[draw(labels, None, 0).held_back]).tolist() == [0, 1, 1, 1, 1, 1]


def test_at_most_fifty_of_a_class_are_held_back_and_seeds_draw_others() -> None:
    labels = np.zeros(2000, np.int64)
    assert len(draw(labels, 5, 0).held_back) == 50
    assert draw(labels, 5, 0).shots.tolist() != draw(labels, 5, 1).shots.tolist()


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FeatureFile, FeatureFile]:
    monkeypatch.setattr(linear_probe, "MIN_STEPS", 60)
    train = write(tmp_path / "train.parquet", *blobs(240, 6, 12, seed=1, spread=2.5))
    return train, write(tmp_path / "test.npy", *blobs(60, 6, 12, seed=2, spread=2.5), split="val")


def test_a_probe_says_what_it_chose_and_what_that_reaches(pair: tuple[FeatureFile, FeatureFile]) -> None:
    tree = SemanticTree.from_parents([f"n{i}" for i in range(6)], list("abcdef"), [-1, 0, 1, 0, -1, 4])
    shares: list[float] = []
    result = probe(
        *pair, shots=[1, 5], seeds=[0, 1], tree=tree, on_progress=lambda progress: shares.append(progress.fraction)
    )
    assert (result["num_train"], result["num_test"], result["num_classes"], result["num_features"]) == (240, 60, 6, 12)
    one, five = result["few_shot"]
    assert (one["shots"], one["num_train"], five["num_train"]) == (1, 6, 30)
    assert one["top1"] < five["top1"] < result["ridge"]["top1"]
    for row in result["few_shot"]:
        first, second = (seed["top1"] for seed in row["seeds"])
        assert row["top1"] == pytest.approx((first + second) / 2)
        assert row["top1_deviation"] == pytest.approx(abs(first - second) / 2**0.5)
    for item in (*one["seeds"], result["ridge"], result["linear"]):
        assert item["top1"] <= item["top5"] <= 100
        assert item["semantic_top1"] > item["top1"] - 20
    assert result["linear"]["lr"] in linear_probe.LEARNING_RATES
    assert result["ridge"]["lambda"] in ridge.LAMBDAS
    assert abs(result["linear"]["top1"] - result["ridge"]["top1"]) < 15
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert probe(*pair, shots=[1, 5], seeds=[0, 1], tree=tree) == result


def test_the_answer_of_a_level_is_the_ancestor_of_the_class_that_scores_best_there() -> None:
    tree = SemanticTree.from_parents([f"n{i}" for i in range(6)], list("abcdef"), [-1, 0, 1, 0, -1, 4])
    scores = torch.tensor([[0.0, 0.1, 0.9, 0.5, 0.6, 0.7], [0.8, 0.1, 0.2, 0.3, 0.6, 0.7]])
    lifted = import_module("in21k.training.features.probe")._lifted(scores, Levels(tree).ancestors)
    # n2, the best of all, lies below n1 and n0; then n0 has no answer for level 1, where n5 is the best.
    assert [row.nonzero().flatten().tolist() for row in lifted] == [[0, 1], [0, 5]]


def test_settings_are_chosen_without_the_test_rows(
    pair: tuple[FeatureFile, FeatureFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = pair
    features, labels = blobs(60, 6, 12, seed=3)
    wrong = write(tmp_path / "wrong.parquet", features, np.sort((labels + 1) % 6), split="val")  # all labels are wrong
    looks: list[int] = []
    chunks = FeatureFile.chunks

    def watched(self: FeatureFile) -> Any:
        looks.extend([1] if self.provenance["split"] == "val" else [])
        return chunks(self)

    monkeypatch.setattr(FeatureFile, "chunks", watched)

    def chosen(result: dict[str, Any]) -> list[Any]:
        few = [(seed["lambda"], seed["held_back_top1"]) for row in result["few_shot"] for seed in row["seeds"]]
        return [*few, result["ridge"]["lambda"], result["linear"]["lr"], result["linear"]["held_back_top1"]]

    right = probe(train, test, shots=[5], seeds=[0, 1])
    assert len(looks) == 4  # one for each number that comes out: two seeds, ridge, linear
    assert chosen(probe(train, wrong, shots=[5], seeds=[0, 1])) == chosen(right)


@pytest.mark.parametrize("together", [1, 3, 16])
def test_candidates_are_judged_as_one_by_one_and_rows_read_once_for_many(
    pair: tuple[FeatureFile, FeatureFile], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = pair
    module = import_module("in21k.training.features.probe")
    monkeypatch.setattr(module, "LOGITS", 5 * (6 + 12))  # five rows at a time
    monkeypatch.setattr(module, "CANDIDATE_BYTES", together * 4 * 6 * 13)
    work = module._Probe(train, test, [f"n{i}" for i in range(6)], None, CPU)
    drawn = draw(work.labels, 2, 0)
    fitted = Ridge(train.array(), drawn.shots, work.labels, 6, CPU)
    weights = [fitted.weights(lambda_) for lambda_ in ridge.LAMBDAS]
    slowly: list[float] = []
    for weight in weights:
        answers = (fitted.inputs(train.array()[drawn.held_back]) @ weight).argmax(dim=1).numpy()
        slowly.append(100 * int((answers == work.labels[drawn.held_back]).sum()) / len(drawn.held_back))
    assert len(set(slowly)) > 1
    read: list[int] = []
    actual = work._held_back_top1(
        lambda rows: (read.append(len(rows)), fitted.inputs(rows))[1], weights, drawn.held_back
    )
    assert actual == slowly
    assert sum(read) == len(drawn.held_back) * -(-len(weights) // together)
    assert max(read) == 5


def test_what_cannot_be_probed_is_refused(pair: tuple[FeatureFile, FeatureFile], tmp_path: Path) -> None:
    train, test = pair
    single = write(tmp_path / "single.parquet", *blobs(6, 6, 12))
    with pytest.raises(ValueError, match="no class has two images"):
        probe(single, test)
    rates = [{"learning_rates": [1.0, wrong]} for wrong in (0.0, -1.0, math.nan, math.inf)]
    for wrong in ({"shots": [0]}, {"seeds": []}, *rates, {"learning_rates": []}, {"epochs": 0}):
        with pytest.raises(ValueError, match="wanted"):
            probe(train, test, **wrong)
    tree = SemanticTree.from_parents(["n0", "n1"], ["a", "b"], [-1, -1])
    with pytest.raises(ValueError, match="images of 4 classes that are not among the 2"):
        probe(train, test, tree=tree)
    assert "linear" not in probe(train, test, shots=[], linear=False)


def test_shots_are_those_that_half_of_the_classes_have(
    tmp_path: Path, pair: tuple[FeatureFile, FeatureFile], caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.repeat(np.arange(4), [3, 6, 7, 40])  # of which one each is held back, and four of the last
    features = np.random.default_rng(0).standard_normal((len(labels), 12))
    train = write(tmp_path / "few.parquet", features, labels)
    with caplog.at_level("INFO"):
        actual = probe(train, pair[1], seeds=[0], ridge=False, linear=False)
    assert [row["shots"] for row in actual["few_shot"]] == [1, 5]
    assert "shots left out are 10, 25; beside what is held back its 4 classes have from 2 to 36 images" in caplog.text
    assert probe(train, pair[1], shots=[6], seeds=[0], ridge=False, linear=False)["few_shot"][0]["num_train"] == 19
    for shots in ([1, 7], [999], [10**30]):
        with pytest.raises(ValueError, match=rf"shots are {shots[-1]}; .* half of them 6 or more"):
            probe(train, pair[1], shots=shots)
