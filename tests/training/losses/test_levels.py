"""What is right in each hierarchy, against a plain reading of the reference's dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from in21k.preprocess import build_tree
from in21k.preprocess.classes.label_spaces import read_classes
from in21k.shards.tree import SemanticTree
from in21k.training.losses.levels import Levels


def miil(tree: SemanticTree, folder: Path) -> dict[str, Any]:
    """The dictionary as the reference's code would load it."""
    tree.save_miil(folder / "tree.pth")
    return torch.load(folder / "tree.pth", weights_only=True)


def slow_hierarchies(class_tree_list: list[list[int]]) -> dict[int, list[int]]:
    """Per level of two or more classes its classes; a class lies on the level of its path's length, less one."""
    by_level: dict[int, list[int]] = {}
    for index, path in enumerate(class_tree_list):
        by_level.setdefault(len(path) - 1, []).append(index)
    return {level: classes for level, classes in sorted(by_level.items()) if len(classes) > 1}


def slow_label(class_tree_list: list[list[int]], classes: list[int], label: int) -> int:
    """The one of a hierarchy's classes that is the label's ancestor-or-self; -1 where it has none there."""
    return next((index for index in classes if index in class_tree_list[label]), -1)


@st.composite
def trees(draw: st.DrawFn) -> SemanticTree:
    size = draw(st.integers(2, 14))
    parents = [-1, -1, *(draw(st.integers(-1, i - 1)) for i in range(2, size))]
    return SemanticTree.from_parents([f"n{i}" for i in range(size)], ["same name"] * size, parents)


@given(tree=trees())
def test_ancestors_are_what_the_exported_dictionary_says(
    tmp_path_factory: pytest.TempPathFactory, tree: SemanticTree
) -> None:
    class_tree_list = miil(tree, tmp_path_factory.getbasetemp())["class_tree_list"]
    hierarchies, levels = slow_hierarchies(class_tree_list), Levels(tree)
    assert levels.numbers == tuple(hierarchies)
    assert [classes.tolist() for classes in levels.classes] == list(hierarchies.values())
    assert levels.ancestors_of(torch.arange(len(tree))).T.tolist() == [
        [slow_label(class_tree_list, classes, label) for label in range(len(tree))] for classes in hierarchies.values()
    ]


def test_ancestors_of_21k_are_what_the_exported_dictionary_says(tmp_path: Path) -> None:
    tree = build_tree(read_classes("fall11p"))
    content = miil(tree, tmp_path)
    assert content["class_tree_list"][10] == [10, 9, 66, 65, 144]  # the reference's own example
    assert len(content["class_description"]) == len(tree)  # it numbers the words by their place
    hierarchies = slow_hierarchies(content["class_tree_list"])
    labels = range(0, len(tree), 97)
    assert Levels(tree).ancestors_of(torch.tensor(labels)).T.tolist() == [
        [slow_label(content["class_tree_list"], classes, label) for label in labels] for classes in hierarchies.values()
    ]


def test_weights_are_those_of_the_tree(tree: SemanticTree) -> None:
    levels = Levels(tree)
    assert levels.weights == tuple(weight for weight in tree.level_weights if weight is not None)
    assert [tree.level_weights[number] for number in levels.numbers] == list(levels.weights)


def test_a_label_that_is_no_class_is_an_error(tree: SemanticTree) -> None:
    for label in (-1, len(tree)):
        with pytest.raises((IndexError, RuntimeError), match="out of range"):
            Levels(tree).ancestors_of(torch.tensor([0, label]))
