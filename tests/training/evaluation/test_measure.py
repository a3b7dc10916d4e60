"""Every metric out of what the model answered, against slow and obvious references; and the file it is kept in."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

from in21k.shards.tree import SemanticTree
from in21k.training import evaluate
from in21k.training.evaluation.answers import Answers
from in21k.training.evaluation.measure import measure, own_level_answers, path_distance, per_class, per_third
from in21k.training.evaluation.predictions import Predictions, collect, load_predictions, save_predictions
from in21k.training.metrics import TopAccuracy

from ..conftest import small_tree

measure_module = import_module("in21k.training.evaluation.measure")  # the package has the function by this name

MadeData = tuple[Tensor, Tensor]


class Echo(nn.Module):
    """Takes images that are logits already."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def made(num_images: int, seed: int = 0, sharpness: float = 3.0) -> MadeData:
    """Logits of six classes that are right now and then, and labels; no image of class 4."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (num_images,), generator=generator)
    labels[labels == 4] = 5
    logits = torch.randn(num_images, 6, generator=generator) * sharpness
    logits[torch.arange(num_images), labels] += 2
    return logits, labels


def answers(logits: Tensor, labels: Tensor, tree: SemanticTree, batch_size: int = 16) -> Predictions:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    batches = [(logits[rows], rows) for rows in order.split(batch_size)]
    return collect(Echo(), batches, labels, tree)


def random_tree(num_classes: int, generator: torch.Generator) -> SemanticTree:
    """Two top classes, and each further class below any before it."""
    parents = [-1, -1, *(int(torch.randint(index, (), generator=generator)) for index in range(2, num_classes))]
    return SemanticTree.from_parents([f"n{i}" for i in range(num_classes)], ["ä"] * num_classes, parents)


def slow_confusions(logits: Tensor, labels: Tensor, tree: SemanticTree) -> Counter[tuple[int, int]]:
    """Ask for each image alone which class of its own class's level has the largest logit."""
    pairs: Counter[tuple[int, int]] = Counter()
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        neighbours = [index for index in range(len(tree)) if len(tree.paths[index]) == len(tree.paths[label])]
        answer = max(neighbours, key=row.__getitem__)
        pairs[label, answer] += answer != label
    return +pairs


def test_what_evaluate_says_is_among_what_is_measured(tree: SemanticTree) -> None:
    logits, labels = made(200)
    result = measure(answers(logits, labels, tree), tree)
    assert result.items() >= evaluate(Echo(), [(logits, labels)], tree).items()
    assert set(result) - set(evaluate(Echo(), [(logits, labels)], tree)) == {
        *("macro_precision", "macro_recall", "macro_f1", "calibration_error", "mistake_distance", "confusions")
    }


