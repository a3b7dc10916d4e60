"""validate: judged by what it prints and the files it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

from in21k.models import create_model, label_space_of
from in21k.models.export import save_weights, timm_config
from in21k.shards import open_dataset
from in21k.shards.dataset import read_manifest
from in21k.training import load_run, open_model
from in21k.training.evaluation.measure import path_distance
from in21k.training.evaluation.predictions import load_predictions
from in21k.training.inference.classifier import Classifier
from in21k.training.inference.images import fit_image
from in21k.training.inference.pixel_model import PixelModel

from .conftest import run, run_json, write_label_list

MORE = {
    "per_third",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "calibration_error",
    "mistake_distance",
    "confusions",
}
Draw, Encode = Callable[..., Image.Image], Callable[..., bytes]


def save_for_timm(model: Any, folder: Path, wnids: list[str], **described: Any) -> str:
    """Write a network as a folder that timm opens, and return timm's name for it."""
    described = {"image_size": 32, "crop_pct": None, "normalize": "unit", **described}
    config = timm_config(model, architecture="resnet10t", model_args={}, wnids=wnids, names=wnids, **described)
    folder.mkdir()
    save_weights(model, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


@pytest.mark.parametrize("weights", ["last", "best"])
@pytest.mark.parametrize("backend", ["torch", "opencv", "dali_cpu"])
def test_validate_prints_what_training_measured(trained: Path, shards: Path, weights: str, backend: str) -> None:
    if backend == "dali_cpu":
        pytest.importorskip("nvidia.dali")
    result = run_json("validate", trained, "--data", shards, "--weights", weights, "--backend", backend)
    assert set(result) == MORE | {
        *("semantic_top1", "semantic_top1_commonest", "top1", "top5", "macro_top1", "num_samples", "per_level")
    }
    assert [set(row) for row in result["per_level"]] == [{"level", "num_classes", "num_samples", "top1"}] * len(
        result["per_level"]
    )
    metrics = json.loads((trained / "metrics.json").read_text())
    key = "semantic_top1" if weights == "last" else "best_semantic_top1"
    assert result["semantic_top1"] == pytest.approx(metrics[key])
    text = run("validate", trained / "checkpoints/last.pt", "--data", shards).stdout
    for words in (
        "always the commonest answer",
        "calibration error",
        "most confused",
        "steps apart",
        "training images",
        "medium",
    ):
        assert words in text


def test_metrics_from_saved_predictions_are_those_of_the_network(trained: Path, shards: Path, tmp_path: Path) -> None:
    saved, one, other = (tmp_path / f"{name}.parquet" for name in ("saved", "one", "other"))
    direct = run_json("validate", trained, "--data", shards, "--save-predictions", saved, "--per-class", one)
    assert run_json("validate", "--from-predictions", saved, "--per-class", other) == direct
    assert one.read_bytes() == other.read_bytes()
    classes = pq.read_table(one).to_pylist()
    assert [row["wnid"] for row in classes] == list(open_dataset(shards).tree.wnids)
    assert sum(row["num_samples"] for row in classes) == direct["num_samples"]
    manifest = {row["key"]: row["class_index"] for row in pq.read_table(shards / "manifest.parquet").to_pylist()}
    stored = pq.read_table(saved).to_pylist()
    assert len({row["key"] for row in stored}) == direct["num_samples"]
    assert all(manifest[row["key"]] == row["class_index"] for row in stored)
    assert str(shards) in run("validate", "--from-predictions", saved).stdout
    provenance = load_predictions(saved).provenance
    assert provenance["fingerprint"] == open_model(trained).fingerprint()
    assert provenance["shards"] == open_dataset(shards).fingerprint
    for words in (
        ("validate", trained, "--data", shards, "--save-predictions", saved),
        ("validate", "--from-predictions", saved, "--per-class", one),
    ):
        refused = run(*words)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "--overwrite" in refused.stderr
        assert run(*words, "--overwrite").exit_code == 0


def test_a_corrupt_image_is_left_out_and_the_others_keep_their_keys(
    trained: Path, shards: Path, tmp_path: Path, write_damaged: Callable[[Path], tuple[Path, str]]
) -> None:
    damaged, key = write_damaged(shards)
    whole, rest = tmp_path / "whole.parquet", tmp_path / "rest.parquet"
    run_json("validate", trained, "--data", shards, "--save-predictions", whole, "--batch-size", 5)
    run_json("validate", trained, "--data", damaged, "--save-predictions", rest, "--batch-size", 5)
    expected = [row for row in pq.read_table(whole).to_pylist() if row["key"] != key]
    actual = pq.read_table(rest).to_pylist()
    assert [row["key"] for row in actual] == [row["key"] for row in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], rel=1e-4)


