"""Validation, prediction, its picture, and models back from their runs."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from in21k.models import create_model
from in21k.shards.tree import SemanticTree
from in21k.training import SemanticAccuracy, TrainSettings, evaluate, load_run, train_model
from in21k.training.inference.picture import draw_prediction
from in21k.training.inference.predict import Describer, LabelDescriber
from in21k.training.metrics import commonest


class Fixed(nn.Module):
    """Answers with the logits that it was made with, whatever it sees."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1)


@pytest.fixture
def finished(tree: SemanticTree, make_loader: Any, settings: TrainSettings, run_path: Path) -> Path:
    """The folder of a finished run of a real architecture."""
    settings = replace(settings, model="resnet10t", epochs=2, batch_size=48, model_args={"drop_rate": 0.1})
    train_model(
        model=create_model("resnet10t", num_classes=6, drop_rate=0.1),
        loader=make_loader(batch_size=48),
        val_loader=make_loader(batch_size=48),
        tree=tree,
        settings=settings,
        folder=run_path,
    )
    return run_path


def test_validation_counts_every_sample_once_also_in_short_and_empty_batches(
    tree: SemanticTree, make_model: Any, make_loader: Any
) -> None:
    loader, model = make_loader(), make_model()
    images, labels = loader.images, loader.labels
    parts = [0, 40, 40, 41, 96]
    batches = [(images[a:b], labels[a:b]) for a, b in itertools.pairwise(parts)]
    seen: list[int] = []
    result = evaluate(model, batches, tree, on_batch=seen.append)
    assert seen == [40, 0, 1, 55]
    assert model.training  # as it was
    logits = model.eval()(images)
    whole = SemanticAccuracy(tree)
    whole.update(logits, labels)
    assert result == {
        "semantic_top1": 100 * whole.compute(),
        "semantic_top1_commonest": 100 * commonest(tree, torch.bincount(labels)),
        "top1": pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item()),
        "macro_top1": pytest.approx(
            100 * sum((logits[labels == c].argmax(1) == c).float().mean().item() for c in range(6)) / 6
        ),
        "top5": pytest.approx(100 * (logits.argsort(1)[:, 1:] == labels[:, None]).any(1).float().mean().item()),
        "num_samples": 96,
        "per_level": whole.per_level(),
    }


def test_validation_without_samples_or_of_other_classes_is_refused(tree: SemanticTree, make_loader: Any) -> None:
    with pytest.raises(ValueError, match="no validation sample"):
        evaluate(Fixed([0.0] * 6), [], tree)
    with pytest.raises(ValueError, match=r"\(16, 5\); the tree wants \(batch, 6\)"):
        evaluate(Fixed([0.0] * 5), make_loader(), tree)


def test_prediction_goes_from_general_to_particular(tree: SemanticTree) -> None:
    logits = [0.0] * 6
    logits[tree.find("animal")], logits[tree.find("bird")], logits[tree.find("plant")] = 4.0, 3.0, 1.0
    first, second = Describer(tree.wnids, tree.names, tree)(torch.tensor([logits, logits]))
    assert first == second
    assert [(row["level"], row["name"]) for row in first["levels"]] == [(0, "animal"), (1, "bird")]
    assert first["levels"][0]["probability"] == pytest.approx(1 / (1 + torch.tensor(-3.0).exp().item()))
    assert first["chain"] == first["levels"]
    assert [row["name"] for row in first["top5"]][:3] == ["animal", "bird", "plant"]
    assert len(first["top5"]) == 5
    assert first["top5"][0]["wnid"] == "n1"


def test_the_chain_ends_where_a_level_leaves_the_branch(tree: SemanticTree) -> None:
    logits = [0.0] * 6
    logits[tree.find("plant")], logits[tree.find("bird")] = 1.0, 1.0  # a bird is not a plant
    (prediction,) = Describer(tree.wnids, tree.names, tree)(torch.tensor([logits]))
    assert [row["name"] for row in prediction["levels"]] == ["plant", "bird"]
    assert [row["name"] for row in prediction["chain"]] == ["plant"]


