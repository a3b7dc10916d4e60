"""jobs.finetune: weights to other data, from Python."""

from __future__ import annotations

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
