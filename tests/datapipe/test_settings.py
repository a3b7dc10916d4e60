"""The settings of a loader: declared once, given whole or by keyword, and part of a training's."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from in21k.datapipe import LoaderSettings, create_loader
from in21k.datapipe.settings import LoaderConfig, loader_values
from in21k.shards import ShardSet
from in21k.training import TrainSettings


def first_batch(shards: ShardSet, **arguments: Any) -> torch.Tensor:
    loader = create_loader(shards, split="train", **arguments)
    try:
        return next(iter(loader))[0]
    finally:
        loader.close()


def test_settings_by_keyword_and_in_one_object_make_equal_loaders(shard_set: ShardSet) -> None:
    values: dict[str, Any] = {"backend": "torch", "batch_size": 8, "augment": "miil", "seed": 3, "workers": 1}
    whole = first_batch(shard_set, settings=LoaderSettings(**values))
    assert whole.shape == (8, 3, 32, 32)  # the size that the shards hold
    assert torch.equal(first_batch(shard_set, **values), whole)
    other = LoaderSettings(**{**values, "seed": 4})
    assert not torch.equal(first_batch(shard_set, settings=other), whole)
    assert torch.equal(first_batch(shard_set, settings=other, seed=3), whole)  # a keyword wins


def test_the_settings_of_a_training_are_those_of_its_loader(shard_set: ShardSet) -> None:
    changed = {"backend": "torch", "batch_size": 8, "image_size": 24, "workers": 1, "normalize": "imagenet", "seed": 5}
    training = TrainSettings(**changed)
    assert loader_values(training) == loader_values(LoaderSettings(**changed))
    loader = create_loader(shard_set, split="train", settings=training)
    loader.close()
    assert {name: getattr(loader.settings, name) for name in changed} == changed


def test_no_setting_of_a_loader_is_declared_a_second_time() -> None:
    names = {declared.name for declared in fields(LoaderSettings)}
    assert names.isdisjoint(TrainSettings.__annotations__)
    assert names & set(LoaderConfig.__annotations__) == {"image_size"}  # which is known there


def test_an_unknown_keyword_is_refused(shard_set: ShardSet) -> None:
    with pytest.raises(TypeError, match="batchsize"):
        create_loader(shard_set, split="train", batchsize=8)


def test_shards_of_images_of_many_sizes_want_a_size(shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardSet, "image_size", None)
    with pytest.raises(ValueError, match="its images keep their own sizes; give image_size"):
        create_loader(shard_set, split="train")


def test_a_training_refuses_what_its_loader_refuses_and_names_the_way_out() -> None:
    for changed in ({"hw_decoder_load": 2.0}, {"max_bad_rate": -1.0}, {"augment": "mirror"}, {"workers": 0}):
        (name,) = changed
        with pytest.raises(ValueError, match=f"^{name} is .*; wanted [^(]*$"):
            LoaderSettings(**changed)
        with pytest.raises(ValueError, match=rf"^{name} is .*; wanted .* \(--set {name}=\.\.\.\)$"):
            replace(TrainSettings(), **changed)
