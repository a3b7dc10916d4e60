"""models: which networks there are, which know ImageNet-21K, and which can teach a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from in21k.models import label_space_of, pretrained_21k
from in21k.shards import open_dataset

from ..models.published_files import write_published
from .conftest import run, run_json


def test_a_pattern_lists_architectures_and_their_published_weights() -> None:
    rows: list[dict[str, Any]] = run_json("models", "tresnet")
    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == sorted(by_name)
    assert {"tresnet_m", "tresnet_v2_l", "tresnet_m.miil_in21k", "tresnet_v2_l.miil_in21k"} <= set(by_name)
    plain, published = by_name["tresnet_m"], by_name["tresnet_m.miil_in21k"]
    assert (plain["label_space"], published["label_space"], published["num_classes"]) == (None, "fall11p", 11_221)
    # The other head: 2,048 weights and a bias for each class more.
    assert published["num_parameters"] - plain["num_parameters"] == (11_221 - 1_000) * 2_049
    assert published["input_size"] == [3, 224, 224]
    assert "num_classes_lacking" not in published


def test_ours_are_listed_and_published_leaves_the_rest_out() -> None:
    assert [row["name"] for row in run_json("models", "ofa_flops")] == ["ofa_flops_595m_s"]
    names = {row["name"] for row in run_json("models", "mixer_b16*", "--published")}
    assert names == {item.name for item in pretrained_21k() if item.name.startswith("mixer_b16")}


def test_the_data_says_who_can_teach_it(shards: Path) -> None:
    wnids = open_dataset(shards).tree.wnids
    rows: list[dict[str, Any]] = run_json("models", "mixer_b16_224*", "--data", shards)
    assert {row["name"]: row["num_classes_lacking"] for row in rows} == {
        "mixer_b16_224": None,
        "mixer_b16_224.goog_in21k": len(set(wnids) - set(label_space_of(21_843).wnids)),
        "mixer_b16_224.miil_in21k": len(set(wnids) - set(label_space_of(11_221).wnids)),
    }
    text = run("models", "mixer_b16_224*", "--data", shards).stdout
    assert "teaches this data" in text.splitlines()[0]
    assert all(
        line.endswith(f"lacks {row['num_classes_lacking']} classes" if row["num_classes_lacking"] else "yes")
        for line, row in zip(text.splitlines()[2:], rows[1:], strict=True)
    )


@pytest.mark.parametrize("words", [("no_such_network",), ("resnet10t", "--published"), ("resnet5O*",)])
def test_a_pattern_that_matches_nothing_is_said(words: tuple[str, ...]) -> None:
    refused = run("models", *words)
    assert refused.exit_code == 2
    assert words[0] in refused.stderr


def test_the_zoo_is_listed_as_published_and_its_files_are_recognised_by_their_keys(tmp_path: Path) -> None:
    write_published(tmp_path / "download.pth", "ofa_flops_595m_s", wrapper="module")
    write_published(tmp_path / "other.pth", "resnet18")
    (tmp_path / "broken.pth").write_text("<html>")
    rows = {row["name"]: row for row in run_json("models", "--zoo", tmp_path)}
    assert {name: row["at_hand"] for name, row in rows.items() if row["at_hand"]} == {
        "OFA_flops_595m_s": [str(tmp_path / "download.pth")]
    }
    assert len(rows) == 7
    resnet = rows["ResNet50"]
    assert (resnet["file"], resnet["semantic_top1"], resnet["top1"]) == ("resnet50_miil_21k.pth", 75.6, 82.0)
    text = run("models", "--zoo", tmp_path).stdout
    assert "tresnet_l_v2_miil_21k.pth" in text
    assert "All figures are as published" in text
    refused = run("models", "--zoo", tmp_path / "nowhere")
    assert refused.exit_code == 2
    assert "nowhere: does not exist; wanted a folder of weights" in refused.stderr
