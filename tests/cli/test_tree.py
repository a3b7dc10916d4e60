"""tree show, tree export and verify --release, judged by what they print."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import Result

from in21k.cli.verify import verify
from in21k.preprocess import build_tree
from in21k.preprocess.classes import release
from in21k.preprocess.classes.label_spaces import read_classes
from in21k.shards import SemanticTree
from in21k.shards.class_table import ClassRow, read_class_table, write_class_table

from .conftest import run, run_json


def assert_refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    for part in parts:
        assert part in line


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tree and a class table: swan and pelican below bird below animal, sun, and a dropped bus."""
    folder = tmp_path_factory.mktemp("birds")
    tree = build_tree(["n00015388", "n01503061", "n01858441", "n02051845", "n09450163"])
    tree.save(folder / "tree.json")
    write_class_table(
        folder / "classes.parquet",
        [
            *(
                ClassRow(
                    wnid, tree.names[i], f"what {tree.names[i]} means", 1, 10**i, 1, True, False, i, tree.levels[i]
                )
                for i, wnid in enumerate(tree.wnids)
            ),
            ClassRow("n04146614", "school bus", "", 312, 0, 0, False, False, None, None),
        ],
    )
    return folder


def test_show_has_levels_weights_branches_and_a_drawing(birds: Path) -> None:
    shown = run_json("tree", "show", birds)
    assert shown["classes_per_level"] == [2, 1, 2]
    assert shown["weight_per_level"] == [1.0, None, 2.5]
    assert (shown["num_classes"], shown["num_top_classes"], shown["num_train"]) == (5, 2, 11_111)
    assert [(node["name"], node["num_below"], node["num_train_branch"]) for node in shown["largest_branches"]] == [
        ("animal", 3, 1_111),
        ("sun", 0, 10_000),
    ]
    assert run("tree", "show", birds).stdout == (
        "5 classes, 2 of them at the top, 11,111 training images\n"
        "\n"
        "level  classes  weight\n"
        "0            2    1.00\n"
        "1            1       -\n"
        "2            2    2.50\n"
        "\n"
        "largest branches       wnid  classes below  training images\n"
        "animal            n00015388              3            1,111\n"
        "sun               n09450163              0           10,000\n"
        "\n"
        "animal  n00015388, 3 below it, 1,111 training images\n"
        "└── bird  n01503061, 2 below it, 1,110 training images\n"
        "    ├── swan  n01858441, 100 training images\n"
        "    └── pelican  n02051845, 1,000 training images\n"
    )


def test_a_tree_alone_has_no_images_to_count(birds: Path) -> None:
    shown = run_json("tree", "show", birds / "tree.json")
    assert shown["num_train"] is None
    assert shown["largest_branches"][0]["num_train_branch"] is None
    assert "images" not in run("tree", "show", birds / "tree.json").stdout


def test_one_class_has_its_path_counts_definition_and_children(birds: Path) -> None:
    assert run("tree", "show", birds, "Bird").stdout == (
        "animal  n00015388, class 0, 3 below it, 1 training images (1,111 with those below)\n"
        "  bird  n01503061, class 1, 2 below it, 10 training images (1,110 with those below)\n"
        "    - swan  n01858441, class 2, 100 training images\n"
        "    - pelican  n02051845, class 3, 1,000 training images\n"
        "\n"
        "what bird means\n"
    )
    shown = run_json("tree", "show", birds, "n01503061")
    assert [node["name"] for node in shown["path"]] == ["bird", "animal"]
    assert [node["num_train"] for node in shown["children"]] == [100, 1000]


def test_the_definition_of_a_class_without_a_table_is_wordnets(birds: Path) -> None:
    assert run_json("tree", "show", birds / "tree.json", "bird")["definition"].startswith("warm-blooded egg-laying")


def test_names_that_no_class_has_are_refused_with_what_may_be_meant(birds: Path) -> None:
    assert_refused(run("tree", "show", birds, "pelikan"), "no class is called 'pelikan'; did you mean pelican?")
    assert_refused(run("tree", "show", birds, "n04146614"), "n04146614 (school bus)", "312 images", "was dropped")


def test_show_opens_every_folder_with_a_tree(prepared: Path, shards: Path) -> None:
    shown = [run_json("tree", "show", path) for path in (prepared, shards)]
    assert shown[0] == shown[1]
    rows = read_class_table(prepared / "classes.parquet")
    assert shown[0]["num_train"] == sum(row.num_train for row in rows)


def test_of_a_great_many_branches_and_children_the_first_are_drawn(tmp_path: Path) -> None:
    wnids = [f"c{number}" for number in range(61)]
    SemanticTree.from_parents(wnids, wnids, [-1, *[0] * 60]).save(tmp_path / "tree.json")
    assert run("tree", "show", tmp_path).stdout.endswith("├── c1  c1\n├── c2  c2\n├── c3  c3\n└── 57 more\n")
    lines = run("tree", "show", tmp_path, "c0").stdout.splitlines()
    assert (len(lines), lines[-1]) == (52, "  - 10 more (--json names them all)")
    assert len(run_json("tree", "show", tmp_path, "c0")["children"]) == 60


