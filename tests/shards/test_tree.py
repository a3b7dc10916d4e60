from __future__ import annotations

import io
import json
import os
import pickle
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
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


def test_inner_classes_are_the_last_and_come_back_from_the_file(tmp_path: Path) -> None:
    tree = SemanticTree.from_parents("abc", ["beagle", "poodle", "dog"], [2, 2, -1], num_inner=1)
    assert (len(tree), tree.num_image_classes) == (3, 2)
    tree.save(tmp_path / "tree.json")
    assert SemanticTree.load(tmp_path / "tree.json") == tree
    assert json.loads((tmp_path / "tree.json").read_text())["num_image_classes"] == 2


@pytest.mark.parametrize(
    ("num_inner", "message"),
    [(1, r"no class with images lies below the inner class 2 \(c\)"), (4, "4 of 3 classes are inner"), (-1, "-1 of 3")],
)
def test_inner_classes_without_an_image_class_are_refused(num_inner: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticTree.from_parents("abc", "abc", [-1, 0, -1], num_inner=num_inner)


@pytest.mark.parametrize(
    ("parents", "wanted"),
    [
        ([1, 0, -1], "class 0 (a) lies on a cycle"),
        ([0, -1, -1], "cycle"),
        ([1, 2, 1], "lies on a cycle"),
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


def test_a_name_is_found_with_underscores_for_spaces_and_an_unknown_one_suggests_near_ones() -> None:
    tree = SemanticTree.from_parents(["n1", "n2", "my_cat"], ["school bus", "Navy SEAL", "my_cat"], [-1, -1, -1])
    assert [tree.find(name) for name in ("School_Bus", "navy seal", "my cat")] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^no class is called 'scool bus'; did you mean school bus\?$"):
        tree.find("scool bus")
    with pytest.raises(ValueError, match=r"^no class is called 'm_cat'; did you mean my cat, my_cat\?$"):
        tree.find("m_cat")
    with pytest.raises(ValueError, match="give a wnid or a name of this tree"):
        tree.find("xyzzy")


def slow_weights(tree: SemanticTree) -> list[float | None]:
    sizes = [tree.levels.count(level) for level in range(max(tree.levels, default=-1) + 1)]
    return [min(sum(sizes) / sum(sizes[k:]), 20.0) if size > 1 else None for k, size in enumerate(sizes)]


@given(forests())
def test_weights_and_branch_sums_are_those_of_the_formulas(forest: tuple[list[str], list[str], list[int]]) -> None:
    tree = SemanticTree.from_parents(*forest)
    assert list(tree.level_weights) == slow_weights(tree)
    values = [index * index + 1 for index in range(len(tree))]
    assert tree.branch_sums(values) == [
        sum(value for below, value in enumerate(values) if top in tree.paths[below]) for top in range(len(tree))
    ]


def test_a_weight_is_at_most_twenty_and_a_level_of_one_class_has_none() -> None:
    tree = SemanticTree.from_parents([f"n{i}" for i in range(104)], [""] * 104, [*[-1] * 100, 0, 0, 100, 102])
    assert tree.level_weights == (1.0, 20.0, None, None)
    assert SemanticTree.from_parents(["n1"], ["x"], [-1]).level_weights == (None,)
    assert SemanticTree.from_parents([], [], []).level_weights == ()


@given(forest=forests())
def test_the_references_dictionary_comes_back_as_the_tree_it_was(
    tmp_path_factory: pytest.TempPathFactory, forest: tuple[list[str], list[str], list[int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.pth"
    tree = SemanticTree.from_parents(*forest)
    tree.save_miil(path)
    written = path.read_bytes()
    assert SemanticTree.load(path) == tree
    tree.save_miil(path)
    assert path.read_bytes() == written


def test_the_references_dictionary_has_the_references_types(tmp_path: Path) -> None:
    tree = SemanticTree.from_parents(["n1", "n2", "n3"], ["animal", "animal", "swan"], [-1, 0, 1])
    tree.save_miil(tmp_path / "tree.pth")
    assert torch.load(tmp_path / "tree.pth", weights_only=True) == {
        "class_list": ["n1", "n2", "n3"],
        "class_description": {"n1": "animal", "n2": "animal", "n3": "swan"},
        "class_tree_list": [[0], [1, 0], [2, 1, 0]],
        "child_2_parent": {"n2": "n1", "n3": "n2"},
    }


def test_an_old_file_of_the_reference_is_read_and_classes_without_words_are_called_by_their_wnid(
    tmp_path: Path,
) -> None:
    content = {"class_list": ["n1", "n2"], "class_tree_list": [[0], [1, 0]], "class_description": {"n1": "animal"}}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    tree = SemanticTree.load(tmp_path / "old.pth")
    assert (tree.names, tree.parents) == (("animal", "n2"), (-1, 0))


def save_by_numpy(major: int, content: object, path: Path, *, is_zip: bool) -> None:
    """Save as that version of numpy would: they name the function that makes scalars differently."""
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=is_zip)
    names = {1: b"cnumpy.core.multiarray\nscalar\n", 2: b"cnumpy._core.multiarray\nscalar\n"}

    def rename(data: bytes) -> bytes:
        assert sum(map(data.count, names.values()))
        return data.replace(names[2], names[major]).replace(names[1], names[major])

    if not is_zip:
        path.write_bytes(rename(out.getvalue()))
        return
    with zipfile.ZipFile(out) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, rename(source.read(name)) if name.endswith("/data.pkl") else source.read(name))


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("major", [1, 2])
@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8, int])
def test_a_file_of_numpy_scalars_is_read_whichever_numpy_wrote_it(
    major: int, is_zip: bool, integer: type, tmp_path: Path
) -> None:
    """As the published imagenet21k_miil_tree.pth is."""
    wnids = [np.str_(wnid) for wnid in ("n1", "n2", "ñ3")]
    content = {
        "class_list": wnids,
        "class_description": dict(zip(wnids, map(np.str_, ("animal", "bird", "swan, é")), strict=True)),
        "class_tree_list": [[integer(node) for node in path] for path in ([0], [1, 0], [2, 1, 0])],
    }
    save_by_numpy(major, content, tmp_path / "tree.pth", is_zip=is_zip)
    tree = SemanticTree.load(tmp_path / "tree.pth")
    assert tree == SemanticTree.from_paths(["n1", "n2", "ñ3"], ["animal", "bird", "swan, é"], [[0], [1, 0], [2, 1, 0]])
    assert {type(item) for item in (*tree.wnids, *tree.names)} == {str}
    assert {type(node) for path in tree.paths for node in path} == {int}


@pytest.mark.parametrize("value", [np.float64(0), np.bool_(False), np.datetime64("2026"), np.complex64(0)], ids=repr)
def test_other_numpy_values_are_refused(value: object, tmp_path: Path) -> None:
    torch.save({"class_list": ["n1"], "class_tree_list": [[value]]}, tmp_path / "tree.pth")
    with pytest.raises(ValueError, match=r"tree\.pth: no tree of the reference code \(.*wanted integers and text"):
        SemanticTree.load(tmp_path / "tree.pth")


class BigEndian:
    """A numpy integer as a machine of the other byte order pickles it."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> tuple[object, ...]:
        return np.int64(0).__reduce__()[0], (np.dtype(">i8"), self.value.to_bytes(8, "big"))


def test_numbers_of_the_other_byte_order_are_read(tmp_path: Path) -> None:
    paths = [[BigEndian(0)], [BigEndian(1), BigEndian(0)]]
    torch.save({"class_list": ["n1", "n2"], "class_tree_list": paths}, tmp_path / "tree.pth")
    assert SemanticTree.load(tmp_path / "tree.pth").paths == ((0,), (1, 0))


class Malicious:
    """What runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "old", "bare"])
