"""Ancestors at which branches with images meet, as classes without images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from in21k.preprocess import build_tree
from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.classes.taxonomy import Taxonomy
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_folder, open_raw_tar
from in21k.shards import open_dataset
from in21k.shards.dataset import PreparedSet, ShardSet
from in21k.shards.label_spaces import label_space_wnids
from in21k.shards.pack import ShardSettings, pack
from in21k.shards.tree import SemanticTree
from in21k.shards.verify import verify

from ..conftest import write_tar

PARENTS = "child,parent\nbeagle,dog\npoodle,dog\ndog,animal\ncat,animal\n"


@pytest.fixture(scope="module")
def imagenet1k() -> SemanticTree:
    return build_tree(sorted(label_space_wnids("in1k")), inner_classes=True)


def family(tree: SemanticTree, wnid: str) -> tuple[str, set[str], bool]:
    """The parent and the children of a class by name, and whether it is an inner class."""
    index = tree.find(wnid)
    children = {tree.names[child] for child in tree.children[index]}
    return tree.names[tree.parents[index]], children, index >= tree.num_image_classes


def test_imagenet1ks_inner_classes_are_where_its_branches_meet(imagenet1k: SemanticTree) -> None:
    """By WordNet's hypernyms: the wildcats pass `cat`, and the buses `public transport`'s other kinds."""
    assert family(imagenet1k, "n02124623") == ("feline", {"cougar", "lynx"}, True)
    assert family(imagenet1k, "n02924116") == ("public transport", {"minibus", "school bus", "trolleybus"}, True)
    assert family(imagenet1k, "n02111626") == ("dog", {"Samoyed", "Pomeranian", "chow", "keeshond"}, True)
    assert "n02121620" not in imagenet1k.wnids  # cat, below which only wildcats are: domestic cats are domestic animals


def test_every_inner_class_has_two_branches_and_image_classes_keep_their_indices(imagenet1k: SemanticTree) -> None:
    assert imagenet1k.num_image_classes == 1000
    assert imagenet1k.wnids[:1000] == build_tree(sorted(label_space_wnids("in1k"))).wnids
    inner = range(1000, len(imagenet1k))
    assert all(len(imagenet1k.children[index]) >= 2 for index in inner)
    assert list(imagenet1k.wnids[1000:]) == sorted(imagenet1k.wnids[1000:])
    assert not set(imagenet1k.wnids[:1000]) & set(imagenet1k.wnids[1000:])


@pytest.fixture
def pets(tmp_path: Path, draw: Callable[..., Image.Image], encode: Callable[..., bytes]) -> Path:
    for number, name in enumerate(("beagle", "poodle", "cat")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for image in range(4):
            (tmp_path / "pets" / name / f"{image}.jpg").write_bytes(encode(draw(32, 24, seed=10 * number + image)))
    return tmp_path / "pets"


@pytest.fixture
def prepared(tmp_path: Path, pets: Path) -> PreparedSet:
    (tmp_path / "parents.csv").write_text(PARENTS)
    return prepare(
        open_folder(pets),
        tmp_path / "prepared",
        select=SelectSettings(rare_threshold=0, val_per_class=1, inner_classes=True),
        image=ImageSettings(size=16),
        taxonomy=Taxonomy.read(None, tmp_path / "parents.csv"),
    )


def test_own_parents_become_classes_without_images(prepared: PreparedSet) -> None:
    rows = [(row.wnid, row.class_index, row.inner, row.kept, row.num_train, row.level) for row in prepared.classes]
    assert rows == [
        ("animal", 3, True, True, 0, 0),
        ("beagle", 0, False, True, 3, 2),
        ("cat", 1, False, True, 3, 1),
        ("dog", 4, True, True, 0, 1),
        ("poodle", 2, False, True, 3, 2),
    ]
    assert (prepared.num_classes, prepared.num_image_classes) == (5, 3)
    assert prepared.info["counts"]["num_inner_classes"] == 2
    assert sorted(path.name for path in (prepared.path / "train").iterdir()) == ["beagle.tar", "cat.tar", "poodle.tar"]
    assert verify(prepared, deep=True).problems == []


def test_shards_hold_no_sample_of_an_inner_class(prepared: PreparedSet, tmp_path: Path) -> None:
    pack(prepared, tmp_path / "shards", ShardSettings())
    assert isinstance(opened := open_dataset(tmp_path / "shards"), ShardSet)
    assert (opened.num_classes, opened.num_image_classes) == (5, 3)
    assert opened.tree == prepared.tree
    assert opened.tree.num_image_classes == 3
    assert set(opened.split("train").labels.tolist()) == {0, 1, 2}
    assert verify(opened, deep=True).problems == []


def test_a_dropped_class_at_which_branches_meet_is_an_inner_class(
    tmp_path: Path, pets: Path, draw: Callable[..., Image.Image], encode: Callable[..., bytes]
) -> None:
    (pets / "dog").mkdir()
    (pets / "dog" / "1.jpg").write_bytes(encode(draw(32, 24)))
    (tmp_path / "parents.csv").write_text(PARENTS)
    prepared = prepare(
        open_folder(pets),
        tmp_path / "prepared",
        select=SelectSettings(rare_threshold=1, val_per_class=1, inner_classes=True),
        image=ImageSettings(size=16),
        taxonomy=Taxonomy.read(None, tmp_path / "parents.csv"),
    )
    dog = next(row for row in prepared.classes if row.wnid == "dog")
    assert (dog.kept, dog.inner, dog.num_raw, dog.num_train, dog.class_index) == (True, True, 1, 0, 4)
    assert verify(prepared, deep=True).problems == []


def test_the_processed_archive_is_refused(
    tmp_path: Path, draw: Callable[..., Image.Image], encode: Callable[..., bytes]
) -> None:
    image = encode(draw(32, 24))
    entries: Any = [(f"imagenet21k_train/n01440764/n01440764_{number}.JPEG", image) for number in range(3)]
    (tmp_path / "raw.tar").write_bytes(write_tar(entries))
    with pytest.raises(ValueError, match=r"raw\.tar: --inner-classes cannot be used with the processed archive"):
        prepare(
            open_raw_tar(tmp_path / "raw.tar"),
            tmp_path / "prepared",
            select=SelectSettings(inner_classes=True),
            image=ImageSettings(),
        )
    assert not (tmp_path / "prepared").exists()
