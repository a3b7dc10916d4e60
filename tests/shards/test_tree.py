from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.shards import SemanticTree


@st.composite
def forests(draw: Callable) -> tuple[list[str], list[str], list[int]]:
    """Wnids, names and parents of a random forest whose classes come in any order."""
    above = draw(st.lists(st.integers(-1, 1_000), max_size=20))
    above = [-1 if parent < 0 or not index else parent % index for index, parent in enumerate(above)]
    order = draw(st.permutations(range(len(above))))
    parents = [-1] * len(above)
    for index, parent in enumerate(above):
        parents[order[index]] = -1 if parent < 0 else order[parent]
    wnids = draw(st.lists(st.text(min_size=1, max_size=8), min_size=len(above), max_size=len(above), unique=True))
    names = draw(st.lists(st.text(max_size=8), min_size=len(above), max_size=len(above)))
    return wnids, names, parents


@given(forests())
def test_paths_climb_the_parents(forest: tuple[list[str], list[str], list[int]]) -> None:
    wnids, names, parents = forest
    tree = SemanticTree.from_parents(wnids, names, parents)
    assert (list(tree.wnids), list(tree.names), list(tree.parents)) == (wnids, names, parents)
    for index, path in enumerate(tree.paths):
        assert path[0] == index
        assert [parents[node] for node in path] == [*path[1:], -1]
        assert tree.levels[index] == len(path) - 1
        assert tree.find(wnids[index]) == index
    assert SemanticTree.from_paths(wnids, names, tree.paths) == tree


@given(forests())
def test_levels_and_children_name_every_class_once(forest: tuple[list[str], list[str], list[int]]) -> None:
    tree = SemanticTree.from_parents(*forest)
    by_level = tree.classes_by_level
    assert sorted(index for classes in by_level for index in classes) == list(range(len(tree)))
    for level, classes in enumerate(by_level):
        assert list(classes) == sorted(classes)
        assert {tree.levels[index] for index in classes} == {level}
    assert sorted(c for below in tree.children for c in below) == [i for i, p in enumerate(tree.parents) if p >= 0]
    assert all(tree.parents[child] == index for index, below in enumerate(tree.children) for child in below)


@given(forest=forests())
def test_a_saved_tree_comes_back_equal_from_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, forest: tuple[list[str], list[str], list[int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.json"
    tree = SemanticTree.from_parents(*forest)
    tree.save(path)
    written = path.read_bytes()
    loaded = SemanticTree.load(path)
    assert loaded == tree
    loaded.save(path)
    assert path.read_bytes() == written


@pytest.mark.parametrize(
    ("parents", "wanted"),
    [
        ([1, 0, -1], "class 0 (a) lies on a cycle"),
        ([0, -1, -1], "cycle"),
        ([3, -1, -1], "parent 3; wanted -1 or 0..2"),
        ([-2, -1, -1], "parent -2; wanted -1 or 0..2"),
        ([-1, -1], "3 wnids, 3 names, 2 paths"),
    ],
)
def test_parents_that_make_no_tree_are_refused(parents: list[int], wanted: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wanted)):
        SemanticTree.from_parents(["a", "b", "c"], ["", "", ""], parents)


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        ([[0], [1, 0], [2, 0, 1]], "disagrees with that of its parent"),
        ([[0], [1, 0], [2, 1]], "disagrees with that of its parent, [1, 0]"),
        ([[0], [0], [2]], "it has to begin with 1"),
        ([[0], [], [2]], "it has to begin with 1"),
        ([[0], [1, 3], [2]], "outside 0..2"),
        ([[0], [1, 0, 1], [2]], "names a class twice"),
        ([[0], [1]], "3 wnids, 3 names, 2 paths"),
    ],
)
def test_paths_that_contradict_one_another_are_refused(paths: list[list[int]], wanted: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wanted)):
        SemanticTree.from_paths(["a", "b", "c"], ["", "", ""], paths)


def test_a_wnid_stands_for_one_class() -> None:
    with pytest.raises(ValueError, match="a wnid stands twice"):
        SemanticTree.from_parents(["a", "a"], ["x", "y"], [-1, -1])


GOOD = {"format": "in21k-tree", "version": 1, "wnids": ["a"], "names": ["x"], "parents": [-1]}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        json.dumps(GOOD | {"format": "other"}),
        json.dumps(GOOD | {"version": 2}),
        json.dumps({key: value for key, value in GOOD.items() if key != "parents"}),
        json.dumps(GOOD | {"parents": ["a"]}),
        json.dumps(GOOD | {"parents": None}),
        json.dumps(GOOD | {"parents": [-1, -1]}),
    ],
)
def test_a_file_that_is_no_tree_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "some_tree.json"
    path.write_text(json.dumps(GOOD))
    assert len(SemanticTree.load(path)) == 1
    path.write_text(content)
    with pytest.raises(ValueError, match=r"some_tree\.json: no in21k-tree of version 1"):
        SemanticTree.load(path)


def test_a_class_is_found_by_wnid_or_by_a_name_that_only_one_has() -> None:
    tree = SemanticTree.from_parents(["n1", "n2", "n3"], ["Crane", "crane", "Swan"], [-1, -1, -1])
    assert (tree.find("n2"), tree.find("sWAN")) == (1, 2)
    with pytest.raises(ValueError, match="2 classes are called 'crane': n1, n2; give the wnid"):
        tree.find("crane")
    with pytest.raises(ValueError, match="no class is called 'goose'"):
        tree.find("goose")
