"""`in21k preprocess` in every layout, with what chooses classes and images."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from in21k.preprocess.classes.label_spaces import read_classes
from in21k.preprocess.sources.class_names import class_id
from in21k.shards.dataset import PreparedSet
from in21k.shards.label_spaces import PRUNED_SPACES

from ..shards.test_tree import save_by_numpy
from .conftest import run, run_json
from .test_mistakes import assert_refused

BIRD, SWAN, SUN = "n01503061", "n01858441", "n09450163"
FEW = ("--rare-threshold", 0, "--val-per-class", 1, "--workers", 1)


def photo(seed: int, size: tuple[int, int] = (60, 40)) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).rotate(7 * seed).convert("RGB").save(out, "JPEG")
    return out.getvalue()


def photos(wnids: tuple[str, ...] = (BIRD, SWAN, SUN)) -> dict[str, bytes]:
    """Three images of each class: {path: bytes}."""
    return {f"{wnid}/{wnid}_{n}.JPEG": photo(10 * place + n) for place, wnid in enumerate(wnids) for n in range(3)}


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    path.write_bytes(gzip.compress(out.getvalue()) if path.suffix == ".gz" else out.getvalue())
    return path


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def refused(*words: object) -> str:
    """Run a command that has to be refused; return its one line."""
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("in21k: ")
    return lines[0]


def table(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def sizes(out: Path) -> set[tuple[int, int]]:
    return {(row["width"], row["height"]) for row in table(out, "manifest")}


PROCESSED = {
    **{f"p/imagenet21k_train/{path}": data for path, data in photos().items() if SUN not in path and "_2." not in path},
    **{f"p/imagenet21k_val/{path}": data for path, data in photos().items() if SUN not in path and "_2." in path},
    **{f"p/imagenet21k_small_classes/{path}": data for path, data in photos().items() if SUN in path},
}


@pytest.mark.parametrize("name", ["processed.tar", "processed.tar.gz", "folder"])
def test_the_processed_archive_keeps_split_classes_and_bytes(name: str, tmp_path: Path) -> None:
    is_folder = name == "folder"
    source = write_files(tmp_path / name, PROCESSED) if is_folder else write_tar(tmp_path / name, PROCESSED)
    command, out = "folder" if is_folder else "raw-tar", tmp_path / "out"
    counts = run_json("preprocess", command, source, out, "--workers", 1)["counts"]
    assert counts == {
        **{"num_classes_seen": 3, "num_classes": 2, "num_raw": 9, "num_raw_kept": 6, "num_rejects": 0},
        "splits": {"train": {"num_samples": 4}, "val": {"num_samples": 2}},
    }
    originals = {name.rpartition("/")[2]: data for name, data in PROCESSED.items()}
    for row in table(out, "manifest"):
        assert row["checksum"] == hashlib.sha256(originals[row["source_name"]]).hexdigest()[:16]
        assert (row["split"] == "val") == ("_2." in row["source_name"])
    assert run("verify", out, "--deep", "--workers", 1).exit_code == 0


@pytest.mark.parametrize(
    ("options", "actual"),
    [
        (("--resize", "squish"), {(32, 32)}),
        (("--resize", "short-edge"), {(48, 32)}),
        (("--resize", "none"), {(60, 40)}),
    ],
)
def test_the_processed_archive_is_resized_when_asked(
    options: tuple[str, ...], actual: set[tuple[int, int]], tmp_path: Path
) -> None:
    source = write_tar(tmp_path / "processed.tar.gz", PROCESSED)
    run_json("preprocess", "raw-tar", source, tmp_path / "out", "--workers", 1, "--size", 32, *options)
    assert sizes(tmp_path / "out") == actual


def test_other_layouts_are_resized_unless_asked_not_to(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "raw.tar", photos())
    run_json("preprocess", "raw-tar", source, tmp_path / "out", *FEW, "--size", 32)
    run_json("preprocess", "raw-tar", source, tmp_path / "as it is", *FEW, "--resize", "none")
    assert sizes(tmp_path / "out") == {(32, 32)}
    assert sizes(tmp_path / "as it is") == {(60, 40)}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_standard_input_is_read_and_a_second_time_said_to_be_done(suffix: str, tmp_path: Path) -> None:
    source = write_tar(tmp_path / f"raw.{suffix}", PROCESSED)
    out = tmp_path / "out"
    for word in ("-: a stream, read once", "finished already; nothing to do"):
        words = ["preprocess", "raw-tar", "-", str(out), "--workers", "1"]
        with source.open("rb") as stdin:
            program = "from in21k.cli.main import cli; cli()"
            done = subprocess.run(
                [sys.executable, "-c", program, *words], stdin=stdin, capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, done.stderr
        assert word in done.stderr
        assert "2 kept" in done.stdout
    assert sizes(out) == {(60, 40)}


def test_a_folder_and_a_list_are_prepared_alike(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "images", photos())
    (tmp_path / "list.txt").write_text("".join(f"images/{path} {path.split('/')[0]}\n" for path in photos()))
    run_json("preprocess", "folder", folder, tmp_path / "of folder", *FEW, "--size", 32)
    run_json("preprocess", "folder", tmp_path / "list.txt", tmp_path / "of list", *FEW, "--size", 32)
    assert table(tmp_path / "of folder", "manifest") == table(tmp_path / "of list", "manifest")
    assert len(table(tmp_path / "of list", "manifest")) == 9


def test_the_help_names_each_label_space_that_can_be_chosen() -> None:
    (names,) = re.findall(r"--classes FILE\|([\w|]+)", run("preprocess", "raw-tar", "--help").output)
    assert sorted(names.split("|")) == PRUNED_SPACES


@pytest.mark.parametrize("name", ["fall11p", "winter21p", "in12k"])
def test_label_spaces_keep_their_classes_and_the_missing_are_told(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = read_classes(name)
    source = write_tar(tmp_path / "raw.tar", photos((listed[0], listed[-1], "n00000000")))
    result = run("preprocess", "raw-tar", source, tmp_path / "out", *FEW, "--size", 32, "--classes", name)
    assert result.exit_code == 0, result.output
    assert f"--classes: {len(listed) - 2} of {len(listed)} classes are not in the source" in caplog.text
    assert [row["wnid"] for row in table(tmp_path / "out", "classes") if row["kept"]] == sorted({listed[0], listed[-1]})


def test_classes_images_and_subtrees_are_chosen_by_files_and_names(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "raw.tar", photos())
    for name, text in (
        ("classes.txt", f"{SWAN}  # white\n\n{SUN}\n{BIRD}\n"),
        ("exclude.txt", f"{SUN}_1\n{hashlib.sha256(photos()[f'{SWAN}/{SWAN}_0.JPEG']).hexdigest()}\n"),
        ("val.txt", f"{SWAN}/{SWAN}_1.JPEG\n"),
    ):
        (tmp_path / name).write_text(text)
    result = run_json(
        *("preprocess", "raw-tar", source, tmp_path / "out", "--size", 32, "--workers", 1),
        *("--classes", tmp_path / "classes.txt", "--exclude", tmp_path / "exclude.txt"),
        *("--val-list", tmp_path / "val.txt", "--drop-subtree", BIRD),
    )
    assert result["counts"]["num_classes"] == 1
    assert [(row["split"], row["key"]) for row in table(tmp_path / "out", "manifest")] == [
        ("train", f"{SUN}_0"),
        ("train", f"{SUN}_2"),
    ]
    assert [(row["name"], row["reason"]) for row in table(tmp_path / "out", "rejects")] == [
        (f"{SUN}_1.JPEG", "excluded")
    ]


def test_parents_place_classes_of_ones_own_in_the_tree(tmp_path: Path) -> None:
    source = write_files(tmp_path / "images", photos(("black-swan", "toy", BIRD)))
    parents = tmp_path / "parents.csv"
    parents.write_text(f"child,parent,name\nblack-swan,{SWAN},black swan\n")
    words = ("preprocess", "folder", source, tmp_path / "out", *FEW, "--size", 32, "--parents", parents)
    assert run_json(*words)["classes_per_level"] == [2, 1]
    rows = {row["wnid"]: (row["name"], row["level"]) for row in table(tmp_path / "out", "classes")}
    assert rows == {"black-swan": ("black swan", 1), "toy": ("toy", 0), BIRD: ("bird", 0)}
    parents.write_text("child,parent\nblack-swan,toy\n")
    assert "made with other settings (parents '" in refused(*words)


@pytest.mark.parametrize(
    ("options", "inner"),
    [
        (("--parents", "PARENTS"), {"pets", "animal"}),
        (("--parents", "PARENTS", "--no-inner-classes"), set()),
        (("--inner-classes",), {"animal"}),
        ((), set()),
    ],
)
def test_inner_classes_come_with_parents_or_when_asked_for(
    options: tuple[str, ...], inner: set[str], tmp_path: Path
) -> None:
    source = write_files(tmp_path / "images", photos(("cat", "dog", "n02084071", SWAN)))
    (tmp_path / "PARENTS").write_text(f"child,parent\ncat,pets\ndog,pets\npets,animal\n{SWAN},animal\n")
    words = [tmp_path / word if word == "PARENTS" else word for word in options]
    run_json("preprocess", "folder", source, tmp_path / "out", *FEW, "--size", 32, *words)
    rows = table(tmp_path / "out", "classes")
    assert {row["name"] for row in rows if row["inner"]} >= inner
    assert bool(inner) is any(row["inner"] for row in rows)
    assert [row["class_index"] for row in rows if not row["inner"]] == [0, 1, 2, 3]
    shown = run_json("tree", "show", tmp_path / "out")
    assert shown["num_inner_classes"] == sum(row["inner"] for row in rows)
    for name in inner:
        assert f"{name}  " in (text := run("tree", "show", tmp_path / "out", name).stdout)
        assert "inner class" in text


def test_own_folders_need_no_numbers(tmp_path: Path) -> None:
    source = write_files(tmp_path / "images", photos(("cat", "dog")))
    prepared = run_json("preprocess", "folder", source, tmp_path / "out", "--workers", 1)
    splits = prepared["counts"]["splits"]
    assert (splits["train"]["num_samples"], splits["val"]["num_samples"]) == (4, 2)
    settings = prepared["settings"]
    assert (settings["rare_threshold"], settings["val_share"], settings["size"]) == (0, 0.1, 60)


@pytest.mark.parametrize("form", [str, class_id])
def test_every_option_takes_a_class_by_its_folders_name_or_its_identifier(
    form: Callable[[str], str], tmp_path: Path
) -> None:
    retriever, coffee, dog = "golden retriever", "café au lait", "my dogs"
    source = write_files(tmp_path / "images", photos((retriever, coffee, "toy")))
    for option, lines in {
        "--parents": [f"{form(retriever)},{form(dog)}", f"{form(dog)},n02084071", f"{form(coffee)},"],
        "--classes": [form(retriever), form(coffee)],
        "--exclude": [f"{form(coffee)}/{coffee}_0.JPEG"],
        "--val-list": [f"{form(retriever)}/{retriever}_1.JPEG"],
    }.items():
        (tmp_path / option).write_text("\n".join(lines))
    options = ("--parents", "--classes", "--exclude", "--val-list")
    words = [word for option in options for word in (option, tmp_path / option)]
    run_json("preprocess", "folder", source, tmp_path / "out", *FEW, "--size", 32, "--max-reject-rate", 1, *words)
    rows = {row["wnid"]: (row["name"], row["num_train"], row["num_val"]) for row in table(tmp_path / "out", "classes")}
    assert rows.pop("toy")[1:] == (0, 0)
    assert rows == {class_id(retriever): (retriever, 2, 1), class_id(coffee): (coffee, 2, 0)}
    dropped = run_json(
        *("preprocess", "folder", source, tmp_path / "dropped", *FEW, "--size", 32, "--val-per-class", 0),
        *("--parents", tmp_path / "--parents", "--drop-subtree", form(dog)),
    )
    assert dropped["counts"]["num_classes"] == 2
    assert "class" in run("tree", "show", tmp_path / "out", retriever).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--classes", "fall12p"), "fall12p: neither a file nor a known label space"),
        (("--classes", "NOTHING"), "lists no class"),
        (("--classes", "TWICE"), "line 2: a/b is on line 1 too"),
        (("--exclude", "NOWHERE"), "No such file"),
        (("--exclude", "NOTHING"), "lists nothing"),
        (("--val-list", "WORD"), "line 1: 'word'; wanted a key"),
        (("--val-list", "SWANS"), "would have no training image"),
        (("--drop-subtree", "swan"), "--drop-subtree swan: not a WordNet synset"),
        (("--drop-subtree", BIRD, "--drop-subtree", SUN), "below --drop-subtree, so no class is left"),
        (("--parents", "NOTHING"), "is empty"),
        (("--val-per-class", -1), "val_per_class is -1"),
        (("--max-reject-rate", 2), "--max-reject-rate is 2"),
        (("--ray-address", "auto"), "--engine ray"),
        (("--resize", "crop"), "--resize"),
        (("--quality", 0), "quality is 0"),
        (("--inner-classes", "--classes", "fall11p"), "--inner-classes cannot be used with --classes fall11p"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(words: tuple[object, ...], message: str, tmp_path: Path) -> None:
    source = write_tar(tmp_path / "raw.tar", photos())
    contents = {
        "NOTHING": "\n",
        "TWICE": "a/b\na/b\n",
        "WORD": "word\n",
        "SWANS": "".join(f"{SWAN}_{n}\n" for n in range(3)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    items = [tmp_path / word if word in (*contents, "NOWHERE") else word for word in words]
    command = ("preprocess", "raw-tar", source, tmp_path / "out", *FEW, "--size", 32, *items)
    assert message in refused(*command)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "content", "message"),
    [
        ("folder", None, "No such file"),
        ("folder", b"\x1f\x8b\x08", "not a text file; wanted a folder, or a list"),
        ("folder", b"images/1.jpg\n", "line 1: 'images/1.jpg'; wanted a path and labels"),
        (
            "folder",
            b"gone.jpg cat\n",
            "source: none of the 1 listed files is an image that exists (the first: gone.jpg",
        ),
        ("raw-tar", b"\x1f\x8b\x08\x00", "source: not a tar, or damaged"),
    ],
)
def test_a_source_that_is_none_is_one_line_and_leaves_nothing(
    command: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    if content is not None:
        source.write_bytes(content)
    assert message in refused("preprocess", command, source, tmp_path / "out", *FEW)
    assert not (tmp_path / "out").exists()


def test_a_finished_output_is_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_tar(tmp_path / "raw.tar.gz", photos())
    words = ("preprocess", "raw-tar", source, tmp_path / "out", *FEW, "--size", 32)
    with caplog.at_level("INFO"):
        assert [run(*words).exit_code for _ in range(2)] == [0, 0]
    assert "finished already" in caplog.text


def test_an_output_inside_the_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jpg").write_bytes(b"")
    for out in (tmp_path, tmp_path / "cat" / "out"):
        assert_refused(run("preprocess", "folder", tmp_path, out), "lies in the source")


def test_a_dry_run_prints_what_would_be_kept_and_writes_nothing(raw: Path, tmp_path: Path) -> None:
    words = ("preprocess", "raw-tar", raw, tmp_path / "out", "--rare-threshold", 11, "--val-per-class", 2)
    words += ("--workers", 1, "--dry-run")
    output = run_json(*words)
    assert (output["num_classes"], output["fits"], output["is_exact"]) == (8, True, True)
    assert "8 of 8 classes would be kept" in run(*words).stdout
    assert_refused(run(*words, "--val-per-class", 12), "would have no training image", "lower --val-per-class")
    assert list(tmp_path.iterdir()) == []


def test_the_summary_says_what_was_lost_ignored_and_left_empty(tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", photos())
    (source / BIRD / f"{BIRD}_0.JPEG").write_bytes(b"no image")
    (source / SUN / f"{SUN}_0.JPEG").write_bytes(b"")
    for name in ("._1.JPEG", "._2.JPEG", ".DS_Store", "notes.txt"):
        (source / SWAN / name).write_bytes(b"junk")
    (source / "n02051845").mkdir()
    truncated = bytearray((source / SWAN / f"{SWAN}_2.JPEG").read_bytes())
    truncated[-2:-2] = b"\x00" * 8  # libjpeg: extraneous bytes before marker
    (source / SWAN / f"{SWAN}_2.JPEG").write_bytes(truncated)
    words = ("preprocess", "folder", source, tmp_path / "out", *FEW, "--size", 32, "--max-reject-rate", 0.5)
    lines = run(*words).stdout.splitlines()
    assert lines[1:-1] == [
        "images of those: 9; stored: 6 train + 1 val",
        "rejects, files that are not images included: 3 (empty 1, no image suffix 1, not an image 1)",
        "images stored with a decoder warning: 1",
        "files ignored, known not to be images: 3 (._* 2, .DS_Store 1)",
        "class folders and class tars that are empty: 1 (n02051845)",
        f"classes without validation images: 2 ({BIRD}, {SUN})",
        f"classes with rejects among their validation images, which are not replaced: 2 ({BIRD} 1, {SUN} 1)",
    ]
    output = run_json(*words)  # which is finished, and says the same
    assert output["rejects"] == {"empty": 1, "no image suffix": 1, "not an image": 1}
    assert output["ignored"] == {"._*": 2, ".DS_Store": 1}
    assert output["classes_without_val"] == [BIRD, SUN]
    assert output["val_rejects"] == {BIRD: 1, SUN: 1}
    assert run_json(*words[:3], tmp_path / "no val", *words[4:], "--val-per-class", 0)["classes_without_val"] == []


@pytest.mark.parametrize("numpy_major", [1, 2])
def test_a_published_tree_fixes_classes_and_parents(
    numpy_major: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Swan lies below sun here, as it does in no WordNet; bird has images and is not a class of the tree."""
    content = {
        "class_list": [np.str_(SWAN), np.str_(SUN)],
        "class_description": {SWAN: "a bird on water", SUN: "sun"},
        "class_tree_list": [[np.int64(0), np.int64(1)], [np.int64(1)]],
    }
    save_by_numpy(numpy_major, content, tmp_path / "tree.pth", is_zip=True)
    source = write_files(tmp_path / "images", photos())
    caplog.set_level(logging.INFO)
    run_json("preprocess", "folder", source, tmp_path / "out", "--tree", tmp_path / "tree.pth", *FEW[2:])
    dataset = PreparedSet(tmp_path / "out")
    assert (dataset.tree.wnids, dataset.tree.names, dataset.tree.parents) == ((SWAN, SUN), ("swan", "sun"), (1, -1))
    rows = {row.wnid: row for row in dataset.classes}
    assert (rows[BIRD].kept, rows[SWAN].kept, rows[SWAN].num_raw) == (False, True, 3)
    assert "aquatic bird" in rows[SWAN].definition
    assert f"1 of 2 classes have another parent than in our tree: {SWAN} (swan: {SUN}, ours none)" in caplog.text
    assert f"1 of 2 classes have another name: {SWAN} (a bird on water, ours swan)" in caplog.text


def test_a_tree_with_inner_classes_gives_them_again(tmp_path: Path) -> None:
    source = write_files(tmp_path / "images", photos((SWAN, "n02051845", SUN)))
    words = ("preprocess", "folder", source)
    run_json(*words, tmp_path / "first", "--inner-classes", *FEW)
    run_json(*words, tmp_path / "again", "--tree", tmp_path / "first", *FEW[2:])
    assert PreparedSet(tmp_path / "first").tree.num_inner == 1
    assert PreparedSet(tmp_path / "again").tree == PreparedSet(tmp_path / "first").tree


@pytest.mark.parametrize("option", [("--classes", "fall11p"), ("--parents", "parents.csv"), ("--no-inner-classes",)])
def test_a_tree_leaves_nothing_to_choose(option: tuple[str, ...], tmp_path: Path) -> None:
    source = write_files(tmp_path / "images", photos())
    words = ("preprocess", "folder", source, tmp_path / "out", "--tree", tmp_path / "tree.json", *option)
    assert "--tree fixes classes and parents; leave" in refused(*words)
