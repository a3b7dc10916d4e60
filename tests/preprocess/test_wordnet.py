from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm

from in21k.preprocess import build_tree
from in21k.preprocess.wordnet import NOUNS, WordNet, hypernym_choice, parent_of, read_nouns
from in21k.shards import SemanticTree

CLASS_LISTS = Path(timm.__file__).parent / "data" / "_info"
WORDNET_FILES = Path("/usr/share/wordnet")
FALL11P = [302, 1378, 2100, 2605, 2204, 1371, 716, 290, 146, 82, 26, 1]
WINTER21P = [302, 1067, 1823, 2486, 2165, 1353, 710, 289, 146, 82, 26, 1]


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return WordNet.packaged()


@pytest.fixture(scope="module")
def fall11p() -> SemanticTree:
    return build_tree((CLASS_LISTS / "imagenet21k_miil_synsets.txt").read_text().split())


def toy(*rows: tuple[int, str, list[int]]) -> WordNet:
    """WordNet of a few synsets: (offset, name, hypernyms)."""
    offsets, names, hypernyms = zip(*rows, strict=True)
    return WordNet(
        pa.table(
            {
                "offset": pa.array(offsets, pa.int32()),
                "name": names,
                "definition": names,
                "hypernyms": pa.array(hypernyms, pa.list_(pa.int32())),
            }
        ),
        "toy",
    )


def names_up(tree: SemanticTree, wnid: str) -> list[str]:
    return [tree.names[index] for index in tree.paths[tree.find(wnid)]]


def test_fall11p_has_the_references_classes_on_each_level(fall11p: SemanticTree) -> None:
    assert len(fall11p) == 11_221
    assert [len(classes) for classes in fall11p.classes_by_level] == FALL11P


def test_winter21p_has_the_references_classes_on_each_level(fall11p: SemanticTree) -> None:
    wnids = (CLASS_LISTS / "imagenet21k_miil_w21_synsets.txt").read_text().split()
    tree = build_tree(wnids)
    assert len(tree) == 10_450
    assert [len(classes) for classes in tree.classes_by_level] == WINTER21P
    missing = set(fall11p.wnids) - set(wnids)
    assert (len(missing), set(wnids) - set(fall11p.wnids)) == (771, set())


def test_paths_are_those_of_the_reference(fall11p: SemanticTree) -> None:
    assert fall11p.paths[10] == (10, 9, 66, 65, 144)
    assert names_up(fall11p, "n01858441") == ["swan", "aquatic bird", "bird", "vertebrate", "animal"]
    assert fall11p.parents[fall11p.find("n09450163")] == -1
    assert fall11p.names[fall11p.find("n09450163")] == "sun"


def test_the_walk_goes_on_through_ancestors_that_are_no_classes() -> None:
    tree = build_tree(["n00015388", "n01858441", "n09450163"])
    assert tree.names == ("animal", "swan", "sun")
    assert tree.parents == (-1, 0, -1)


def test_class_indices_follow_the_order_given() -> None:
    tree = build_tree(iter(["n01858441", "n01503061"]))
    assert (tree.wnids, tree.parents) == (("n01858441", "n01503061"), (1, -1))


def test_the_choice_names_496_synsets_of_several_hypernyms_and_one_of_them_each(wordnet: WordNet) -> None:
    choice = hypernym_choice()
    assert len(choice) == 496
    for child, parent in choice.items():
        hypernyms = wordnet.hypernyms(child)
        assert len(hypernyms) > 1
        assert parent in hypernyms


def test_no_class_of_imagenet_needs_a_guess(caplog: pytest.LogCaptureFixture) -> None:
    build_tree((CLASS_LISTS / "imagenet21k_miil_synsets.txt").read_text().split())
    assert caplog.records == []


def test_of_several_hypernyms_without_a_choice_the_smallest_is_taken_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wordnet = toy((1, "low", []), (2, "high", []), (3, "child", [1, 2]), (4, "grandchild", [3]))
    assert parent_of("n00000003", wordnet, {"n00000003": "n00000002"}) == "n00000002"
    assert parent_of("n00000003", wordnet, {"n00000003": "n00000009"}) == "n00000001"
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        tree = build_tree(["n00000001", "n00000002", "n00000004"], wordnet)
    assert tree.parents == (-1, -1, 0)
    assert "n00000003 has 2 hypernyms and no choice is known: taking n00000001" in caplog.text


def test_classes_that_are_no_synset_are_top_classes_and_the_log_names_them(caplog: pytest.LogCaptureFixture) -> None:
    tree = build_tree(["cat", "n00000001", "n01503061", "n015030610"])
    assert tree.names == ("cat", "n00000001", "bird", "n015030610")
    assert tree.parents == (-1, -1, -1, -1)
    assert "3 classes are no WordNet synset and become top classes: cat, n00000001, n015030610" in caplog.text


def test_a_set_without_classes_has_an_empty_tree() -> None:
    assert len(build_tree([])) == 0


def test_synsets_have_names_definitions_and_hypernyms(wordnet: WordNet) -> None:
    assert wordnet.name("n02051845") == "pelican"
    assert wordnet.name("n04146614") == "school bus"
    assert wordnet.definition("n01503061").startswith("warm-blooded egg-laying vertebrates")
    assert wordnet.hypernyms("n01503061") == ["n01471682"]
    assert "n01503061" in wordnet
    assert "n01503062" not in wordnet
    assert "v01503061" not in wordnet
    for ask in (wordnet.name, wordnet.definition, wordnet.hypernyms):
        with pytest.raises(KeyError, match="n01503062"):
            ask("n01503062")


def test_instance_hypernyms_do_not_count(wordnet: WordNet) -> None:
    """The sun is an instance of a star, and of nothing else."""
    assert wordnet.hypernyms("n09450163") == []


def test_names_have_spaces_and_offsets_ascend() -> None:
    nouns = pq.read_table(NOUNS)
    offsets = nouns["offset"].to_pylist()
    assert nouns.num_rows == 82_115
    assert offsets == sorted(set(offsets))
    assert not any("_" in name for name in nouns["name"].to_pylist())


@pytest.mark.skipif(not (WORDNET_FILES / "data.noun").is_file(), reason="WordNet's own files are not installed")
def test_the_packaged_table_is_what_nltk_reads_from_wordnets_own_files() -> None:
    assert read_nouns(WORDNET_FILES).equals(pq.read_table(NOUNS))


def test_a_folder_without_wordnet_files_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.noun: missing; wanted a folder of WordNet files"):
        WordNet.read(tmp_path)


def test_wordnets_licence_travels_with_it() -> None:
    assert "Princeton" in (NOUNS.parent / "WORDNET-LICENSE").read_text()
