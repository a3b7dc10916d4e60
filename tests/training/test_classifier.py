"""Classifier, load_model, extract_features: a trained network at work on images."""

from __future__ import annotations

import io
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from in21k.models import create_model, save_weights, timm_config
from in21k.shards.tree import SemanticTree
from in21k.training import (
    Classifier,
    Source,
    TrainSettings,
    extract_features,
    load_model,
    load_run,
    open_model,
    predict,
    read_batches,
    train,
)

from .conftest import MemoryLoader, small_data, small_tree

Draw, Encode = Callable[..., Image.Image], Callable[..., bytes]
MakeTimm = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a real architecture, with a moving average."""
    path = tmp_path_factory.mktemp("classifier") / "run"
    settings = TrainSettings(
        model="resnet10t", image_size=16, batch_size=48, epochs=1, lr=0.02, ema=0.5, normalize="imagenet", trackers=[]
    )
    torch.manual_seed(0)
    train(
        model=create_model("resnet10t", num_classes=6),
        loader=MemoryLoader(*small_data(), 48),
        val_loader=MemoryLoader(*small_data(), 48),
        tree=small_tree(),
        settings=settings,
        folder=path,
    )
    return path


@pytest.fixture
def make_timm(tmp_path: Path) -> MakeTimm:
    """Make a folder that timm opens, of a network with random weights, and return timm's name for it."""

    def make(num_classes: int, **pretrained: Any) -> str:
        model = create_model("resnet10t", num_classes=num_classes)
        described: dict[str, Any] = {"crop_pct": None, "normalize": "imagenet", "image_size": 32}
        wnids = [str(number) for number in range(num_classes)]
        config = timm_config(model, architecture="resnet10t", model_args={}, wnids=wnids, names=wnids, **described)
        for key in ("label_names", "label_descriptions"):
            del config["pretrained_cfg"][key]
        config["pretrained_cfg"] |= pretrained
        save_weights(model, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        return f"local-dir:{tmp_path}"

    return make


@pytest.fixture
def pictures(draw: Draw) -> list[Image.Image]:
    return [draw(20 + 3 * seed, 40 - 3 * seed, seed=seed) for seed in range(7)]


def test_a_classifier_says_what_the_network_says(run: Path, pictures: list[Image.Image], tree: SemanticTree) -> None:
    opened = open_model(run)
    by_hand = [np.asarray(each.resize((16, 16), Image.Resampling.BILINEAR)) for each in pictures]
    images = opened.normalize(torch.from_numpy(np.stack(by_hand)).permute(0, 3, 1, 2))
    expected = predict(load_run(run).model, images, tree)
    found = Classifier(run, batch_size=3, workers=2, device="cpu")(pictures)
    for one, other in zip(found, expected, strict=True):
        # Pillow and torch resize within a grey level of one another.
        assert one["levels"][0]["probability"] == pytest.approx(other["levels"][0]["probability"], abs=0.02)
    assert [set(each) for each in found] == [{"levels", "chain", "top5"}] * 7
    assert Classifier(run, device="cpu")(pictures[2])[0]["top5"][0]["name"] == found[2]["top5"][0]["name"]


def test_the_answer_of_a_flip_is_that_of_the_mean_logits(run: Path, pictures: list[Image.Image]) -> None:
    flipped = Classifier(run, flip=True, device="cpu")
    mirrored = [each.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for each in pictures]
    once, twice = (flipped(each) for each in (pictures, mirrored))
    for one, other in zip(once, twice, strict=True):
        names = [[answer["wnid"] for answer in each["top5"]] for each in (one, other)]
        assert names[0] == names[1]
        assert one["top5"][0]["probability"] == pytest.approx(other["top5"][0]["probability"], abs=1e-3)
    plain = Classifier(run, device="cpu")(pictures)
    assert [each["top5"][0]["probability"] for each in plain] != [each["top5"][0]["probability"] for each in once]


def test_definitions_go_with_every_answer(run: Path, pictures: list[Image.Image]) -> None:
    (found,) = Classifier(run, definitions={f"n{n}": f"what n{n} is" for n in (0, 1, 2, 4, 5)}, device="cpu")(
        pictures[:1]
    )
    meanings = {answer["wnid"]: answer["definition"] for answer in found["levels"] + found["top5"]}
    assert meanings == {wnid: f"what {wnid} is" if wnid != "n3" else "" for wnid in meanings}
    assert len(meanings) >= 5


def test_a_stream_keeps_the_order_and_names_what_cannot_be_read(run: Path, draw: Draw, encode: Encode) -> None:
    sources = [Source(f"{number}", b"junk" if number % 3 == 1 else encode(draw(seed=number))) for number in range(11)]
    found = list(Classifier(run, batch_size=2, workers=3, device="cpu").stream(sources))
    assert [each.source for each in found] == sources
    assert [each.error is not None for each in found] == [number % 3 == 1 for number in range(11)]
    assert all((each.prediction is None) == (each.error is not None) for each in found)
    alone = Classifier(run, device="cpu")([source.picture for number, source in enumerate(sources) if number % 3 != 1])
    streamed = [each.prediction for each in found if each.prediction]
    for one, other in zip(streamed, alone, strict=True):
        assert one["top5"][0]["probability"] == pytest.approx(other["top5"][0]["probability"], rel=1e-4)
    with pytest.raises(ValueError, match="image 1: not an image"):
        Classifier(run, device="cpu")([source.picture for source in sources])


def test_reading_ahead_is_bounded_and_ends_with_its_reader(run: Path, draw: Draw, encode: Encode) -> None:
    asked, data = itertools.count(), encode(draw())

    def endless() -> Iterator[Source]:
        while True:
            yield Source(str(next(asked)), data)

    batches = read_batches(endless(), open_model(run), batch_size=4, workers=2)
    for _ in range(3):
        rows, pixels = next(batches)
        assert len(rows) == 4
        assert pixels is not None
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (4, 3, 16, 16))
    assert next(asked) <= 3 * 4 + 2 * 4 + 2
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("in21k-read")]