@pytest.fixture
def write_damaged(tmp_path: Path) -> Callable[[Path], tuple[Path, str]]:
    """Copy shards and flip a byte of one validation image; return the copy and the image's key."""

    def write_damaged(shards: Path) -> tuple[Path, str]:
        copy = tmp_path / "damaged"
        for path in sorted(shards.rglob("*")):
            target = copy / path.relative_to(shards)
            if path.is_dir():
                target.mkdir(parents=True)
            else:
                target.parent.mkdir(exist_ok=True, parents=True)
                target.write_bytes(path.read_bytes())
        split = open_dataset(copy).split("val")
        with (copy / split.shard_names[0]).open("r+b") as file:
            file.seek(int(split.offsets[7]) + 100)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        return copy, split.key(7)

    return write_damaged


def on_two_ranks(*words: object) -> Any:
    """Run a command with `--json` under torchrun, and return what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    command += [sys.executable, "-c", "from in21k.cli.main import main; main()"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [*command, *map(str, words), "--device", "cpu", "--json"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_ranks_give_exactly_the_result_of_one(trained: Path, shards: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    words = ["validate", trained, "--data", shards, "--batch-size", 3, "--backend", "torch", "--workers", 1]
    alone = run_json(*words, "--save-predictions", one)
    assert on_two_ranks(*words, "--save-predictions", two) == alone
    assert one.read_bytes() == two.read_bytes()


def test_thirds_cut_the_classes_by_the_training_images_of_the_shards(trained: Path, shards: Path) -> None:
    result = run_json("validate", trained, "--data", shards)
    counts = sorted((row.num_train for row in open_dataset(shards).classes if row.kept), reverse=True)
    assert len(counts) == 8
    spans = [(row["num_classes"], row["max_train"], row["min_train"]) for row in result["per_third"]]
    assert spans == [(3, counts[0], counts[2]), (3, counts[3], counts[5]), (2, counts[6], counts[7])]
    assert sum(row["num_samples"] for row in result["per_third"]) == result["num_samples"]


def test_tta_answers_by_the_mean_logits_of_images_and_their_mirror_images(
    trained: Path, shards: Path, tmp_path: Path
) -> None:
    mirrored, plain = tmp_path / "mirrored.parquet", tmp_path / "plain.parquet"
    words = ("validate", trained, "--data", shards, "--backend", "opencv")
    run_json(*words, "--save-predictions", plain)
    result = run_json(*words, "--tta", "--save-predictions", mirrored)
    predictions, tree, provenance, _ = load_predictions(mirrored)
    assert provenance["tta"]
    assert not load_predictions(plain).provenance["tta"]
    assert (predictions.label_probabilities - load_predictions(plain).predictions.label_probabilities).abs().max() > 0
    classifier = Classifier(trained, device="cpu", flip=True)
    manifest = {row["key"]: row for row in read_manifest(open_dataset(shards)).to_pylist()}
    for row in pq.read_table(mirrored).to_pylist():
        place = manifest[row["key"]]
        with (shards / place["shard"]).open("rb") as shard:
            shard.seek(place["shard_offset"])
            (answer,) = classifier(shard.read(place["num_bytes"]))
        assert [tree.wnids[index] for index in row["top"]] == [likely["wnid"] for likely in answer["top5"]]
        expected = [likely["probability"] for likely in answer["top5"]]
        assert row["top_probability"] == pytest.approx(expected, abs=1e-5)
    assert run_json("validate", "--from-predictions", mirrored) == result


def test_tta_averages_the_logits_of_several_labels_too(labels_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward = PixelModel.forward

    def record(self: PixelModel, images: torch.Tensor) -> torch.Tensor:
        batches.append((images, forward(self, images)))
        return batches[-1][1]

    monkeypatch.setattr(PixelModel, "forward", record)
    run_json("validate", labels_run, "--data", labels_run.with_name("run-data"), "--tta")
    monkeypatch.undo()
    plain = PixelModel(open_model(labels_run)).eval()
    for images, logits in batches:
        with torch.inference_mode():
            expected = (plain(images) + plain(images.flip(3))) / 2
        assert torch.allclose(logits, expected, atol=1e-5)
        assert not torch.allclose(logits, plain(images), atol=1e-5)


def test_tta_answers_images_and_their_mirror_images_alike(imagenet1k: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    for path in imagenet1k.glob("*/ILSVRC*"):
        (mirror / path.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirror / path.parent.name / f"{path.stem}.png")
    assert len(list(mirror.rglob("*.png"))) == 20
    wnids = list(label_space_of(1_000).wnids)
    torch.manual_seed(2)
    name = save_for_timm(create_model("resnet10t", num_classes=len(wnids)).eval(), tmp_path / "model", wnids)
    one, other = (run_json("validate", name, "--imagenet1k", place, "--tta") for place in (imagenet1k, mirror))
    assert (one["top1"], one["top5"]) == (other["top1"], other["top5"])


def test_confused_pairs_are_counted_at_the_level_of_the_class(trained: Path, shards: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.parquet"
    result = run_json("validate", trained, "--data", shards, "--save-predictions", saved)
    tree = open_dataset(shards).tree
    levels = [level for level, classes in enumerate(tree.classes_by_level) if len(classes) > 1]
    pairs: Counter[tuple[str, str]] = Counter()
    for row in pq.read_table(saved).to_pylist():
        label = row["class_index"]
        if tree.levels[label] in levels:
            answer = row["level"][levels.index(tree.levels[label])]
            pairs[tree.wnids[label], tree.wnids[answer]] += answer != label
    values = {(row["wnid"], row["answer_wnid"]): row["count"] for row in result["confusions"]}
    assert values
    assert len(values) == min(20, len(+pairs))
    assert values.items() <= pairs.items()
    for row in result["confusions"]:
        label, answer = tree.find(row["wnid"]), tree.find(row["answer_wnid"])
        assert tree.levels[label] == tree.levels[answer]
        assert row["distance"] == path_distance(tree, label, answer)


def test_a_run_of_several_labels_is_measured_on_what_was_packed(labels_run: Path, tmp_path: Path) -> None:
    data, table = labels_run.parent / "run-data", tmp_path / "labels.parquet"
    words = ("validate", labels_run, "--data", data)
    result = run_json(*words, "--per-class", table)
    trained_to = json.loads((labels_run / "metrics.json").read_text())
    assert (
        trained_to.items()
        >= {name: pytest.approx(value) for name, value in result.items() if name != "per_label"}.items()
    )
    assert 0 < result["map_chance"] < result["map"] < 100
    assert set(result) == {
        *("map", "map_chance", "cp", "cr", "cf1", "op", "or", "of1", "num_samples", "num_labels", "per_label")
    }
    stored = pq.read_table(table)
    assert stored.column_names == ["wnid", "name", "num_samples", "average_precision"]
    assert stored.to_pylist() == result["per_label"]
    assert "--overwrite" in run(*words, "--per-class", table).stderr
    text = run("validate", labels_run / "checkpoints" / "best.pt", "--data", data).stdout
    for word in ("mAP ", "labels with an image 5", "equal scores for all", "CF1", "OF1", "hardest labels"):
        assert word in text


def test_what_is_measured_is_what_predict_answers(labels_run: Path) -> None:
    data = labels_run.parent / "run-data"
    result = run_json("validate", labels_run, "--data", data)
    label_sets = {row["wnid"]: row["labels"] for row in pq.read_table(data / "label_sets.parquet").to_pylist()}
    manifest = pq.read_table(data / "shards" / "manifest.parquet").to_pylist()
    labels_of = {row["key"]: {*label_sets[row["wnid"]]} for row in manifest}
    right, taken, held = Counter[str](), Counter[str](), Counter[str]()
    rows = run_json("predict", labels_run, data / "shards" / "val")
    assert len(rows) == result["num_samples"]
    for row in rows:
        actual, true = {answer["name"] for answer in row["labels"]}, labels_of[Path(row["image"]).stem]
        right.update(actual & true)
        taken.update(actual)
        held.update(true)
    assert {row["name"]: row["num_samples"] for row in result["per_label"]} == held
    assert result["op"] == pytest.approx(100 * right.total() / taken.total())
    assert result["or"] == pytest.approx(100 * right.total() / held.total())
    assert result["cp"] == pytest.approx(100 * sum(right[name] / max(taken[name], 1) for name in held) / len(held))
    assert result["cr"] == pytest.approx(100 * sum(right[name] / held[name] for name in held) / len(held))


@pytest.mark.slow
def test_two_ranks_measure_labels_exactly_as_one(labels_run: Path) -> None:
    words = ["validate", labels_run, "--data", labels_run.parent / "run-data", "--batch-size", 2]
    words += ["--backend", "torch", "--workers", 1]
    assert on_two_ranks(*words) == run_json(*words)


def test_other_lists_of_the_same_labels_are_measured(labels_run: Path, tmp_path: Path) -> None:
    one = write_label_list(
        tmp_path / "one.txt", {"cold": (40, 60, 200), "-": (110, 110, 110), "warm,red": (9, 9, 9)}, 4, 7
    )
    strange = write_label_list(tmp_path / "strange.txt", {"cold,red": (40, 60, 200), "pink": (250, 150, 150)}, 4, 7)
    for path in (one, strange):
        run_json(
            *("finetune", "--init", labels_run, "--data", path, "--loss", "asymmetric", "--val-share", 0.5),
            *("--pack-only", "--out", tmp_path / path.stem, "--workers", 1, "--set", "image_size=32"),
        )
    result = run_json("validate", labels_run, "--data", tmp_path / "one-data")
    values = {row["name"]: row["average_precision"] for row in result["per_label"]}
    assert list(values) == ["blue", "cold", "green", "red", "warm"]  # the run's labels, in its order
    assert result["num_labels"] == sum(value is not None for value in values.values()) == 3
    assert values["blue"] is values["green"] is None
    refused = run("validate", labels_run, "--data", tmp_path / "strange-data")
    assert refused.exit_code == 2
    assert "knows 5 labels, the images have 3, and it does not know 'pink'" in refused.stderr


def test_one_label_and_several_are_not_mixed_up(
    labels_run: Path, trained: Path, shards: Path, imagenet1k: Path, tmp_path: Path
) -> None:
    data = labels_run.parent / "run-data"
    for words, item in (
        ((labels_run, "--data", shards), "gives images several labels, and those of"),
        ((labels_run, "--data", data / "shards"), "not the shards in it"),
        ((trained, "--data", data), "its images have several labels, and"),
        (
            (labels_run, "--imagenet1k", imagenet1k),
            "--imagenet1k and --save-predictions are about networks that give one",
        ),
        (
            (labels_run, "--data", data, "--save-predictions", tmp_path / "p.parquet"),
            "and --save-predictions are about",
        ),
    ):
        result = run("validate", *words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert item in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_packed_with_one_label_an_image_are_data_too(labels_run: Path, tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    for name, colour in {"cat": (200, 60, 40), "dog": (40, 60, 200)}.items():
        write_label_list(tmp_path / f"{name}.txt", {name: colour}, 4, 3)
        (tmp_path / name).rename(tmp_path / "pets" / name)
    words = ("--out", tmp_path / "run", "--backend", "opencv", "--workers", 1, "--loss", "bce", "--val-share", 0.5)
    sets = {"batch_size": 4, "max_steps": 1, "image_size": 32, "trackers": "[]", "label_smoothing": 0}
    run_json(
        *("finetune", "--init", labels_run, "--data", tmp_path / "pets", *words),
        *(word for key, value in sets.items() for word in ("--set", f"{key}={value}")),
    )
    saved = tmp_path / "saved.parquet"
    result = run_json("validate", tmp_path / "run", "--data", tmp_path / "run-data", "--save-predictions", saved)
    assert result["num_samples"] == 4
    rows = pq.read_table(saved).to_pylist()
    # Binary cross-entropy: a probability a class, which add up to nothing in particular.
    assert all(sum(row["top_probability"]) != pytest.approx(1, abs=1e-4) for row in rows)
    assert all(row["probability"] in row["top_probability"] for row in rows)
    assert run_json("validate", "--from-predictions", saved) == result


def test_a_timm_model_that_covers_the_classes_is_measured_by_its_outputs_of_them(
    trained: Path, shards: Path, tmp_path: Path
) -> None:
    run_of_ours = load_run(trained)
    wnids = list(run_of_ours.tree.wnids)
    model = create_model("resnet10t", num_classes=len(wnids) + 2)
    tensors = run_of_ours.model.state_dict()
    order = torch.tensor([3, 1, 0, 2, *range(4, len(wnids))])
    for name in ("fc.weight", "fc.bias"):  # in another order, and two classes more, which always win
        rest = model.state_dict()[name][:2] + (1000 if name == "fc.bias" else 0)
        tensors[name] = torch.cat([tensors[name][order], rest])
    model.load_state_dict(tensors)
    others = [wnids[index] for index in order.tolist()] + ["n00000001", "n00000002"]
    name = save_for_timm(model, tmp_path / "model", others)
    size = run_of_ours.settings.image_size
    assert size == 32
    direct = run_json("validate", trained, "--data", shards, "--backend", "torch", "--batch-size", 16)
    output = run_json("validate", name, "--data", shards, "--backend", "torch", "--batch-size", 16)
    for key in ("semantic_top1", "top1", "top5", "per_level", "macro_f1", "confusions"):
        assert output[key] == direct[key]
    refused = run("validate", save_for_timm(model, tmp_path / "lacks", ["n1", *others[1:]]), "--data", shards)
    assert refused.exit_code == 2
    assert "lacks 1 of the data set's 8" in refused.stderr


@pytest.fixture(scope="module")
def imagenet1k(tmp_path_factory: pytest.TempPathFactory, draw: Draw, encode: Encode) -> Path:
    """Class folders of ImageNet-1K: two that 21K-P has too, one that it has not, and something else."""
    folder = tmp_path_factory.mktemp("imagenet1k") / "val"
    in1k, in21k = label_space_of(1_000).wnids, set(label_space_of(11_221).wnids)
    shared = [wnid for wnid in in1k if wnid in in21k]
    lacking = next(wnid for wnid in in1k if wnid not in in21k)
    for number, wnid in enumerate([shared[0], shared[700], lacking, "other"]):
        (folder / wnid).mkdir(parents=True)
        for image in range(5):
            data = encode(draw(40 + image, 50, seed=10 * number + image))
            (folder / wnid / f"ILSVRC2012_val_{image}.JPEG").write_bytes(data)
    (folder / shared[0] / "broken.JPEG").write_bytes(b"junk")
    return folder


def test_imagenet1k_needs_no_training(imagenet1k: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wnids = label_space_of(11_221).wnids
    torch.manual_seed(0)
    model = create_model("resnet10t", num_classes=len(wnids)).eval()
    name = save_for_timm(model, tmp_path / "model", list(wnids), crop_pct=0.8)
    result = run("validate", name, "--imagenet1k", imagenet1k, "--batch-size", 4, "--json")
    actual = json.loads(result.stdout)
    assert (actual["num_classes"], actual["num_imagenet1k_classes"]) == (991, 1000)
    assert (actual["num_samples"], actual["num_left_out"], actual["num_unreadable"]) == (10, 5, 1)
    assert "broken.JPEG: not an image" in caplog.text
    shared = [wnid for wnid in label_space_of(1_000).wnids if wnid in set(wnids)]
    columns = torch.tensor([wnids.index(wnid) for wnid in shared])
    hits = [0, 0]
    for wnid in {path.parent.name for path in imagenet1k.glob("*/ILSVRC*")} & set(shared):
        for path in sorted((imagenet1k / wnid).glob("ILSVRC*")):
            with Image.open(path) as opened, torch.inference_mode():
                logits = model(fit_image(opened, 32, 0.8)[None].float() / 255)[0, columns]
            top5 = logits.topk(5).indices.tolist()
            hits[0] += top5[0] == shared.index(wnid)
            hits[1] += shared.index(wnid) in top5
    assert (actual["top1"], actual["top5"]) == (10 * hits[0], 10 * hits[1])
    assert "shares with ImageNet-1K 991" in run("validate", name, "--imagenet1k", imagenet1k).stdout


@pytest.mark.slow
def test_two_ranks_measure_imagenet1k_exactly_as_one(imagenet1k: Path, tmp_path: Path) -> None:
    wnids = label_space_of(11_221).wnids
    name = save_for_timm(create_model("resnet10t", num_classes=len(wnids)).eval(), tmp_path / "model", list(wnids))
    words = ("validate", name, "--imagenet1k", imagenet1k, "--batch-size", 4, "--device", "cpu")
    assert on_two_ranks(*words) == run_json(*words)


def add_folder(tar: tarfile.TarFile, folder: Path) -> None:
    for path in sorted(folder.rglob("*.JPEG")):
        tar.add(path, path.relative_to(folder).as_posix())


def test_imagenet1k_in_a_tar_or_an_ilsvrc_folder_gives_what_it_gives_in_folders(
    imagenet1k: Path, tmp_path: Path
) -> None:
    wnids = list(label_space_of(1_000).wnids)
    torch.manual_seed(3)
    name = save_for_timm(create_model("resnet10t", num_classes=1_000).eval(), tmp_path / "model", wnids)
    words = ("validate", name, "--batch-size", 4, "--imagenet1k")
    expected = run_json(*words, imagenet1k)
    assert (expected["num_samples"], expected["num_unreadable"]) == (15, 1)
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        add_folder(tar, imagenet1k.parent)  # val/n01440764/..., among others
    assert run_json(*words, tmp_path / "val.tar") == expected
    with tarfile.open(tmp_path / "classes.tar", "w") as tar:  # a tar of class tars
        for folder in sorted(imagenet1k.iterdir()):
            with tarfile.open(tmp_path / f"{folder.name}.tar", "w") as inner:
                add_folder(inner, folder)
            tar.add(tmp_path / f"{folder.name}.tar", f"{folder.name}.tar")
    assert run_json(*words, tmp_path / "classes.tar") == expected
    flat = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    flat.mkdir(parents=True)
    rows = ["ImageId,PredictionString"]
    for number, path in enumerate(sorted(imagenet1k.glob("n*/*.JPEG"))):
        (flat / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(path.read_bytes())
        rows.append(f"ILSVRC2012_val_{number:08d},{path.parent.name} 1 2 3 4 {path.parent.name} 5 6 7 8")
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    for place in (tmp_path / "ILSVRC", flat):
        assert run_json(*words, place) == expected
    (tmp_path / "cut.tar").write_bytes((tmp_path / "val.tar").read_bytes()[:9_000])
    refused = run(*words, tmp_path / "cut.tar")
    assert refused.exit_code == 2
    assert "give a tar that is whole" in refused.stderr
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000000,dog 1 2 3 4\n")
    refused = run(*words, flat)
    assert refused.exit_code == 2
    assert "LOC_val_solution.csv: wanted a header, and rows such as" in refused.stderr


def test_imagenet1k_in_shards_gives_what_it_gives_in_folders(imagenet1k: Path, tmp_path: Path) -> None:
    words = ("--rare-threshold", 0, "--val-per-class", 4, "--resize", "none", "--max-reject-rate", 1, "--workers", 1)
    run_json("preprocess", "folder", imagenet1k, tmp_path / "prepared", *words)
    run_json("shard", tmp_path / "prepared", tmp_path / "shards", "--workers", 1)
    # A head that tells the two shared classes apart by chance, so that some answers are right.
    wnids = [path.name for path in sorted(imagenet1k.iterdir()) if path.name != "other"]
    known = set(label_space_of(11_221).wnids)
    torch.manual_seed(1)
    wnids = [wnid for wnid in wnids if wnid in known]
    name = save_for_timm(create_model("resnet10t", num_classes=2).eval(), tmp_path / "model", wnids)
    folder = tmp_path / "first"
    for wnid in wnids:  # the images that --val-per-class takes
        (folder / wnid).mkdir(parents=True)
        for path in sorted(path for path in (imagenet1k / wnid).glob("*.JPEG") if path.name != "broken.JPEG")[:4]:
            (folder / wnid / path.name).write_bytes(path.read_bytes())
    from_shards = run_json("validate", name, "--imagenet1k", tmp_path / "shards", "--backend", "torch", "--workers", 1)
    from_folder = run_json("validate", name, "--imagenet1k", folder)
    assert from_shards["num_samples"] == from_folder["num_samples"] == 8
    assert from_shards["num_left_out"] == 8  # of the class that 21K-P lacks, and of `other`
    assert (from_shards["top1"], from_shards["num_classes"]) == (from_folder["top1"], 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("RUN",), "give one of --data"),
        (("RUN", "--data", "SHARDS", "--imagenet1k", "x"), "give one of --data"),
        (("--data", "SHARDS"), "all else takes one"),
        (("RUN", "--from-predictions", "x"), "takes no network"),
        (("RUN", "--imagenet1k", "x", "--save-predictions", "y.parquet"), "--save-predictions goes with --data"),
        (("RUN", "--imagenet1k", "x", "--per-class", "y.parquet"), "--per-class goes with"),
        (("RUN", "--data", "SHARDS", "--per-class", "y.parquet", "--save-predictions", "y.parquet"), "wanted two"),
        (("RUN", "--data", "SHARDS", "--per-class", "y.csv"), "ends in .parquet"),
        (("--from-predictions", "nowhere.parquet"), "no such file"),
        (("--from-predictions", "x", "--tta"), "--tta goes with a network"),
        (("RUN", "--imagenet1k", "nowhere"), "share none"),
        (("RUN", "--data", "SHARDS", "--weights", "ema"), "without a moving average"),
        (("RUN", "--data", "SHARDS", "--batch-size", "99999999999999999999"), "is not in the range 1<=x<=65536"),
        (
            ("RUN", "--data", "nowhere"),
            "nowhere: does not exist; wanted shards (`in21k shard`), or what `in21k finetune`",
        ),
    ],
)
def test_words_that_do_not_fit_are_named(
    words: tuple[str, ...],
    message: str,
    trained: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("validate", *({"RUN": trained, "SHARDS": shards}.get(word, word) for word in words))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_holds_no_imagenet1k_is_refused(imagenet1k: Path, tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=1000)
    name = save_for_timm(model, tmp_path / "model", list(label_space_of(1_000).wnids))
    for data, item in (
        (tmp_path / "nowhere", "does not exist"),
        (imagenet1k / "other", "has no image in a folder or a tar named by a wnid"),
        (tmp_path / "model" / "config.json", "is not a tar"),
    ):
        result = run("validate", name, "--imagenet1k", data)
        assert result.exit_code == 2
        assert item in result.stderr
    nobody = save_for_timm(timm.create_model("resnet10t", num_classes=7), tmp_path / "seven", [])
    config = json.loads((tmp_path / "seven" / "config.json").read_text())
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = 7
    (tmp_path / "seven" / "config.json").write_text(json.dumps(config))
    result = run("validate", nobody, "--imagenet1k", imagenet1k)
    assert result.exit_code == 2
    assert "the classes of its outputs are unknown" in result.stderr
