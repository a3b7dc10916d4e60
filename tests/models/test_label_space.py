"""What the outputs of published networks stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from in21k.models import LabelSpace, class_map, create_model, known_label_spaces, label_space_of
from in21k.models.export import save_weights
from in21k.models.export import timm_config as config_of


@pytest.mark.parametrize("num_classes", [1000, 10450, 11221, 11821, 21841, 21842, 21843])
def test_a_known_label_space_names_each_of_its_outputs_once(num_classes: int) -> None:
    space = label_space_of(num_classes)
    assert space.name == known_label_spaces()[num_classes]
    assert len(space) == len(set(space.wnids)) == num_classes
    assert all(wnid[0] == "n" and wnid[1:].isdigit() and len(wnid) == 9 for wnid in space.wnids)


def test_the_releases_call_the_same_class_by_the_same_wnid() -> None:
    winter, fall, whole = (set(label_space_of(number).wnids) for number in (10450, 11221, 21841))
    assert winter < fall < whole
    assert set(label_space_of(11821).wnids) < whole
    assert set(label_space_of(21842).wnids) - whole == {"n04399382"}
    assert set(label_space_of(21843).wnids) - whole == {"n03931044", "n09859684"}
    # The first thousand outputs of 21,842 are ImageNet-1K's.
    assert label_space_of(21842).wnids[:1000] == label_space_of(1000).wnids


def test_an_unknown_number_of_classes_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no label space of 19,168 classes is known; wanted .*11,221 \(fall11p\)"):
        label_space_of(19168)


@given(st.permutations(range(8)), st.lists(st.integers(0, 7), unique=True))
def test_the_class_map_finds_each_class_whatever_the_order(order: Sequence[int], wanted: Sequence[int]) -> None:
    space = LabelSpace("eight", tuple(f"n{number}" for number in order))
    wnids = [f"n{number}" for number in wanted]
    actual = class_map(space, wnids)
    assert actual.dtype == torch.int64
    assert [space.wnids[index] for index in actual.tolist()] == wnids


def test_a_teacher_sees_the_data_sets_classes_in_their_order() -> None:
    fall, winter = label_space_of(11221), label_space_of(10450)
    logits = torch.arange(11221.0).expand(2, -1)
    mapped = logits[:, class_map(fall, winter.wnids)]
    assert mapped.shape == (2, 10450)
    for output in (0, 5000, 10449):
        assert fall.wnids[int(mapped[1, output])] == winter.wnids[output]


def test_a_label_space_that_lacks_classes_is_refused_with_their_number() -> None:
    with pytest.raises(ValueError, match=r"winter21p \(10,450 classes\) lacks 771 of the data set's 11,221 \(n09"):
        class_map(label_space_of(10450), label_space_of(11221).wnids)
    with pytest.raises(ValueError, match=r"lacks 1 of the data set's 2 \(mine\); wanted a network"):
        class_map(label_space_of(11221), ["n00015388", "mine"])


def test_a_network_goes_by_its_number_of_outputs() -> None:
    with torch.device("meta"):
        assert label_space_of(create_model("resnet10t", num_classes=11221)).name == "fall11p"
        assert label_space_of(create_model("resnet10t")).name == "in1k"
        with pytest.raises(ValueError, match="no label space of 7 classes"):
            label_space_of(create_model("resnet10t", num_classes=7))


def test_a_run_that_timm_opened_has_its_own_classes(tmp_path: Path) -> None:
    model = create_model("resnet10t", num_classes=2)
    save_weights(model, tmp_path / "model.safetensors")
    config = config_of(
        model,
        architecture="resnet10t",
        model_args={},
        image_size=32,
        crop_pct=None,
        normalize="unit",
        wnids=["cat", "dog"],
        names=["cat", "dog"],
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert label_space_of(opened).wnids == ("cat", "dog")
    assert class_map(label_space_of(opened), ["dog"]).tolist() == [1]
    # With another head the names no longer count.
    assert label_space_of(timm.create_model(f"local-dir:{tmp_path}", num_classes=1000)).name == "in1k"
