"""Classifier, load_model, extract_features: a trained network at work on images."""

from __future__ import annotations

import io
import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from in21k.models import create_model
from in21k.models.export import save_weights, timm_config
from in21k.shards.tree import SemanticTree
from in21k.training import Classifier, TrainSettings, extract_features, load_model, load_run, open_model, train_model
from in21k.training.inference.predict import Describer, LabelDescriber
from in21k.training.inference.reading import Source, read_batches
from in21k.training.losses.multilabel import multi_hot

from ..conftest import MemoryLoader, small_data, small_tree

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
    train_model(
        model=create_model("resnet10t", num_classes=6),
        loader=MemoryLoader(*small_data(), 48),
        val_loader=MemoryLoader(*small_data(), 48),
        tree=small_tree(),
        settings=settings,
        folder=path,
    )
    return path


LABEL_SETS = [[0], [1], [0, 1], [2, 3], [], [0, 4]]  # of the six colours of the small data


def train_to_labels(path: Path, loss: str, *, several: bool) -> Path:
    """Make a finished run of binary cross-entropy: over six classes, or over five labels."""
    labels = SemanticTree.from_parents(list("vwxyz"), ["ant", "bee", "cow", "dog", "eel"], [-1] * 5)
    settings = TrainSettings(
        model="resnet10t", image_size=16, batch_size=48, epochs=1, lr=0.02, loss=loss, label_smoothing=0.0, trackers=[]
    )
    torch.manual_seed(0)
    train_model(
        model=create_model("resnet10t", num_classes=5 if several else 6),
        loader=MemoryLoader(*small_data(), 48),
        val_loader=None,
        tree=labels if several else small_tree(),
        label_sets=multi_hot(LABEL_SETS, 5) if several else None,
        data={"label_sets": len(LABEL_SETS)} if several else {},
        settings=settings,
        folder=path,
    )
    return path