def test_a_malicious_pickle_is_refused_in_one_line_and_does_nothing(tmp_path: Path, kind: str) -> None:
    path, made = tmp_path / "evil.pth", tmp_path / "made"
    content = {"class_list": ["n1"], "class_tree_list": [[0]], "class_description": Malicious(made)}
    if kind == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match=r"evil\.pth: no tree of the reference code \(") as error:
        SemanticTree.load(path)
    assert len(str(error.value).splitlines()) == 1
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ([1, 2], "list indices"),
        ({"model": {}}, "it lacks 'class_list'"),
        ({"class_list": ["n1"]}, "it lacks 'class_tree_list'"),
        ({"class_list": [1], "class_tree_list": [[0]]}, "class_list has to hold text"),
        ({"class_list": ["n1"], "class_tree_list": [["n1"]]}, "lists of class indices"),
        ({"class_list": ["n1"], "class_tree_list": [[0.0]]}, "lists of class indices"),
        ({"class_list": ["n1"], "class_tree_list": [0]}, "not iterable"),
        ({"class_list": ["n1", "n2"], "class_tree_list": [[0], [1, 2]]}, r"outside 0\.\.1"),
        ({"class_list": ["n1"], "class_tree_list": [[0]], "class_description": ["x"]}, "no attribute 'get'"),
    ],
)
def test_other_files_of_torch_are_refused_by_name(tmp_path: Path, content: object, wanted: str) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"other\.pth: no tree of the reference code \(.*{wanted}"):
        SemanticTree.load(tmp_path / "other.pth")


def test_a_torch_file_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tree.pth"
    SemanticTree.from_parents(["n1"], ["x"], [-1]).save_miil(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"tree\.pth: no tree of the reference code"):
        SemanticTree.load(path)


@pytest.mark.parametrize(
    "parents",
    [[-1], [-1, *range(1_999)], [-1] * 100_000, [-1, *[0] * 99_999], [*range(1, 2_000), -1]],
    ids=["one class", "2,000 levels", "100,000 tops", "100,000 below one", "2,000 levels, the top last"],
)
def test_trees_of_any_shape_load_in_moments(tmp_path: Path, parents: list[int]) -> None:
    wnids = [f"c{index}" for index in range(len(parents))]
    started = time.perf_counter()
    tree = SemanticTree.from_parents(wnids, wnids, parents)
    tree.save(tmp_path / "tree.json")
    loaded = SemanticTree.load(tmp_path / "tree.json")
    assert loaded == tree
    assert sum(len(classes) for classes in loaded.classes_by_level) == len(parents)
    assert max(loaded.branch_sums([1] * len(parents))) == (1 if max(parents) < 0 else len(parents))
    assert len(loaded.level_weights) == max(loaded.levels) + 1
    assert time.perf_counter() - started < 10  # measured: at most 1 s
