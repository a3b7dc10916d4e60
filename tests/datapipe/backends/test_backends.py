from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch

from in21k.datapipe import available_backends, catalog, create_loader
from in21k.datapipe.catalog import BACKENDS
from in21k.datapipe.create import choose_backend
from in21k.shards import PreparedSet, ShardSet

CPU = torch.device("cpu")


@pytest.fixture
def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no DALI build, OpenCV or webdataset is installed; other packages of NVIDIA may be."""
    absent = ("nvidia.dali", "cv2", "webdataset")
    monkeypatch.setattr(catalog, "find_spec", lambda name: None if name in absent else ModuleSpec(name, loader=None))


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def with_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "find_spec", lambda name: ModuleSpec(name, loader=None))


def make(shards: ShardSet | Path, **arguments: Any) -> Any:
    return create_loader(shards, **({"split": "train", "batch_size": 4, "image_size": 32} | arguments))


def test_an_unknown_backend_is_refused_with_the_known_ones_and_the_nearest(shard_set: ShardSet) -> None:
    with pytest.raises(ValueError, match=r"'dali-cpu' is unknown; known: auto, .*torch.*did you mean dali_cpu\?"):
        make(shard_set, backend="dali-cpu")
    with pytest.raises(
        ValueError, match=r"'xyz' is unknown; known: auto, dali_gpu, dali_cpu, opencv, torch, webdataset$"
    ):
        make(shard_set, backend="xyz")


@pytest.mark.parametrize("backend", ["dali_cpu", "dali_gpu"])
@pytest.mark.parametrize("nvidia", [True, False], ids=["other packages of NVIDIA", "nothing of NVIDIA"])
def test_asking_for_dali_where_there_is_none_names_the_extras(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch, backend: str, nvidia: bool
) -> None:
    spec = ModuleSpec("nvidia", loader=None)
    monkeypatch.setattr(catalog, "find_spec", lambda name: spec if nvidia and name == "nvidia" else None)
    with pytest.raises(ValueError, match=rf"backend {backend}: DALI is not installed.*dali-cuda130.*dali-cuda110"):
        make(shard_set, backend=backend)
    assert available_backends()["torch"] is None


def test_without_dali_and_opencv_the_torch_backend_is_taken(
    shard_set: ShardSet, without_extras: None, without_gpu: None
) -> None:
    assert choose_backend("auto", CPU) == "torch"
    loader = make(shard_set, workers=1)
    assert loader.backend == "torch"
    loader.close()


def test_asking_for_a_gpu_where_there_is_none_is_refused_with_the_way_out(
    shard_set: ShardSet, with_extras: None, without_gpu: None
) -> None:
    with pytest.raises(ValueError, match="backend dali_gpu: no GPU is seen here; take dali_cpu"):
        make(shard_set, backend="dali_gpu")


def test_dali_gpu_hands_out_nothing_on_a_cpu(
    shard_set: ShardSet, with_extras: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="dali_gpu hands out batches on a GPU; device is cpu"):
        make(shard_set, backend="dali_gpu", device="cpu")


def test_auto_takes_dali_on_a_gpu_and_else_the_fastest_on_the_cpu(
    with_extras: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_backend("auto", torch.device("cuda", 0)) == "dali_gpu"
    assert choose_backend("auto", CPU) == "opencv"
    monkeypatch.setattr(catalog, "find_spec", lambda name: None if name == "cv2" else ModuleSpec(name, loader=None))
    assert choose_backend("auto", CPU) == "dali_cpu"
    with pytest.raises(ValueError, match=r"OpenCV is not installed; .*in21k\[opencv\]"):
        choose_backend("opencv", CPU)


def test_every_backend_says_whether_it_can_be_used(without_extras: None, without_gpu: None) -> None:
    actual = available_backends()
    assert list(actual) == list(BACKENDS)
    assert actual["torch"] is None
    assert "DALI is not installed" in str(actual["dali_cpu"])
    assert "pip install 'in21k[webdataset]'" in str(actual["webdataset"])


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"split": "test"}, "has no split 'test'; it holds train, val"),
        ({"batch_size": 0}, "batch_size is 0; wanted 1 or more"),
        ({"batch_size": 53}, r"train has 52 samples, fewer than one global batch of 53 .*lower batch_size"),
        ({"batch_size": 27, "world_size": 2}, r"one global batch of 54 \(2 ranks x 27\)"),
        ({"image_size": 0}, "image_size is 0; wanted 1 or more"),
        ({"workers": 0}, "workers is 0; wanted 1 or more"),
        ({"augment": "mirror"}, "augment is 'mirror'; wanted one of none, miil, inception, inception-ra"),
        ({"crop_pct": 1.2}, "crop_pct is 1.2; wanted more than 0 and at most 1"),
        ({"crop_pct": 0.9, "augment": "miil"}, "crop_pct goes with augment none; augment is 'miil'"),
        ({"max_bad_rate": -0.1}, "max_bad_rate is -0.1; wanted 0 to 1"),
        ({"normalize": "zscore"}, r"normalize is 'zscore'; wanted unit, imagenet or \[mean, deviation\]"),
        ({"normalize": (127.5, 58.4)}, r"normalize is \(127\.5, 58\.4\); .*mean 0 to 1"),
        ({"normalize": (0.5, 0)}, "deviation more than 0"),
        ({"normalize": [(0.5, 0.5), 0.5]}, "each a number or three"),
        ({"dtype": torch.float64}, r"dtype is torch\.float64; known: torch\.float32"),
        ({"dtype": torch.uint8}, "dtype uint8 holds pixels as they are; normalize is 'unit', wanted None"),
        ({"seed": -1}, r"seed is -1; wanted 0 to 2\^63 - 1"),
        ({"rank": 2, "world_size": 2}, "rank is 2; wanted 0 to 1"),
        ({"rank": -1}, "rank is -1; wanted 0 to 0"),
        ({"world_size": 0}, "world_size is 0; wanted 1 or more"),
    ],
)
def test_what_does_not_fit_together_is_refused_when_the_loader_is_made(
    shard_set: ShardSet, arguments: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(ValueError, match=wanted):
        make(shard_set, backend="torch", **arguments)


def test_folders_that_are_no_shard_set_are_refused(tmp_path: Path, prepared: PreparedSet) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        make(tmp_path / "missing", backend="torch")
    with pytest.raises(ValueError, match="wanted 'in21k-shards', which `in21k shard` makes"):
        make(prepared.path, backend="torch")


# Patterns and URLs

PATTERNS = ["x/{000000..000003}.tar", "a.tar", "a.tar.gz", "https://host/a.tar?key=1", "pipe:cat a", "a.tar::b.tar"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_goes_to_webdataset_and_to_no_other_backend(pattern: str) -> None:
    pytest.importorskip("webdataset")
    loader = make(pattern, epoch_samples=8)
    assert loader.backend == "webdataset"
    assert len(loader) == 2
    with pytest.raises(
        ValueError, match=r"backend torch needs a folder .*manifest; patterns and URLs go with backend web"
    ):
        make(pattern, backend="torch")


@pytest.mark.parametrize("folder", ["no/such/folder", "no/such/folder.d"])
def test_what_looks_like_a_folder_is_one(folder: str) -> None:
    for backend in ("auto", "torch"):
        with pytest.raises(ValueError, match="no such folder"):
            make(folder, backend=backend)


def test_a_pattern_without_the_library_names_the_extra(without_extras: None) -> None:
    for backend in ("auto", "webdataset"):
        with pytest.raises(
            ValueError, match=r"webdataset library is not installed; `pip install 'in21k\[webdataset\]'`"
        ):
            make("pipe:cat a", backend=backend, epoch_samples=8)


def test_auto_takes_webdataset_for_no_folder(shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ("nvidia", "nvidia.dali", "cv2")
    monkeypatch.setattr(catalog, "find_spec", lambda name: None if name in absent else ModuleSpec(name, loader=None))
    assert choose_backend("auto", CPU) == "torch"


def test_epoch_samples_is_for_streams(shard_set: ShardSet) -> None:
    with pytest.raises(ValueError, match=r"epoch_samples is 8; backend torch has an index.*take backend webdataset"):
        make(shard_set, backend="torch", epoch_samples=8)
