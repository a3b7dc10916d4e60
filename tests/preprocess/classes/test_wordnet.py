from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from in21k.preprocess.classes.wordnet import NOUNS, WordNet, hypernym_choice, parent_of, read_nouns

WORDNET_FILES = Path("/usr/share/wordnet")


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return WordNet.packaged()


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


def test_the_choice_names_496_synsets_of_several_hypernyms_and_one_of_them_each(wordnet: WordNet) -> None:
    choice = hypernym_choice()
    assert len(choice) == 496
    for child, parent in choice.items():
        hypernyms = wordnet.hypernyms(child)
        assert len(hypernyms) > 1
        assert parent in hypernyms


def test_of_several_hypernyms_without_a_choice_the_smallest_is_taken_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wordnet = toy((1, "low", []), (2, "high", []), (3, "child", [1, 2]), (4, "grandchild", [3]))
    assert parent_of("n00000003", wordnet, {"n00000003": "n00000002"}) == "n00000002"
    assert caplog.records == []
    assert parent_of("n00000003", wordnet, {"n00000003": "n00000009"}) == "n00000001"
    assert "n00000003 has 2 hypernyms, and none is known as its parent: taking n00000001" in caplog.text


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