@pytest.mark.parametrize("parents", [[], [-1], [-1, *range(999)]], ids=["no class", "one class", "a thousand levels"])
def test_odd_trees_are_shown_and_exported(tmp_path: Path, parents: list[int]) -> None:
    wnids = [f"c{number}" for number in range(len(parents))]
    tree = SemanticTree.from_parents(wnids, wnids, parents)
    tree.save(tmp_path / "tree.json")
    assert run_json("tree", "show", tmp_path)["num_classes"] == len(parents)
    assert run("tree", "show", tmp_path).exit_code == 0
    if parents:
        assert len(run_json("tree", "show", tmp_path, wnids[-1])["path"]) == len(parents)
    for file_format in ("json", "csv", "miil"):
        assert run("tree", "export", tmp_path, tmp_path / file_format, "--format", file_format).exit_code == 0
    assert SemanticTree.load(tmp_path / "miil") == SemanticTree.load(tmp_path / "json") == tree


def test_the_references_pth_is_shown_and_exported_as_any_tree(birds: Path, tmp_path: Path) -> None:
    pth, back = tmp_path / "tree.pth", tmp_path / "back.json"
    assert run("tree", "export", birds, pth, "--format", "miil").exit_code == 0
    shown = run_json("tree", "show", pth)
    assert shown.pop("differences")
    assert shown == run_json("tree", "show", birds / "tree.json")
    assert run("tree", "export", pth, back).exit_code == 0
    assert back.read_bytes() == (birds / "tree.json").read_bytes()


def test_an_export_says_where_the_references_code_differs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def exported(parents: list[int]) -> list[str]:
        caplog.clear()
        names = [f"c{number}" for number in range(len(parents))]
        SemanticTree.from_parents(names, names, parents).save(tmp_path / "tree.json")
        words = ("tree", "export", tmp_path, tmp_path / "tree.pth", "--format", "miil", "--overwrite")
        assert run(*words).exit_code == 0
        return [record.getMessage().partition("tree.pth: ")[2] for record in caplog.records]

    assert exported([-1, -1, 0]) == []
    assert exported([-1, 0, 0]) == [
        "the reference's code leaves out the deepest level, here level 1 of 2 classes",
        "the reference's code mistakes the levels below one of a single class, here level 0",
    ]


def test_the_tree_of_21k_is_one_that_the_references_code_reads_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_tree(read_classes("winter21p")).save(tmp_path / "tree.json")
    assert run("tree", "export", tmp_path, tmp_path / "tree.pth", "--format", "miil").exit_code == 0
    assert caplog.records == []


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pth_is_refused_in_one_line(tmp_path: Path) -> None:
    made, evil = tmp_path / "made", tmp_path / "evil.pth"
    torch.save({"class_list": Malicious(made)}, evil)
    assert_refused(run("tree", "show", evil), "evil.pth: no tree of the reference code")
    assert_refused(run("tree", "export", evil, tmp_path / "out"), "evil.pth: no tree of the reference code")
    assert not made.exists()


def test_a_folder_without_a_tree_is_refused_with_what_is_wanted(tmp_path: Path) -> None:
    assert_refused(run("tree", "show", tmp_path), "no tree.json; wanted a prepared data set, shards, a run")


def test_verify_lists_what_differs_from_a_release_and_exits_with_1(prepared: Path, shards: Path) -> None:
    for path in (prepared, shards):
        result = run("verify", path, "--release", "fall11", "--workers", 1)
        assert result.exit_code == 1
        assert "all is well" in result.stdout
        assert "classes kept: 8; fall11's 21K-P has 11,221 (11,213 fewer here)" in result.stdout
        assert "differences from fall11 as published" in result.stdout.splitlines()[-1]


def test_verify_exits_with_0_where_nothing_differs(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "release_differences", lambda *_: [])
    output = run_json("verify", prepared, "--release", "winter21", "--workers", 1)
    assert (output["release"], output["release_differences"], output["problems"]) == ("winter21", [], [])
    assert "equals winter21 as published" in run("verify", prepared, "--release", "winter21", "--workers", 1).stdout
    assert "release_differences" not in run_json("verify", prepared, "--workers", 1)


def test_verify_of_a_release_without_a_class_table_names_the_missing_table(prepared: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(prepared, tmp_path / "prepared")
    (damaged / "classes.parquet").unlink()
    result = run("verify", damaged, "--release", "fall11")
    assert result.exit_code == 1
    assert "classes.parquet: missing" in result.stdout
    assert "as published" not in result.stdout


def test_the_releases_offered_are_those_that_are_known() -> None:
    (option,) = (parameter for parameter in verify.params if parameter.name == "release")
    assert list(getattr(option.type, "choices", ())) == list(release.RELEASES)


def test_a_published_tree_is_compared_with_ours(birds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run("tree", "export", birds, tmp_path / "same.pth", "--format", "miil")
    assert run_json("tree", "show", tmp_path / "same.pth")["differences"] == ["equals our tree over its 5 classes"]
    assert "differences" not in run_json("tree", "show", birds)
    moved = SemanticTree.from_parents(["n01503061", "n01858441", "x1"], ["bird", "swan", "own"], [-1, -1, 0])
    moved.save_miil(tmp_path / "moved.pth")
    lines = [
        "1 of 3 classes are not in WordNet: x1",
        "1 of 3 classes have another parent than in our tree: n01858441 (swan: none, ours n01503061)",
    ]
    assert run_json("tree", "show", tmp_path / "moved.pth")["differences"] == lines
    assert "\n".join(lines) in run("tree", "show", tmp_path / "moved.pth").stdout
    caplog.set_level(logging.INFO)
    run("tree", "export", tmp_path / "moved.pth", tmp_path / "moved.json")
    assert all(line in caplog.text for line in lines)
