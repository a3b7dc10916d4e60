"""Several labels an image: the mean average precision against its definition, precision and recall, and two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from in21k.shards.tree import SemanticTree
from in21k.training.evaluation import multilabel as module
from in21k.training.evaluation.multilabel import average_precisions, evaluate_labels, precision_and_recall
from in21k.training.losses.multilabel import multi_hot

TABLE = multi_hot([[0], [1, 2], [], [0, 1, 2, 3]], 4)
LABELS = SemanticTree.from_parents(list("abcd"), list("ABCD"), [-1] * 4)


def slow_average_precision(scores: list[float], held: list[bool]) -> float:
    """Go down the distinct scores, and add precision times what recall gains, as the definition says."""
    total = recall_before = 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [is_held for score, is_held in zip(scores, held, strict=True) if score >= threshold]
        recall = sum(taken) / sum(held)
        total += (recall - recall_before) * sum(taken) / len(taken)
        recall_before = recall
    return total


@given(
    st.integers(1, 4).flatmap(
        lambda labels: st.lists(
            st.tuples(
                st.lists(st.integers(-3, 3), min_size=labels, max_size=labels),
                st.lists(st.booleans(), min_size=labels, max_size=labels),
            ),
            min_size=1,
            max_size=12,
        )
    )
)
def test_average_precisions_are_those_of_the_definition_with_ties(rows: list[tuple[list[int], list[bool]]]) -> None:
    logits = torch.tensor([scores for scores, _ in rows], dtype=torch.float32)
    targets = torch.tensor([held for _, held in rows])
    actual = average_precisions(logits, targets)
    for label in range(targets.shape[1]):
        held = targets[:, label].tolist()
        if any(held):
            assert actual[label].item() == pytest.approx(slow_average_precision(logits[:, label].tolist(), held))
        else:
            assert actual[label].isnan()


def test_scores_next_to_certain_still_have_an_order() -> None:
    logits, targets = torch.tensor([[18.0], [19.0], [20.0], [21.0]]), torch.tensor([[True], [False], [False], [False]])
    assert average_precisions(logits, targets).tolist() == pytest.approx([0.25])


def slow_precision_and_recall(logits: list[list[float]], targets: list[list[bool]]) -> dict[str, float]:
    """Count, label by label, what the docstring says."""
    precisions, recalls, all_right, all_taken, all_held = [], [], 0, 0, 0
    for scores, held in zip(zip(*logits, strict=True), zip(*targets, strict=True), strict=True):
        taken = [score >= 0 for score in scores]  # of probability 0.5 or more
        right = sum(a and b for a, b in zip(taken, held, strict=True))
        all_right, all_taken, all_held = all_right + right, all_taken + sum(taken), all_held + sum(held)
        if any(held):
            precisions.append(right / sum(taken) if any(taken) else 0.0)
            recalls.append(right / sum(held))
    values = {"cp": sum(precisions) / len(precisions), "cr": sum(recalls) / len(recalls)}
    values |= {"op": all_right / all_taken if all_taken else 0.0, "or": all_right / all_held}
    for word in "co":
        both = values[f"{word}p"] + values[f"{word}r"]
        values[f"{word}f1"] = 2 * values[f"{word}p"] * values[f"{word}r"] / both if both else 0.0
    return {name: 100 * value for name, value in values.items()}


@given(num_samples=st.integers(1, 12), num_labels=st.integers(1, 4), seed=st.integers(0, 1000))
def test_precision_and_recall_are_those_of_the_published_tables(num_samples: int, num_labels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-2, 3, (num_samples, num_labels), generator=generator).float()  # 0 is just enough
    targets = torch.rand(num_samples, num_labels, generator=generator) < 0.4
    targets[0, 0] = True
    wanted = slow_precision_and_recall(logits.tolist(), targets.tolist())
    actual = precision_and_recall(logits, targets)
    assert list(actual) == ["cp", "cr", "cf1", "op", "or", "of1"]
    assert actual == pytest.approx(wanted, rel=1e-5)


def test_the_f1_of_the_means_is_not_the_mean_of_the_f1s() -> None:
    logits, targets = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), torch.tensor([[True, True], [True, False]])
    actual = precision_and_recall(logits, targets)
    assert (actual["cp"], actual["cr"], actual["cf1"]) == (75, 75, 75)  # the F1 of both labels is 2/3
    assert (actual["op"], actual["or"]) == pytest.approx((200 / 3, 200 / 3))


class Rows(nn.Module):
    """Answers each image with the logits that are written in its first row."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :4]


def scored(num_images: int) -> tuple[Tensor, Tensor]:
    """Images for `Rows`, and numbers of label sets, of which the last label is never held."""
    generator = torch.Generator().manual_seed(4)
    return torch.randn(num_images, 3, 4, 4, generator=generator), torch.randint(3, (num_images,), generator=generator)


def test_validation_is_exact_over_short_and_empty_batches() -> None:
    images, sets = scored(50)
    batches = [(images[a:b], sets[a:b]) for a, b in [(0, 20), (20, 20), (20, 21), (21, 50)]]
    seen: list[int] = []
    result = evaluate_labels(Rows(), batches, LABELS, table=TABLE, on_batch=seen.append)
    assert seen == [20, 0, 1, 29]
    targets = TABLE[sets]
    wanted = average_precisions(images[:, 0, 0], targets)
    assert result["map"] == pytest.approx(100 * wanted[:3].mean().item())
    assert result["map_chance"] == pytest.approx(100 * targets[:, :3].float().mean().item())
    assert (result["num_samples"], result["num_labels"]) == (50, 3)
    assert result.items() >= precision_and_recall(images[:, 0, 0], targets).items()
    assert [row["wnid"] for row in result["per_label"]] == list("abcd")
    assert [row["num_samples"] for row in result["per_label"]] == targets.sum(dim=0).tolist()
    assert result["per_label"][3]["average_precision"] is None
    chance = evaluate_labels(Rows(), [(torch.zeros_like(images), sets)], LABELS, table=TABLE)
    assert chance["map"] == pytest.approx(chance["map_chance"])


def test_a_validation_without_labels_or_of_too_many_scores_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = scored(4)
    for batches in ([], [(images, torch.full((4,), 2))]):
        with pytest.raises(ValueError, match="no validation sample has a label"):
            evaluate_labels(Rows(), batches, LABELS, table=TABLE)
    monkeypatch.setattr(module, "MAX_SCORES", 15)
    with pytest.raises(ValueError, match="more than 3 validation images for 4 labels"):
        evaluate_labels(Rows(), [(images, torch.zeros(4, dtype=torch.int64))], LABELS, table=TABLE)


RANKS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import json, torch
from test_multilabel import LABELS, TABLE, Rows, scored
from in21k.training.distributed import join_ranks
from in21k.training.evaluation.multilabel import evaluate_labels
images, sets = scored(50)
with join_ranks("cpu") as ranks:
    taken = slice(0, 33) if ranks.rank == 0 else slice(33, 50)
    result = evaluate_labels(Rows(), [(images[taken], sets[taken])], LABELS, table=TABLE, ranks=ranks)
    Path(sys.argv[2], f"{ranks.rank}.json").write_text(json.dumps(result))
"""


def test_two_ranks_give_exactly_what_one_gives(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--monitor-interval=0.1"]
    subprocess.run(
        [sys.executable, *launch, str(tmp_path / "ranks.py"), str(Path(__file__).parent), str(tmp_path)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    one = evaluate_labels(Rows(), [scored(50)], LABELS, table=TABLE)
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [one, one]