@pytest.mark.parametrize("seed", range(3))
def test_means_over_classes_are_those_of_the_textbook(tree: SemanticTree, seed: int) -> None:
    logits, labels = made(120, seed)
    first = logits.argmax(1).tolist()
    pairs = Counter(zip(labels.tolist(), first, strict=True))
    precision, recall, f1 = [], [], []
    for index in range(6):
        right, is_it, message = pairs[index, index], labels.tolist().count(index), first.count(index)
        if is_it or message:
            precision.append(right / message if message else 0)
            recall.append(right / is_it if is_it else 0)
            f1.append(2 * right / (is_it + message))
    result = measure(answers(logits, labels, tree), tree)
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert result[f"macro_{name}"] == pytest.approx(100 * sum(values) / len(values), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_thirds_by_training_images_are_those_of_a_slow_count(tree: SemanticTree, seed: int) -> None:
    logits, labels = made(90, seed)
    num_train = [[7, 7, 1300, 50, 50, 2], [1, 2, 3, 4, 5, 6], [9] * 6, [5, 0, 8, 0, 8, 3]][seed]  # 0: no images
    rows = measure(answers(logits, labels, tree), tree, num_train)["per_third"]
    assert [row["third"] for row in rows] == ["many", "medium", "few"]
    left = sorted((index for index in range(6) if num_train[index]), key=lambda index: (-num_train[index], index))
    first = logits.argmax(1).tolist()
    for row, size in zip(rows, [2, 2, 2] if len(left) == 6 else [2, 1, 1], strict=True):
        third, left = left[:size], left[size:]
        assert row["num_classes"] == size
        assert [row["min_train"], row["max_train"]] == [f(num_train[index] for index in third) for f in (min, max)]
        pairs = [(label, answer) for label, answer in zip(labels.tolist(), first, strict=True) if label in third]
        assert row["num_samples"] == len(pairs)
        of_classes = [
            [answer == label for label, answer in pairs if label == index]
            for index in third
            if index in labels.tolist()
        ]
        if pairs:
            assert row["top1"] == pytest.approx(100 * sum(label == answer for label, answer in pairs) / len(pairs))
            shares = [sum(hits) / len(hits) for hits in of_classes]
            assert row["macro_top1"] == pytest.approx(100 * sum(shares) / len(shares))
        else:
            assert (row["top1"], row["macro_top1"]) == (None, None)


def test_two_classes_have_no_third_of_few_images() -> None:
    top = TopAccuracy(2)
    top.update(torch.eye(2), torch.tensor([0, 0]))
    rows = per_third(top, [3, 4])
    assert [(row["third"], row["max_train"], row["top1"]) for row in rows] == [("many", 4, None), ("medium", 3, 50.0)]


@pytest.mark.parametrize("block", [1, 2, 5, 6])
def test_precision_and_recall_are_those_of_torchmetrics_whatever_is_counted_at_a_time(
    tree: SemanticTree, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "BLOCK", block)
    logits, labels = made(150)
    logits[:, 2] = -100  # neither answered nor, as class 4, without an image
    labels[labels == 2] = 1
    predictions = answers(logits, labels, tree)
    result, rows = measure(predictions, tree), per_class(predictions, tree).to_pylist()
    first = logits.argmax(1)
    kinds = {"precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score}
    for name, theirs in kinds.items():
        assert result[f"macro_{name}"] == pytest.approx(100 * theirs(first, labels, 6, average="macro").item())
        for row, value in zip(rows, theirs(first, labels, 6, average="none").tolist(), strict=True):
            assert row[name] is None or row[name] == pytest.approx(100 * value)


def test_no_table_of_all_pairs_of_classes_is_made() -> None:
    num_classes = 100_000  # of which such a table has 80 GB
    tree = SemanticTree.from_parents([f"n{i}" for i in range(num_classes)], ["x"] * num_classes, [-1] * num_classes)
    labels = torch.arange(0, num_classes, 1_000)
    top = labels[:, None] + torch.arange(5)
    top[::2] += 1
    shares = torch.full(top.shape, 0.2)
    predictions = Predictions(torch.arange(100), labels, shares[:, 0], Answers(top, shares, top[:, :1], shares[:, :1]))
    result = measure(predictions, tree)
    assert (result["top1"], result["macro_recall"]) == (50, pytest.approx(100 / 3))  # 50 others were answered
    assert sum(row["num_answered"] for row in per_class(predictions, tree).to_pylist()) == 100


@pytest.mark.parametrize("sharpness", [0.5, 3.0, 300.0])  # the last one's probabilities are 1, or next to it
def test_the_calibration_error_is_the_gap_of_each_bin_by_its_share(tree: SemanticTree, sharpness: float) -> None:
    logits, labels = made(300, sharpness=sharpness)
    sure, first = logits.softmax(1).max(1)
    expected = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = (sure >= low) & ((sure < high) if number < 14 else (sure <= 1))
        if inside.any():
            gap = sure[inside].double().mean() - (first == labels)[inside].double().mean()
            expected += float(gap.abs()) * float(inside.double().mean())
    measured = measure(answers(logits, labels, tree), tree)["calibration_error"]
    assert measured == pytest.approx(100 * expected, rel=1e-4)


@given(num_images=st.integers(1, 60), seed=st.integers(0, 1000), num_classes=st.integers(2, 9))
def test_confused_are_classes_of_one_level_and_their_distance_is_steps_through_the_tree(
    num_images: int, seed: int, num_classes: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tree = random_tree(num_classes, generator)
    logits = torch.randn(num_images, num_classes, generator=generator)
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    wrong = slow_confusions(logits, labels, tree)
    predictions = answers(logits, labels, tree)
    result = measure(predictions, tree)
    items = [(tree.find(row["wnid"]), tree.find(row["answer_wnid"]), row["count"]) for row in result["confusions"]]
    assert [count for *_, count in items] == sorted(wrong.values(), reverse=True)[:20]
    assert {(label, answer): count for label, answer, count in items}.items() <= wrong.items()
    assert [row["distance"] for row in result["confusions"]] == [path_distance(tree, *pair[:2]) for pair in items]
    steps = sum(count * path_distance(tree, *pair) for pair, count in wrong.items())
    assert result["mistake_distance"] == (pytest.approx(steps / wrong.total()) if wrong else None)
    given = own_level_answers(predictions, tree).tolist()
    assert (
        Counter((label, own) for label, own in zip(labels.tolist(), given, strict=True) if own not in (label, -1))
        == wrong
    )
    for label, own in zip(labels.tolist(), given, strict=True):
        assert (own == -1) == (tree.levels.count(tree.levels[label]) == 1)


def test_a_network_that_always_prefers_the_ancestor_confuses_nothing(tree: SemanticTree) -> None:
    labels = torch.arange(6)
    logits = 10 * torch.eye(6)
    for label, path in enumerate(tree.paths):
        logits[label, path[-1]] += 20  # the top class above it, itself where it is one
    result = measure(answers(logits, labels, tree), tree)
    assert result["top1"] == pytest.approx(100 / 3)
    assert result["semantic_top1"] == 100
    assert (result["confusions"], result["mistake_distance"]) == ([], None)


def test_distances_are_the_shortest_ways_over_one_top(tree: SemanticTree) -> None:
    edges = {index: {parent} for index, parent in enumerate(tree.parents)}  # -1 is above all
    for index, parent in enumerate(tree.parents):
        edges.setdefault(parent, set()).add(index)
    for one, other in itertools.product(range(6), repeat=2):
        reached, steps = {one}, 0
        while other not in reached:
            reached |= {near for node in reached for near in edges[node]}
            steps += 1
        assert path_distance(tree, one, other) == steps


def test_a_flawless_model_confuses_nothing(tree: SemanticTree) -> None:
    labels = torch.arange(6)
    result = measure(answers(100 * torch.eye(6), labels, tree), tree)
    assert (result["confusions"], result["mistake_distance"]) == ([], None)
    assert (result["top1"], result["macro_f1"]) == (100, 100)
    assert result["calibration_error"] == pytest.approx(0, abs=1e-6)


def test_the_row_of_a_class_is_about_its_images(tree: SemanticTree) -> None:
    logits, labels = made(200)
    rows = per_class(answers(logits, labels, tree), tree).to_pylist()
    assert [row["wnid"] for row in rows] == list(tree.wnids)
    first, top5, probabilities = logits.argmax(1), logits.topk(5).indices, logits.softmax(1)
    for index, row in enumerate(rows):
        own = labels == index
        assert (row["name"], row["level"], row["num_samples"]) == (
            tree.names[index],
            tree.levels[index],
            int(own.sum()),
        )
        assert row["num_answered"] == int((first == index).sum())
        assert row["precision"] == pytest.approx(
            100 * (labels[first == index] == index).float().mean().item(), rel=1e-5
        )
        if index == 4:  # which has no image
            assert [row[name] for name in ("top1", "top5", "recall", "f1", "mean_probability")] == [None] * 5
            assert (row["confused_with"], row["num_confused"]) == (None, 0)
            continue
        assert (
            row["top1"] == row["recall"] == pytest.approx(100 * (first[own] == index).float().mean().item(), rel=1e-5)
        )
        assert row["top5"] == pytest.approx(100 * (top5[own] == index).any(1).float().mean().item())
        assert row["mean_probability"] == pytest.approx(100 * probabilities[own, index].mean().item(), rel=1e-5)
        wrong = slow_confusions(logits[own], labels[own], tree)
        assert row["num_confused"] == max(wrong.values(), default=0)
        if index == 0:  # which is alone on its level
            assert (row["confused_with"], row["num_confused"]) == (None, 0)
        else:
            assert wrong[index, tree.find(row["confused_with"])] == row["num_confused"]


def test_by_sigmoid_the_probabilities_are_those_of_binary_cross_entropy(tree: SemanticTree) -> None:
    logits, labels = made(80)
    actual = collect(Echo(), [(logits, torch.arange(80))], labels, tree, by_sigmoid=True)
    plain = collect(Echo(), [(logits, torch.arange(80))], labels, tree)
    assert torch.equal(actual.answers.top, plain.answers.top)
    assert torch.equal(actual.answers.levels, plain.answers.levels)
    single = [[1 / (1 + math.exp(-x)) for x in row] for row in logits.tolist()]
    levels = [place for place, classes in enumerate(tree.classes_by_level) if len(classes) > 1]
    for number, (row, label) in enumerate(zip(single, labels.tolist(), strict=True)):
        assert actual.label_probabilities[number].item() == pytest.approx(row[label], rel=1e-5)
        assert actual.answers.top_probabilities[number].tolist() == pytest.approx(sorted(row)[:0:-1], rel=1e-5)
        for place, level in enumerate(levels):
            among = [row[index] for index in tree.classes_by_level[level]]
            share = max(among) / sum(among)
            assert actual.answers.level_probabilities[number, place].item() == pytest.approx(share, rel=1e-5)


def test_the_order_and_size_of_batches_change_nothing(tree: SemanticTree) -> None:
    logits, labels = made(100)
    whole = collect(Echo(), [(logits, torch.arange(100))], labels, tree)
    parts = answers(logits, labels, tree, batch_size=7)
    assert measure(whole, tree) == measure(parts, tree)
    assert torch.equal(parts.rows, torch.arange(100))
    assert torch.equal(parts.labels, labels)
    none = collect(Echo(), [(logits[:0], torch.arange(0)), (logits[3:5], torch.tensor([3, 4]))], labels, tree)
    assert none.rows.tolist() == [3, 4]
    with pytest.raises(ValueError, match="no validation sample"):
        collect(Echo(), [], labels, tree)


@given(num_images=st.integers(1, 60), seed=st.integers(0, 1000), num_classes=st.integers(2, 9))
def test_predictions_come_back_from_their_file_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, num_images: int, seed: int, num_classes: int
) -> None:
    path = tmp_path_factory.mktemp("predictions") / "p.parquet"
    generator = torch.Generator().manual_seed(seed)
    tree = random_tree(num_classes, generator)
    logits = torch.randn(num_images, num_classes, generator=generator)
    predictions = answers(logits, torch.randint(num_classes, (num_images,), generator=generator), tree)
    keys = [f"key {number}" for number in range(num_images)]
    save_predictions(path, predictions, tree, keys, {"model": "echo"}, num_train=[3] * len(tree))
    again, its_tree, provenance, num_train = load_predictions(path)
    assert (its_tree, provenance) == (tree, {"model": "echo"})
    assert measure(again, its_tree) == measure(predictions, tree)
    assert num_train == [3] * len(tree)
    assert per_class(again, its_tree) == per_class(predictions, tree)
    assert torch.equal(again.answers.level_probabilities, predictions.answers.level_probabilities)
    assert pq.read_table(path)["key"].to_pylist() == keys


def test_what_holds_no_predictions_is_refused(tmp_path: Path, make_table: Callable[..., Path]) -> None:
    (tmp_path / "text.parquet").write_text("no table")
    for path, item in (
        (tmp_path / "nothing.parquet", "no such file"),
        (tmp_path / "text.parquet", "no predictions that"),
        (make_table(), "says nothing of in21k-predictions"),
        (make_table(in21k=json.dumps({"format": "in21k-predictions", "version": 2})), "says nothing of"),
        (make_table(in21k=json.dumps({"format": "in21k-predictions", "version": 1})), "no predictions that"),
    ):
        with pytest.raises(ValueError, match=item):
            load_predictions(path)


@pytest.fixture
def make_table(tmp_path: Path) -> Callable[..., Path]:
    """Write a table of one column, with some metadata."""

    def make_table(**metadata: str) -> Path:
        import pyarrow as pa

        path = tmp_path / f"table-{len(list(tmp_path.iterdir()))}.parquet"
        pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(metadata), path)
        return path

    return make_table


def test_the_tree_of_these_tests_has_a_level_of_one_class() -> None:
    sizes: list[Any] = [len(classes) for classes in small_tree().classes_by_level]
    assert sizes == [2, 3, 1]
