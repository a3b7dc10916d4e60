"""A file of published weights is a network, like a run: architecture, classes and images are known."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from in21k.models.label_space import label_space_of
from in21k.models.published import ZOO, ZooNetwork
from in21k.shards import SemanticTree
from in21k.training import open_model

from ...models.published_files import write_published

TREE = SemanticTree.from_parents(["n1", "n2", "n3"], ["animal", "dog", "cat"], [-1, 0, 0])


@pytest.fixture
def small_head(tmp_path: Path) -> Path:
    """Weights of a network of the zoo for three classes."""
    return write_published(tmp_path / "w.pth", "mobilenetv3_large_100", 3)


@pytest.mark.parametrize("network", ZOO, ids=lambda network: network.word)
def test_a_published_file_opens_as_its_network_and_says_so(
    network: ZooNetwork, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    num_classes = 11_221 if network.word == "mobilenetv3_large_100" else 1_000  # smaller heads are faster
    path = write_published(tmp_path / network.file, network.architecture, num_classes)
    with caplog.at_level(logging.INFO, "in21k"):
        opened = open_model(path)
    assert opened.classes == label_space_of(num_classes)
    assert (opened.source, opened.mean, opened.std, opened.image_size) == (str(path), (0, 0, 0), (1, 1, 1), 224)
    assert opened.crop_pct == (None if num_classes == 11_221 else 0.875)
    assert not any(parameter.any() for name, parameter in opened.model.named_parameters() if ".bn" not in name)
    (line,) = caplog.messages
    assert f"{network.file} [state_dict]: {network.title} of the zoo ({network.architecture}" in line
    assert f"{num_classes:,} classes ({opened.classes and opened.classes.name}); images of 224 x 224 pixels" in line


def test_classes_may_be_a_tree_or_a_list(small_head: Path, tmp_path: Path) -> None:
    assert open_model(small_head).classes is None
    TREE.save(tmp_path / "tree.json")
    TREE.save_miil(tmp_path / "tree.pth")
    (tmp_path / "list.txt").write_text("n1\nn3\nn2\n")
    for place in (tmp_path, tmp_path / "tree.json", tmp_path / "tree.pth"):
        opened = open_model(small_head, classes=place)
        assert opened.tree == TREE
        assert opened.classes
        assert opened.classes.wnids == ("n1", "n2", "n3")
    listed = open_model(small_head, classes=tmp_path / "list.txt")
    assert listed.tree is None
    assert listed.classes
    assert listed.classes.wnids == ("n1", "n3", "n2")


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        ("fall11p", "has 11,221 classes, and the network 3 outputs"),
        ("in21k", "has 21,841 classes, and the network 3 outputs"),
        ("nowhere.txt", "no such file; wanted in1k, winter21p, fall11p, .* or a tree"),
        ("twice.txt", "names a class twice"),
    ],
)
def test_classes_that_cannot_be_the_heads_are_refused(
    classes: str, problem: str, small_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("twice.txt").write_text("n1 n1 n2")
    with pytest.raises(ValueError, match=rf"--classes {classes}: {problem}"):
        open_model(small_head, classes=classes)


def test_options_of_files_are_refused_for_networks_that_know_themselves() -> None:
    with pytest.raises(ValueError, match=r"resnet10t: is not a file of published weights, .*leave out --model"):
        open_model("resnet10t", architecture="resnet10t")
    with pytest.raises(ValueError, match=r"resnet10t: is not a file of published weights, .*leave out --classes"):
        open_model("resnet10t", classes="in1k")


def test_weights_of_a_run_are_not_chosen_in_a_file(small_head: Path) -> None:
    with pytest.raises(ValueError, match=r"--weights best goes with runs; .*w\.pth is not one"):
        open_model(small_head, "best")


def test_a_file_that_is_no_weights_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("<html>not found</html>")
    torch.save({"step": 1}, tmp_path / "numbers.pth")
    with pytest.raises(ValueError, match=r"w\.pth: not readable as weights"):
        open_model(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"numbers\.pth: holds no tensors by name"):
        open_model(tmp_path / "numbers.pth")