def test_a_network_that_timm_alone_knows_gives_the_likeliest_classes(
    make_timm: MakeTimm, pictures: list[Image.Image]
) -> None:
    (found,) = Classifier(make_timm(1000), device="cpu")(pictures[0])
    assert (found["levels"], found["chain"]) == ([], [])
    assert len(found["top5"]) == 5
    assert all(answer["wnid"].startswith("n") and not answer["name"].startswith("n0") for answer in found["top5"])
    (found,) = Classifier(make_timm(7), device="cpu")(pictures[0])
    assert {answer["wnid"] for answer in found["top5"]} == {None}
    assert all(answer["name"].startswith("class ") for answer in found["top5"])
    names = ["cat", "dog", "eel"]
    (found,) = Classifier(make_timm(3, label_names=names), device="cpu")(pictures[0])
    assert sorted(answer["name"] for answer in found["top5"]) == names


def test_a_tree_may_be_given_to_a_network_that_has_none(make_timm: MakeTimm, pictures: list[Image.Image]) -> None:
    tree = small_tree()
    name = make_timm(6, label_names=list(tree.wnids))
    (found,) = Classifier(name, tree=tree, device="cpu")(pictures[0])
    assert [answer["level"] for answer in found["levels"]] == [0, 1]
    other = SemanticTree.from_parents(["n1"], ["animal"], [-1])
    with pytest.raises(ValueError, match="its 6 outputs are not the tree's 1 classes"):
        Classifier(name, tree=other)


def test_a_timm_model_is_shown_what_timm_would_show_it(make_timm: MakeTimm, draw: Draw) -> None:
    name = make_timm(5, crop_mode="center", crop_pct=0.8, interpolation="bicubic", mean=[0.5] * 3, std=[0.25] * 3)
    image, opened = draw(90, 70), open_model(name)
    model = timm.create_model(name, pretrained=True)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(image)
    ((_, pixels),) = read_batches([Source("", image)], opened)
    ours = opened.normalize(pixels)[0]
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 2.1 / 255 / 0.25  # Pillow and torch: within two grey levels


def test_load_model_gives_the_network_with_how_its_images_are_prepared(run: Path) -> None:
    model, images = load_model(run), torch.rand(2, 3, 16, 16)
    assert not model.training
    assert torch.equal(model(images), load_run(run).model(images))
    assert torch.equal(load_model(run, "ema")(images), load_run(run, "ema").model(images))
    config = timm.data.resolve_model_data_config(model)
    assert ([*config["input_size"]], config["crop_mode"]) == ([3, 16, 16], "squash")
    assert (*config["mean"],) == (0.485, 0.456, 0.406)
    assert model.pretrained_cfg["label_names"] == list(small_tree().wnids)


def test_features_are_what_the_classifier_takes(run: Path, draw: Draw, encode: Encode, tmp_path: Path) -> None:
    pictures = [draw(seed=seed) for seed in range(5)]
    features = extract_features(run, pictures, batch_size=2, device="cpu")
    assert (features.shape, features.dtype) == ((5, 512), torch.float32)
    opened = open_model(run)
    ((_, pixels),) = read_batches([Source("", each) for each in pictures], opened)
    with torch.inference_mode():
        logits = opened.model(opened.normalize(pixels))
        torch.testing.assert_close(opened.model.get_classifier()(features), logits)
    (tmp_path / "one.png").write_bytes(encode(pictures[3], "PNG"))
    one = extract_features(opened, tmp_path / "one.png", device="cpu")
    torch.testing.assert_close(one[0], features[3])
    for images, said in (([], "there is no image"), ([b"junk"], "image 0: not an image")):
        with pytest.raises(ValueError, match=said):
            extract_features(opened, images, device="cpu")
    with Image.open(io.BytesIO(encode(pictures[3], "PNG"))) as opened_image:
        torch.testing.assert_close(extract_features(opened, opened_image, device="cpu")[0], features[3])