def test_the_picture_shows_the_image_and_is_large_enough_for_all_rows(tree: SemanticTree) -> None:
    image = Image.new("L", (30, 90), 200)
    (prediction,) = Describer(tree.wnids, tree.names, tree)(torch.zeros(1, 6))
    long_name = {"wnid": "n9", "name": "a very long name of a class " * 4, "probability": 0.001}
    for chain in ([], prediction["chain"], [long_name] * 11):
        picture = draw_prediction(image, {**prediction, "chain": chain})
        assert picture.mode == "RGB"
        colours = picture.getcolors(maxcolors=1 << 24)
        assert colours is not None
        assert (200, 200, 200) in {colour for _, colour in colours}
        background = (255, 255, 255)
        edge = [picture.getpixel((x, y)) for x in range(picture.width) for y in (0, picture.height - 1)]
        assert set(edge) == {background}


def test_the_picture_of_several_labels_shows_those_that_are_present() -> None:
    image = Image.new("L", (30, 90), 200)
    names = [f"label {number}" for number in range(40)]
    logits = torch.linspace(4, -4, 40)[None]
    heights: list[int] = []
    for threshold in (1.0, 0.9, 0.5, 0.0):
        (prediction,) = LabelDescriber(names, names, threshold=threshold)(logits)
        picture = draw_prediction(image, prediction)
        edge = [picture.getpixel((x, y)) for x in range(picture.width) for y in (0, picture.height - 1)]
        assert set(edge) == {(255, 255, 255)}
        heights.append(picture.height)
    assert heights[0] < heights[1] < heights[2] == heights[3]  # no more than twelve


def test_the_name_of_an_image_stands_under_it(tree: SemanticTree) -> None:
    (prediction,) = Describer(tree.wnids, tree.names, tree)(torch.zeros(1, 6))
    for image in (Image.new("L", (30, 90), 200), Image.new("RGB", (400, 300), "red")):
        unnamed, named, long = (
            draw_prediction(image, prediction, name) for name in ("", "swan.jpg", "a very long name " * 40)
        )
        assert named.width == unnamed.width == long.width
        below = [round(image.height * 480 / max(image.size)) + 32 + line for line in range(32)]

        def ink(picture: Image.Image, rows: list[int] = below) -> list[int]:
            return [x for y in rows for x in range(544) if sum(picture.getpixel((x, y))) < 600]

        assert ink(named)
        assert min(ink(named)) >= 33
        assert max(ink(long)) <= 512  # no wider than the image may be
        if unnamed.height > max(below):
            assert not ink(unnamed)


def test_a_finished_run_opens_again_here_and_in_timm(finished: Path, tree: SemanticTree) -> None:
    images = torch.rand(2, 3, 16, 16)
    run = load_run(finished)
    model, its_tree, config = run
    assert its_tree == tree
    assert (config["model"], run.settings.batch_size) == ("resnet10t", 48)
    assert not model.training
    logits = model(images)
    for again in (load_run(finished / "checkpoints" / "last.pt"), load_run(str(finished), "last")):
        assert torch.equal(again.model(images), logits)
    assert again.config == config
    opened = timm.create_model(f"local-dir:{finished}", pretrained=True).eval()
    assert torch.equal(opened(images), logits)
    assert opened.pretrained_cfg["input_size"] == [3, 16, 16]


def test_the_best_weights_are_those_of_the_best_checkpoint(finished: Path) -> None:
    best = torch.load(finished / "checkpoints" / "best.pt", weights_only=True)["model"]
    for name, tensor in load_run(finished, "best").model.state_dict().items():
        assert torch.equal(tensor, best[name])


def test_a_checkpoint_that_left_its_folder_still_opens(finished: Path, tmp_path: Path, tree: SemanticTree) -> None:
    moved = tmp_path / "elsewhere.pt"
    (finished / "checkpoints" / "last.pt").rename(moved)
    assert load_run(moved).tree == tree
    assert load_run(finished).tree == tree  # model.safetensors is there


def test_what_is_no_run_is_refused(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_run(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no run of in21k train"):
        load_run(tmp_path / "empty")
    (finished / "checkpoints" / "best.pt").unlink()
    with pytest.raises(ValueError, match="has no best checkpoint"):
        load_run(finished, "best")
    with pytest.raises(ValueError, match="not readable as a checkpoint"):
        load_run(finished / "config.json")
    text = (finished / "config.yaml").read_text()
    (finished / "config.yaml").write_text(text.replace("resnet10t", "resnet18"))
    with pytest.raises(ValueError, match="not those of resnet18"):
        load_run(finished)
