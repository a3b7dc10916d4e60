"""Classes without images: beagle, poodle and cat have some; animal and dog are above them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from in21k.models import create_model
from in21k.models.label_space import LabelSpace
from in21k.shards.tree import SemanticTree
from in21k.training import CrossEntropyLoss, SemanticSoftmaxLoss, TrainSettings, evaluate
from in21k.training.evaluation.measure import measure, per_class
from in21k.training.evaluation.predictions import collect
from in21k.training.features.knn import _Counts
from in21k.training.features.probe import _lifted
from in21k.training.inference.open_model import OpenModel
from in21k.training.inference.pixel_model import PixelModel
from in21k.training.inference.predict import Describer
from in21k.training.losses.create import create_distillation, create_loss, trains_inner
from in21k.training.losses.distill_loss import LogitKDLoss
from in21k.training.losses.levels import InnerScores, Levels
from in21k.training.runs.checkpoint import tree_content, tree_from
from in21k.training.runs.run_folder import network_config, run_config

BEAGLE, CAT, POODLE, ANIMAL, DOG = range(5)
NAMES = ["beagle", "cat", "poodle", "animal", "dog"]
TREE = SemanticTree.from_parents(NAMES, NAMES, [DOG, ANIMAL, DOG, -1, ANIMAL], num_inner=2)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(12, 5, generator=generator), torch.arange(12) % 3


@pytest.mark.parametrize("name", ["cross-entropy", "bce"])
def test_losses_without_a_tree_take_the_outputs_of_image_classes_alone(name: str) -> None:
    logits, labels = batch()
    settings = replace(TrainSettings(), loss=name, label_smoothing=0.1)
    three = SemanticTree.from_parents(NAMES[:3], NAMES[:3], [-1] * 3)
    fast = logits.clone().requires_grad_()
    loss = create_loss(settings, TREE)(fast, labels)
    loss.backward()
    assert loss.item() == pytest.approx(create_loss(settings, three)(logits[:, :3], labels).item())
    assert fast.grad is not None
    assert not fast.grad[:, 3:].any()
    assert fast.grad[:, :3].any()


def test_plain_distillation_compares_image_classes_alone() -> None:
    student, teacher = batch()[0], batch()[0].flip(0)
    loss = create_distillation(replace(TrainSettings(), kd_temperature=2.0), TREE)(student, teacher)
    assert loss.item() == pytest.approx(LogitKDLoss(2.0)(student[:, :3], teacher[:, :3]).item())


def test_the_semantic_loss_trains_inner_classes_by_the_images_below_them() -> None:
    logits, _ = batch()
    loss = SemanticSoftmaxLoss(TREE, label_smoothing=0)
    beagle, poodle, cat = (loss(logits[:1], torch.tensor([index])).item() for index in (BEAGLE, POODLE, CAT))
    # Level 1 tells dog from cat, level 2 beagle from poodle; animal is alone on its level.
    first = CrossEntropyLoss()(logits[:1, [CAT, DOG]], torch.tensor([1])).item()
    second = CrossEntropyLoss()(logits[:1, [BEAGLE, POODLE]], torch.tensor([0])).item()
    assert beagle == pytest.approx(5 / 4 * first + 5 / 2 * second)
    assert beagle != pytest.approx(poodle)
    assert cat == pytest.approx(5 / 4 * CrossEntropyLoss()(logits[:1, [CAT, DOG]], torch.tensor([0])).item())


def test_top1_counts_image_classes_and_semantic_accuracy_all() -> None:
    logits = torch.tensor([[2.0, 0, 1, 9, 8], [0, 1, 2, 9, 8]])  # the largest logits are those of animal and dog
    result = evaluate(nn.Identity(), [(logits, torch.tensor([BEAGLE, CAT]))], TREE)
    assert (result["top1"], result["top5"]) == (50, 100)
    # Beagle: dog and beagle are right. Cat: dog is wrong.
    assert result["semantic_top1"] == pytest.approx(200 / 3)
    assert [(level["level"], level["num_classes"], level["num_samples"]) for level in result["per_level"]] == [
        *((1, 2, 2), (2, 2, 1))
    ]
    predictions = collect(nn.Identity(), [(logits, torch.arange(2))], torch.tensor([BEAGLE, CAT]), TREE)
    assert predictions.answers.top.tolist() == [[BEAGLE, POODLE, CAT], [POODLE, CAT, BEAGLE]]
    of_beagle = logits[0, :3].softmax(dim=0)[BEAGLE].item()
    assert predictions.label_probabilities[0].item() == pytest.approx(of_beagle)
    measured = measure(predictions, TREE)
    assert {name: measured[name] for name in result} == result


def test_tables_and_confusions_name_image_classes_alone() -> None:
    logits, labels = batch()
    predictions = collect(nn.Identity(), [(logits, torch.arange(12))], labels, TREE)
    table = per_class(predictions, TREE)
    assert table["wnid"].to_pylist() == NAMES[:3]
    assert {*table["confused_with"].to_pylist()} <= {*NAMES[:3], None}
    named = {pair[key] for pair in measure(predictions, TREE)["confusions"] for key in ("wnid", "answer_wnid")}
    assert named <= {"beagle", "poodle"}  # a cat is alone with the inner class dog on its level
    assert named


def test_a_prediction_climbs_through_inner_classes() -> None:
    logits = torch.tensor([[2.0, 0, 1, -9, 1], [0, 5, 0, 0, 0]])
    beagle, cat = Describer(NAMES, NAMES, TREE)(logits)
    assert [answer["name"] for answer in beagle["chain"]] == ["animal", "dog", "beagle"]
    assert [answer["level"] for answer in beagle["chain"]] == [0, 1, 2]
    assert beagle["chain"][0]["probability"] == 1
    assert [answer["name"] for answer in beagle["top5"]] == ["beagle", "poodle", "cat"]
    assert sum(answer["probability"] for answer in beagle["top5"]) == pytest.approx(1)
    assert [answer["name"] for answer in cat["chain"]] == ["animal", "cat"]


def test_a_softmax_over_image_classes_scores_inner_ones_by_the_classes_below() -> None:
    logits = torch.tensor([[1.0, 1.5, 1.2, 50, -50]])  # of the last two nothing is trained
    scores = InnerScores(TREE)(logits)
    assert scores[:, :3].tolist() == logits[:, :3].tolist()
    assert scores[0, DOG].item() == pytest.approx(logits[0, [BEAGLE, POODLE]].logsumexp(0).item())
    assert scores[0, ANIMAL].item() == pytest.approx(logits[0, :3].logsumexp(0).item())
    batches = [(logits, torch.tensor([POODLE]))]
    assert evaluate(nn.Identity(), batches, TREE)["semantic_top1"] == 50  # by the untrained output the cat is likelier
    assert evaluate(nn.Identity(), batches, TREE, fill_inner=True)["semantic_top1"] == 100


@pytest.mark.parametrize(
    ("settings", "is_trained"),
    [
        ({"loss": "semantic"}, True),
        ({"loss": "cross-entropy"}, False),
        ({"loss": "bce", "teacher": "run", "kd_temperature": 2.0}, False),
        ({"loss": "cross-entropy", "teacher": "run"}, True),
    ],
)
def test_inner_outputs_are_trained_by_what_knows_the_tree(settings: dict[str, Any], is_trained: bool) -> None:
    assert trains_inner(replace(TrainSettings(), **settings)) is is_trained


def test_a_network_without_inner_outputs_is_asked_for_image_classes_and_filled() -> None:
    class Published(nn.Module):
        num_classes = 4

        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[0.0, 1, 2, 3]]).expand(len(images), -1)

    opened = OpenModel(
        model=Published(),
        name="published",
        mean=(0, 0, 0),
        std=(1, 1, 1),
        image_size=8,
        crop_pct=None,
        classes=LabelSpace("four", ("fish", "poodle", "cat", "beagle")),
    )
    outputs = opened.outputs_of(TREE)
    assert outputs.tolist() == [3, 2, 1]
    logits = PixelModel(opened, outputs, TREE)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert logits.shape == (2, 5)
    assert logits[0, :3].tolist() == [3, 2, 1]
    assert logits[0, DOG].item() == pytest.approx(torch.tensor([3.0, 1]).logsumexp(0).item())


def test_probes_and_neighbours_answer_on_levels_of_inner_classes() -> None:
    lifted = _lifted(torch.tensor([[0.1, 0.3, 0.2]]), Levels(TREE).ancestors)  # cat, and of the deepest level poodle
    assert lifted.tolist() == [[0, 1, 1, 0, 0]]
    counts = _Counts(3, TREE, torch.device("cpu"))
    voters = torch.tensor([[BEAGLE, POODLE, CAT]])
    counts.update(voters, torch.zeros(1, 3, dtype=torch.float64), torch.tensor([POODLE]))
    # Two dogs outvote one cat; beagle and poodle have a vote each, of which the first counts.
    assert counts.compute()["semantic_top1"] == 50


def test_a_checkpoint_keeps_which_classes_are_inner() -> None:
    assert tree_from(tree_content(TREE)) == TREE
    assert tree_from(tree_content(TREE)).num_image_classes == 3


def test_an_export_says_how_many_outputs_are_classes_with_images() -> None:
    model = create_model("test_vit", num_classes=5)
    config = run_config(replace(TrainSettings(), model="test_vit"), {"path": "shards"}, 1)
    exported = network_config(model, config, TREE)
    assert (exported["num_classes"], exported["num_image_classes"]) == (5, 3)
    assert exported["pretrained_cfg"]["label_names"] == NAMES
    assert "the first 3 outputs are classes with images" in exported["pretrained_cfg"]["notes"][0]
    flat = SemanticTree.from_parents(NAMES, NAMES, [-1] * 5)
    assert "num_image_classes" not in network_config(model, config, flat)
