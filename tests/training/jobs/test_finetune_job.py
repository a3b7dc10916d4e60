"""jobs.finetune: weights to other data, from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from in21k.shards import ShardSet
from in21k.training import jobs, load_run

SETTINGS: dict[str, Any] = {
    **{"backend": "torch", "batch_size": 8, "epochs": 1, "image_size": 32, "workers": 1, "trackers": []}
}


@pytest.fixture(scope="module")
def donor(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    path = tmp_path_factory.mktemp("finetune") / "donor"
    jobs.train(shard_set, path, settings={**SETTINGS, "model": "resnet10t"}, device="cpu")
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of coloured images."""
    home = tmp_path_factory.mktemp("folders") / "photos"
    for name, colour in {"red": (200, 40, 40), "blue": (40, 40, 200)}.items():
        (home / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.full((40, 36, 3), colour, np.uint8) + np.uint8(number)
            Image.fromarray(pixels).save(home / name / f"{number}.png")
    return home


def test_class_folders_are_packed_and_trained_on(donor: Path, folders: Path, tmp_path: Path) -> None:
    packing = jobs.Packing(val_share=0.2, out=tmp_path / "packed", workers=1)
    plan = jobs.plan_finetuning(donor, folders, tmp_path / "run", settings=SETTINGS, packing=packing, device="cpu")
    assert list(tmp_path.iterdir()) == []
    assert (plan["packed"], plan["num_samples"]) == (False, {"train": 16, "val": 4})
    metrics = jobs.finetune(donor, folders, tmp_path / "run", settings=SETTINGS, packing=packing, device="cpu")
    assert isinstance(metrics, dict)
    assert metrics["num_samples"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {"packed", "run"}
    assert load_run(tmp_path / "run").tree.names == ("blue", "red")
    assert load_run(tmp_path / "run").settings.model == "resnet10t"  # that of the weights


def test_annotation_files_of_coco_and_voc_are_packed_with_all_their_labels(donor: Path, tmp_path: Path) -> None:
    labels = {"1": ["dog"], "2": ["person", "dog"], "3": [], "4": ["person"]}
    images = tmp_path / "VOC2012" / "JPEGImages"
    images.mkdir(parents=True)
    (tmp_path / "VOC2012" / "Annotations").mkdir()
    for stem, names in labels.items():
        Image.fromarray(np.full((40, 36, 3), 50 * int(stem), np.uint8)).save(images / f"{stem}.jpg")
        objects = "".join(f"<object><name>{name}</name></object>" for name in names)
        (tmp_path / "VOC2012" / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{objects}</annotation>")
    instances = {
        "images": [{"id": int(stem), "file_name": f"{stem}.jpg"} for stem in labels],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "person"}],
        "annotations": [
            {"image_id": int(stem), "category_id": 1 + (name == "person")}
            for stem, names in labels.items()
            for name in names
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    settings = {**SETTINGS, "loss": "asymmetric", "label_smoothing": 0}
    packing = jobs.Packing(val_share=0, workers=1)
    for data in (f"coco:{images},{tmp_path / 'instances.json'}", f"voc:{tmp_path / 'VOC2012'}"):
        out = tmp_path / data[:3]
        packed = jobs.pack_images(donor, data, out, settings=settings, packing=packing)
        assert packed.labels == ["dog", "person"]
        assert packed.sets is not None
        counts = dict(zip(map(tuple, packed.sets), (row.num_train for row in packed.shards.classes), strict=True))
        assert counts == {("dog",): 1, ("dog", "person"): 1, (): 1, ("person",): 1}
    with pytest.raises(ValueError, match="the images have several labels"):
        jobs.pack_images(donor, data, tmp_path / "other", settings=SETTINGS, packing=packing)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        jobs.pack_images(donor, "coco:nowhere,x.json", tmp_path / "other", settings=settings, packing=packing)


def test_packing_alone_leaves_no_run(donor: Path, folders: Path, tmp_path: Path) -> None:
    packing = jobs.Packing(workers=1)
    packed = jobs.pack_images(donor, folders, tmp_path / "run", settings=SETTINGS, packing=packing)
    assert packed.shards.num_samples == {"train": 18, "val": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["run-data"]


def test_settings_of_packing_are_refused_for_shards(donor: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    packing = jobs.Packing(val_share=0.5, out=tmp_path / "packed")
    with pytest.raises(ValueError, match="leave out what is about packing: --val-share, --data-out"):
        jobs.finetune(donor, shard_set.path, tmp_path / "run", settings=SETTINGS, packing=packing, device="cpu")
    with pytest.raises(ValueError, match="leave out what is about packing: --pack-only"):
        jobs.pack_images(donor, shard_set.path, tmp_path / "run", settings=SETTINGS)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_leaves_nothing_to_train_on_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="wanted a share of the images"):
        jobs.Packing(val_share=share)