@pytest.fixture(scope="module")
def labels_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on images of several labels."""
    return train_to_labels(tmp_path_factory.mktemp("labels") / "run", "asymmetric", several=True)


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
    by_hand = [np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR)) for picture in pictures]
    images = opened.normalize(torch.from_numpy(np.stack(by_hand)).permute(0, 3, 1, 2))
    with torch.inference_mode():
        expected = Describer(tree.wnids, tree.names, tree)(load_run(run).model(images))
    actual = Classifier(run, batch_size=3, workers=2, device="cpu")(pictures)
    for one, other in zip(actual, expected, strict=True):
        # Pillow and torch resize within a grey level of one another.
        assert one["levels"][0]["probability"] == pytest.approx(other["levels"][0]["probability"], abs=0.02)
    assert [set(item) for item in actual] == [{"levels", "chain", "top5"}] * 7
    assert Classifier(run, device="cpu")(pictures[2])[0]["top5"][0]["name"] == actual[2]["top5"][0]["name"]


def test_the_answer_of_a_flip_is_that_of_the_mean_logits(run: Path, pictures: list[Image.Image]) -> None:
    flipped = Classifier(run, flip=True, device="cpu")
    mirrored = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures]
    once, twice = (flipped(item) for item in (pictures, mirrored))
    for one, other in zip(once, twice, strict=True):
        names = [[answer["wnid"] for answer in item["top5"]] for item in (one, other)]
        assert names[0] == names[1]
        assert one["top5"][0]["probability"] == pytest.approx(other["top5"][0]["probability"], abs=1e-3)
    plain = Classifier(run, device="cpu")(pictures)
    assert [item["top5"][0]["probability"] for item in plain] != [item["top5"][0]["probability"] for item in once]


def logits_of(path: Path, pictures: list[Image.Image]) -> torch.Tensor:
    opened = open_model(path)
    ((_, pixels),) = read_batches([Source("", picture) for picture in pictures], opened)
    with torch.inference_mode():
        return opened.model(opened.normalize(pixels))


def test_of_several_labels_each_has_its_own_sigmoid(labels_run: Path, pictures: list[Image.Image]) -> None:
    logits, names = logits_of(labels_run, pictures).tolist(), load_run(labels_run).tree.names
    for threshold in (0.0, 0.3, None, 1.0):
        actual = Classifier(labels_run, threshold=threshold, batch_size=3, device="cpu")(pictures)
        assert [set(item) for item in actual] == [{"labels", "top5"}] * 7
        for row, scores in zip(actual, logits, strict=True):
            expected = sorted(
                ((1 / (1 + math.exp(-x)), name) for x, name in zip(scores, names, strict=True)), reverse=True
            )
            present = [name for p, name in expected if p >= (0.5 if threshold is None else threshold)]
            assert [answer["name"] for answer in row["labels"]] == present
            assert [answer["name"] for answer in row["top5"]] == [name for _, name in expected]
            for answer, (probability, _) in zip(row["top5"], expected, strict=True):
                assert answer["probability"] == pytest.approx(probability, rel=1e-4)
            assert row["labels"] == row["top5"][: len(present)]
    assert len(Classifier(labels_run, threshold=0)(pictures[0])[0]["labels"]) == 5


def test_labels_that_are_certain_stay_in_the_order_of_their_logits() -> None:
    logits = torch.tensor([[30.0, 60.0, 0.0, -60.0, 45.0, 90.0, -1e-3], [-1.0] * 7])
    describe = LabelDescriber(list("abcdefg"), list("ABCDEFG"), {"f": "a fox"})
    first, second = describe(logits)
    assert "".join(answer["name"] for answer in first["labels"]) == "FBEAC"  # 0 is a probability of 0.5
    assert first["labels"][0] == {"wnid": "f", "name": "F", "definition": "a fox", "probability": 1.0}
    assert (second["labels"], len(second["top5"])) == ([], 5)
    assert len(LabelDescriber(list("abcdefg"), list("ABCDEFG"), threshold=0)(logits)[1]["labels"]) == 7
    assert describe(logits[:0]) == []


def test_a_flip_means_the_logits_of_labels_too(labels_run: Path, pictures: list[Image.Image]) -> None:
    mirrored = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures]
    means = (logits_of(labels_run, pictures) + logits_of(labels_run, mirrored)) / 2
    actual = Classifier(labels_run, flip=True, threshold=0, device="cpu")(pictures)
    for row, scores in zip(actual, means.sigmoid().tolist(), strict=True):
        probabilities = [answer["probability"] for answer in row["labels"]]
        assert probabilities == pytest.approx(sorted(scores, reverse=True), abs=0.01)  # resized, then turned


@pytest.mark.parametrize("threshold", [0.5, 0.0])
def test_a_threshold_goes_with_several_labels_alone(
    run: Path, labels_run: Path, make_timm: MakeTimm, threshold: float
) -> None:
    for model in (run, make_timm(7)):
        with pytest.raises(ValueError, match="gives each image one, so leave it out"):
            Classifier(model, threshold=threshold)
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="wanted a probability, 0 to 1"):
            Classifier(labels_run, threshold=wrong)


def test_a_network_of_binary_cross_entropy_answers_by_its_sigmoids(
    tmp_path: Path, pictures: list[Image.Image], tree: SemanticTree
) -> None:
    path = train_to_labels(tmp_path / "run", "bce", several=False)
    logits = logits_of(path, pictures)
    single = logits.sigmoid()
    for number, row in enumerate(Classifier(path, device="cpu")(pictures)):
        for answer in row["top5"]:
            assert answer["probability"] == pytest.approx(single[number, tree.find(answer["wnid"])].item(), rel=1e-4)
        assert [answer["level"] for answer in row["levels"]] == [0, 1]
        for answer in row["levels"]:
            among = single[number, list(tree.classes_by_level[answer["level"]])]
            assert answer["probability"] == pytest.approx((among.max() / among.sum()).item(), rel=1e-4)


def test_definitions_go_with_every_answer(run: Path, pictures: list[Image.Image]) -> None:
    (actual,) = Classifier(run, definitions={f"n{n}": f"what n{n} is" for n in (0, 1, 2, 4, 5)}, device="cpu")(
        pictures[:1]
    )
    meanings = {answer["wnid"]: answer["definition"] for answer in actual["levels"] + actual["top5"]}
    assert meanings == {wnid: f"what {wnid} is" if wnid != "n3" else "" for wnid in meanings}
    assert len(meanings) >= 5


def test_a_stream_keeps_the_order_and_names_what_cannot_be_read(run: Path, draw: Draw, encode: Encode) -> None:
    sources = [Source(f"{number}", b"junk" if number % 3 == 1 else encode(draw(seed=number))) for number in range(11)]
    actual = list(Classifier(run, batch_size=2, workers=3, device="cpu").stream(sources))
    assert [item.source for item in actual] == sources
    assert [item.error is not None for item in actual] == [number % 3 == 1 for number in range(11)]
    assert all((item.prediction is None) == (item.error is not None) for item in actual)
    alone = Classifier(run, device="cpu")([source.picture for number, source in enumerate(sources) if number % 3 != 1])
    streamed = [item.prediction for item in actual if item.prediction]
    for one, other in zip(streamed, alone, strict=True):
        assert one["top5"][0]["probability"] == pytest.approx(other["top5"][0]["probability"], rel=1e-4)
    with pytest.raises(ValueError, match="image 1: not an image"):
        Classifier(run, device="cpu")([source.picture for source in sources])


def test_an_image_may_come_as_a_path_its_bytes_an_open_file_or_pixels(
    run: Path, tmp_path: Path, draw: Draw, encode: Encode
) -> None:
    data = encode(draw(), "PNG")
    path = tmp_path / "swan.png"
    path.write_bytes(data)
    memory = io.BytesIO(data)
    memory.seek(0, io.SEEK_END)  # as after writing to it
    classifier = Classifier(run, device="cpu")
    pixels = np.asarray(draw())
    with path.open("rb") as file:
        several = [path, str(path), data, bytearray(data), memoryview(data), memory, file, draw(), pixels]
        together = classifier(several)
        alone = [classifier(item)[0] for item in several]
    assert together == [together[0]] * len(several)
    assert [item["top5"][0]["name"] for item in alone] == [together[0]["top5"][0]["name"]] * len(several)
    assert torch.equal(*extract_features(run, [memory, pixels], device="cpu"))
    (streamed,) = classifier.stream([Source("swan", memory)])
    assert streamed.prediction == alone[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((8, 8, 3)), r"image 0: is a ndarray of float64 \(8, 8, 3\); wanted a path"),
        (np.zeros((3, 8, 8), np.uint8), r"image 0: is a ndarray of uint8 \(3, 8, 8\); wanted"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"image 0: is a ndarray of uint8 \(2, 8, 8, 3\); wanted"),
        (np.zeros((0, 8, 3), np.uint8), r"image 0: is a ndarray of uint8 \(0, 8, 3\); wanted"),
        (torch.zeros(3, 8, 8), r"image 0: is a Tensor of torch.float32 \(3, 8, 8\); wanted"),
        ([b"", torch.zeros(3, 8, 8)], r"image 1: is a Tensor of torch.float32 \(3, 8, 8\); wanted"),
        (None, "image 0: is a NoneType; wanted a path"),
        (7, "image 0: is a int; wanted a path"),
        (io.StringIO("text"), "image 0: is a StringIO; wanted a path, an image's bytes or an open binary file"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(run: Path, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Classifier(run, device="cpu")(given)
    assert "\n" not in str(caught.value)
    if not isinstance(given, list):
        with pytest.raises(ValueError, match=message):
            extract_features(run, given, device="cpu")
        with pytest.raises(ValueError, match=message):
            list(Classifier(run, device="cpu").stream([Source("image 0", given)]))


def test_reading_ahead_is_bounded_and_ends_with_its_reader(run: Path, draw: Draw, encode: Encode) -> None:
    request, data = itertools.count(), encode(draw())

    def endless() -> Iterator[Source]:
        while True:
            yield Source(str(next(request)), data)

    batches = read_batches(endless(), open_model(run), batch_size=4, workers=2)
    for _ in range(3):
        rows, pixels = next(batches)
        assert len(rows) == 4
        assert pixels is not None
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (4, 3, 16, 16))
    assert next(request) <= 3 * 4 + 2 * 4 + 2
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("in21k-read")]


def test_a_network_that_timm_alone_knows_gives_the_likeliest_classes(
    make_timm: MakeTimm, pictures: list[Image.Image]
) -> None:
    (actual,) = Classifier(make_timm(1000), device="cpu")(pictures[0])
    assert (actual["levels"], actual["chain"]) == ([], [])
    assert len(actual["top5"]) == 5
    assert all(answer["wnid"].startswith("n") and not answer["name"].startswith("n0") for answer in actual["top5"])
    (actual,) = Classifier(make_timm(7), device="cpu")(pictures[0])
    assert {answer["wnid"] for answer in actual["top5"]} == {None}
    assert all(answer["name"].startswith("class ") for answer in actual["top5"])
    names = ["cat", "dog", "eel"]
    (actual,) = Classifier(make_timm(3, label_names=names), device="cpu")(pictures[0])
    assert sorted(answer["name"] for answer in actual["top5"]) == names


def test_a_tree_may_be_given_to_a_network_that_has_none(make_timm: MakeTimm, pictures: list[Image.Image]) -> None:
    tree = small_tree()
    name = make_timm(6, label_names=list(tree.wnids))
    (actual,) = Classifier(name, tree=tree, device="cpu")(pictures[0])
    assert [answer["level"] for answer in actual["levels"]] == [0, 1]
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
    ((_, pixels),) = read_batches([Source("", picture) for picture in pictures], opened)
    with torch.inference_mode():
        logits = opened.model(opened.normalize(pixels))
        torch.testing.assert_close(opened.model.get_classifier()(features), logits)
    averaged = extract_features(run, pictures, weights="ema", device="cpu")
    torch.testing.assert_close(averaged, extract_features(open_model(run, "ema"), pictures, device="cpu"))
    assert not torch.allclose(averaged, features, atol=1e-3)
    (tmp_path / "one.png").write_bytes(encode(pictures[3], "PNG"))
    one = extract_features(opened, tmp_path / "one.png", device="cpu")
    torch.testing.assert_close(one[0], features[3])
    for images, item in (([], "no image; wanted at least one"), ([b"junk"], "image 0: not an image")):
        with pytest.raises(ValueError, match=item):
            extract_features(opened, images, device="cpu")
    with Image.open(io.BytesIO(encode(pictures[3], "PNG"))) as opened_image:
        torch.testing.assert_close(extract_features(opened, opened_image, device="cpu")[0], features[3])
