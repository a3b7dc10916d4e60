"""What runs show of themselves: logs as curves, records, heat maps and flat features, each beside a slow reference."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from in21k.shards.tree import SemanticTree
from in21k.training import TrainSettings, train_model
from in21k.training.features.feature_map import flatten, share_alike
from in21k.training.inference.heat_maps import heat_maps
from in21k.training.runs.run_log import read_log, thin
from in21k.training.runs.run_record import read_record, telling_settings


@pytest.fixture
def finished(tree: SemanticTree, make_loader: Any, make_model: Any, settings: TrainSettings, run_path: Path) -> Path:
    """A finished run of three epochs of 6 steps with a moving average."""
    train_model(
        model=make_model(),
        loader=make_loader(),
        val_loader=make_loader(),
        tree=tree,
        settings=replace(settings, ema=0.9),
        folder=run_path,
    )
    return run_path


def write_log(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_log_is_read_up_to_the_line_in_which_the_run_was_killed(tmp_path: Path) -> None:
    step = {"epoch": 0, "lr": 0.1, "loss": 2.0}
    path = write_log(
        tmp_path / "log.jsonl",
        {"step": 1, **step},
        {"step": 2, **step, "loss": None, "kd_loss": 0.5},
        {"step": 2, "epoch": 0, "validation": {"top1": 3.0}},
    )
    with path.open("a") as file:
        file.write('{"step": 3, "epo')
    log = read_log(path)
    assert (log.steps.tolist(), log.epochs.tolist()) == ([1, 2], [0, 0])
    np.testing.assert_equal(log.scalars["loss"], [2.0, math.nan])
    np.testing.assert_equal(log.scalars["kd_loss"], [math.nan, 0.5])
    assert [tuple(validation) for validation in log.validations] == [(2, 0, {"top1": 3.0})]
    assert len(read_log(tmp_path / "none.jsonl").steps) == 0


@pytest.mark.parametrize("text", ['{"steps": 1}\n', "[1]\n", '{"step": 1, "epoch": 0, "loss": "much"}\n'])
def test_a_file_of_other_lines_is_no_log(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(ValueError, match="no log of a run"):
        read_log(tmp_path / "log.jsonl")


@given(
    st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan)), max_size=60),
    st.integers(1, 80),
)
def test_a_thinned_curve_has_each_value_in_one_point(values: list[float], num_points: int) -> None:
    places = np.arange(10, 10 + len(values))
    curve = thin(places, np.array(values, np.float64), num_points)
    held = [(place, value) for place, value in zip(places.tolist(), values, strict=True) if not math.isnan(value)]
    assert len(curve.means) == min(num_points, len(held))
    parts = [[pair for pair in held if pair[0] <= end] for end in curve.places]
    parts = [part[len(before) :] for before, part in zip([[], *parts], parts, strict=False)]
    assert [pair for part in parts for pair in part] == held
    assert all(parts)
    for part, mean, low, high in zip(parts, *curve[1:], strict=True):
        of_part = [value for _, value in part]
        assert (low, high) == (min(of_part), max(of_part))
        assert mean == pytest.approx(sum(of_part) / len(of_part), abs=1e-6)


def test_a_run_is_recorded_as_it_was(finished: Path) -> None:
    record = read_record(finished)
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert record.log.steps.tolist() == list(range(1, 19))
    assert record.log.scalars["loss"].tolist() == [line["loss"] for line in steps]
    assert record.metrics is not None
    assert record.validation is not None
    assert record.validation["semantic_top1"] == record.metrics["semantic_top1"]
    assert record.best == (record.metrics["best_semantic_top1"], record.metrics["best_epoch"])
    assert record.images_per_step == 16
    assert record.whole_epochs() == record.epochs()
    for number, epoch in enumerate(record.epochs()):
        seconds = sum(16 / line["images_per_s"] for line in steps if line["epoch"] == number)
        assert (epoch.number, epoch.num_steps) == (number, 6)
        assert epoch.seconds == pytest.approx(seconds)


def test_what_an_unfinished_run_lacks_is_none(finished: Path) -> None:
    (finished / "metrics.json").unlink()
    lines = (finished / "log.jsonl").read_text().splitlines()
    (finished / "log.jsonl").write_text("\n".join(lines[:4]) + "\n")
    (finished / "nonfinite.json").write_text('{"step": 5, "ranks": []}')
    record = read_record(finished)
    assert (record.metrics, record.validation, record.best, record.headline) == (None, None, None, None)
    assert record.nonfinite == {"step": 5, "ranks": []}
    assert [epoch.num_steps for epoch in record.epochs()] == [4]
    assert record.whole_epochs() == []
    (finished / "log.jsonl").unlink()
    assert read_record(finished).epochs() == []
    with pytest.raises(ValueError, match="no run of in21k train"):
        read_record(finished / "checkpoints")


def test_only_telling_settings_are_told(finished: Path) -> None:
    config = read_record(finished).config
    assert telling_settings([config]) == {
        "model": ["resnet50", "resnet18"],
        "image_size": [None, 16],
        "batch_size": [64, 16],
        "epochs": [80, 3],
        "lr": [3e-4, 0.02],
        "amp": ["auto", "off"],
        "ema": [None, 0.9],
    }
    other = {**config, "lr": 1.0, "model_args": {"depth": 4}, "data": {**config["data"], "world_size": 2}}
    assert telling_settings([config, other, config]) == {
        "lr": [0.02, 1.0, 0.02],
        "model_args.depth": [None, 4, None],
        "data.world_size": [1, 2, 1],
    }
    assert telling_settings([config, config]) == {}


def scaled(maps: Tensor) -> Tensor:
    return torch.stack([(item - item.min()) / (item.max() - item.min()) for item in maps])


def small_swin() -> nn.Module:
    sizes: dict[str, Any] = {
        "img_size": 64,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (1, 1, 2),
        "num_heads": (2, 2, 4),
    }
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=7, **sizes)


@pytest.mark.parametrize(
    ("make", "weight", "size", "side"),
    [
        (lambda: timm.create_model("resnet10t", num_classes=7), "fc.weight", 128, 4),
        (small_swin, "head.fc.weight", 64, 4),  # its features have their channels last
    ],
    ids=["resnet", "swin"],
)
def test_grad_cam_of_a_pooled_linear_head_is_the_class_activation_map(
    make: Any, weight: str, size: int, side: int
) -> None:
    torch.manual_seed(0)
    model, images = make().eval(), torch.rand(3, 3, size, size)
    actual = heat_maps(model, images)
    with torch.no_grad():
        features, logits = model.forward_features(images), model(images)
    channels_last = features if features.shape[1] == features.shape[2] else features.permute(0, 2, 3, 1)
    of_answer = dict(model.named_parameters())[weight][actual.answers]
    expected = torch.einsum("bhwc,bc->bhw", channels_last, of_answer).relu()
    assert actual.kind == "Grad-CAM"
    assert actual.maps.shape == (3, side, side)
    torch.testing.assert_close(actual.maps, scaled(expected.detach()), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual.answers, logits.argmax(dim=1))
    torch.testing.assert_close(actual.probabilities, logits.softmax(dim=1).amax(dim=1))


def test_of_small_images_the_last_layer_that_still_has_places_is_taken() -> None:
    torch.manual_seed(0)
    model, images = timm.create_model("resnet10t", num_classes=7).eval(), torch.rand(2, 3, 32, 32)
    actual = heat_maps(model, images)
    kept: list[Tensor] = []
    model.layer2.register_forward_hook(lambda _, __, output: kept.append(output.requires_grad_()))  # type: ignore[union-attr]
    logits = model(images)
    logits.amax(dim=1).sum().backward(inputs=kept)
    assert kept[0].grad is not None
    weights = kept[0].grad.mean((2, 3), keepdim=True)
    torch.testing.assert_close(
        actual.maps, scaled((kept[0] * weights).sum(dim=1).relu().detach()), atol=1e-4, rtol=1e-4
    )
    assert actual.maps.shape == (2, 4, 4)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_attention_is_rolled_out_as_a_slow_loop_does(pool: str) -> None:
    torch.manual_seed(0)
    args: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    model: Any = timm.create_model("vit_tiny_patch16_224", num_classes=7, global_pool=pool, **args).eval()
    nn.init.normal_(model.head.weight)
    images, seen = torch.rand(2, 3, 32, 32), list[Tensor]()
    hooks = [block.attn.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0])) for block in model.blocks]
    with torch.no_grad():
        logits = model(images)
    for hook in hooks:
        hook.remove()
    expected: list[Tensor] = []
    for image in range(2):
        flow = torch.eye(17)
        for block, tokens in zip(model.blocks, seen, strict=True):
            query, key, _ = block.attn.qkv(tokens[image]).reshape(17, 3, 2, 12).permute(1, 2, 0, 3)
            attention = torch.stack([(query[h] @ key[h].T / math.sqrt(12)).softmax(dim=1) for h in range(2)]).mean(
                dim=0
            )
            flow = (0.5 * attention + 0.5 * torch.eye(17)) @ flow
        expected.append((flow[0, 1:] if pool == "token" else flow[1:, 1:].mean(dim=0)).reshape(4, 4))
    actual = heat_maps(model, images)
    assert actual.kind == "attention roll-out"
    torch.testing.assert_close(actual.maps, scaled(torch.stack(expected).detach()), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual.answers, logits.argmax(dim=1))
    assert all(block.attn.fused_attn for block in model.blocks)


def test_a_network_without_places_is_refused(make_model: Any) -> None:
    with pytest.raises(ValueError, match="is not a timm network"):
        heat_maps(make_model(), torch.rand(1, 3, 16, 16))


def clusters(num_each: int = 25) -> tuple[Tensor, Tensor]:
    """Three clouds in 20 dimensions, and which point is of which."""
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(3, 20, generator=generator)
    labels = torch.arange(3).repeat_interleave(num_each)
    return centres[labels] + torch.randn(3 * num_each, 20, generator=generator), labels


def test_what_lies_together_does_so_when_laid_flat() -> None:
    features, labels = clusters()
    places = flatten(features, seed=1)
    assert places.shape == (75, 2)
    assert share_alike(places, labels) == 1.0
    torch.testing.assert_close(places, flatten(features, seed=1), rtol=0, atol=0)


@pytest.mark.parametrize(("num_points", "width"), [(8, 3), (8, 1), (9, 64)])
def test_few_or_equal_points_have_places_too(num_points: int, width: int) -> None:
    assert flatten(torch.randn(num_points, width)).isfinite().all()
    assert flatten(torch.ones(num_points, width)).isfinite().all()
    with pytest.raises(ValueError, match="7 images are too few for a map; wanted 8 or more"):
        flatten(torch.randn(7, width))


def test_alike_neighbours_are_counted_as_a_slow_search_counts_them() -> None:
    features, _ = clusters(7)
    labels = torch.arange(21) % 4
    right = 0
    for point in range(21):
        others = sorted((float((features[point] - features[o]).norm()), o) for o in range(21) if o != point)[:10]
        right += sum(int(labels[other] == labels[point]) for _, other in others)
    assert share_alike(features, labels) == pytest.approx(right / 210)
