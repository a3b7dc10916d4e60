"""Whatever a name holds, it neither breaks a line nor steers a terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from in21k.cli.options import emit, table
from in21k.cli.terminal import LineFormatter, in_lines, in_one_line, json_text, printable, width

from .conftest import run, run_json

STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
EVIL = "a\x1b]0;owned\x07\x9b2J\r\nFORGED \u202egnp.\u2028"  # a window's title, a cleared screen, a line of its own


def assert_harmless(*outputs: str) -> None:
    for output in outputs:
        assert not STEERING.search(output), output
        assert not [line for line in output.splitlines() if line.startswith("FORGED")], output


@given(st.text())
def test_a_text_in_one_line_steers_nothing_and_says_what_it_held(text: str) -> None:
    line = in_one_line(text)
    assert not STEERING.search(line)
    assert "\n" not in line
    assert in_one_line(line) == line
    assert line == text or STEERING.search(text) or "\n" in text or "\u061c" in text
    assert in_lines(text).count("\n") == text.count("\n")
    assert not STEERING.search(in_lines(text))


def test_letters_of_every_script_stay() -> None:
    assert in_one_line("Müller's 金毛犬, हिन्दी, עברית, 🐶 – é") == "Müller's 金毛犬, हिन्दी, עברית, 🐶 – é"
    assert in_one_line(EVIL) == r"a\x1b]0;owned\x07\x9b2J\r\nFORGED \u202egnp.\u2028"


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda item: st.lists(item) | st.dictionaries(st.text(), item))
)
def test_json_is_the_same_document_and_steers_nothing(value: object) -> None:
    for indent in (None, 1):
        text = json_text(value, indent=indent)
        assert json.loads(text) == value
        assert not STEERING.search(text)
        assert indent or "\n" not in text


def test_the_text_of_a_result_is_made_of_printable_names(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"name": EVIL, "rows": [{"key": EVIL}], EVIL: (1, EVIL)}
    emit(result, lambda shown: f"{shown['name']}\n{shown['rows'][0]['key']}\n{list(shown)[2]}", as_json=False)
    emit(result, f"first\n{EVIL.replace(chr(10), '')}", as_json=False)
    emit(result, "", as_json=True)
    assert_harmless(out := capsys.readouterr().out)
    assert out.count("\\u202e") >= 5
    line = in_one_line(EVIL)
    assert printable(result) == {"name": line, "rows": [{"key": line}], line: [1, line]}


def test_a_table_is_aligned_by_what_a_terminal_shows() -> None:
    lines = table([["name", "count"], ["金毛犬", "1"], [EVIL, "2"], ["e\u0301", "10"]]).splitlines()
    assert len(lines) == 4
    assert len({width(line) for line in lines}) == 1


@pytest.mark.parametrize(("logger", "num_lines"), [("in21k.preprocess.checks", 1), ("torch", 2)])
def test_a_record_of_ours_is_one_line_and_others_keep_theirs(logger: str, num_lines: int) -> None:
    record = logging.LogRecord(logger, logging.WARNING, __file__, 1, "first %s", (f"\x1b[2J{chr(10)}second",), None)
    text = LineFormatter("%(message)s").format(record)
    assert len(text.splitlines()) == num_lines
    assert not STEERING.search(text)


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((40, 40)).rotate(31 * seed).convert("RGB").save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders with hostile names, of six images and a file that is none each."""
    home = tmp_path_factory.mktemp("hostile") / f"home {EVIL}".replace("/", "")
    for place, name in enumerate((f"cat {EVIL}", f"dog 金毛犬 {EVIL}")):
        folder = home / "images" / name
        folder.mkdir(parents=True)
        for number in range(6):
            (folder / f"{number}{EVIL}.jpg").write_bytes(jpeg(10 * place + number))
        (folder / f"notes{EVIL}").write_text("no image")
    return home


@pytest.fixture(scope="module")
def hostile_shards(hostile: Path) -> Path:
    few = ("--rare-threshold", 0, "--val-per-class", 2, "--size", 32, "--workers", 1, "--max-reject-rate", 1)
    run_json("preprocess", "folder", hostile / "images", hostile / "prepared", *few)
    run_json("shard", hostile / "prepared", hostile / "shards", "--workers", 1)
    return hostile / "shards"


def test_logs_messages_and_results_of_whole_processes_are_harmless(hostile: Path, tmp_path: Path) -> None:
    """Of a run that says what it misses, and of one that fails."""
    (tmp_path / "classes").write_text(f"cat {EVIL.replace(chr(10), '').replace(chr(13), '')}\n")
    out = tmp_path / f"out {EVIL}"
    few = ["--rare-threshold", "0", "--val-per-class", "2", "--size", "32", "--workers", "1"]
    for words, code in (([*few, "--max-reject-rate", "1"], 0), (few, 2), (["--classes", str(tmp_path / "classes")], 2)):
        command = ["preprocess", "folder", str(hostile / "images"), f"{out}{len(words)}", *words]
        program = "from in21k.cli.main import main; main()"
        done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, check=False)
        assert done.returncode == code, done.stderr
        assert_harmless(done.stdout.decode(), done.stderr.decode())


def test_a_traceback_is_harmless(hostile: Path) -> None:
    command = [sys.executable, "-c", "from in21k.cli.main import main; main()", "verify", str(hostile / EVIL)]
    environment = {**os.environ, "IN21K_TRACEBACK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 1
    stderr = done.stderr.decode()
    assert stderr.startswith("Traceback (most recent call last):")
    assert not STEERING.search(stderr)


def test_what_commands_print_of_hostile_data_is_harmless(hostile: Path, hostile_shards: Path, tmp_path: Path) -> None:
    prepared = hostile / "prepared"
    wnid = sorted(row["wnid"] for row in run_json("tree", "show", prepared)["largest_branches"])[0]
    with tarfile.open(next((prepared / "train").glob("*.tar")), "a") as archive:
        member = tarfile.TarInfo(f"{wnid}{EVIL}.jpg")
        archive.addfile(member)
    calls: list[Callable[[], list[object]]] = [
        lambda: ["tree", "show", prepared],
        lambda: ["tree", "show", prepared, wnid],
        lambda: ["tree", "show", prepared, f"{EVIL} no such class"],
        lambda: ["tree", "export", prepared, tmp_path / f"tree {EVIL}.csv", "--format", "csv"],
        lambda: ["verify", prepared],
        lambda: ["verify", hostile_shards, "--deep"],
        lambda: ["shard", hostile_shards, tmp_path / "out"],
        lambda: ["report", prepared, tmp_path / f"report {EVIL}.html", "--images", 2],
        lambda: ["browse", hostile_shards, tmp_path / f"sheet {EVIL}.png", "--backend", "torch"],
        lambda: ["bench-loader", hostile / EVIL],
        lambda: ["predict", hostile / EVIL, hostile / "images"],
        lambda: ["train", "--data", hostile_shards, "--out", hostile / "run", "--set", f"{EVIL}=1"],
        lambda: ["preprocess", "raw-tar", hostile / f"{EVIL}.tar", tmp_path / "out"],
        lambda: [f"no such command {EVIL}"],
    ]
    for call in calls:
        for words in (call(), [*call(), "--json"]):
            result = run(*words)
            assert result.exit_code in (0, 1, 2), (words, result.output)
            assert_harmless(result.stdout, result.stderr)


def test_what_networks_say_of_hostile_names_is_harmless(
    hostile: Path, hostile_shards: Path, trained: Path, tmp_path: Path
) -> None:
    sets = {"model": "resnet10t", "batch_size": 4, "epochs": 1, "backend": "opencv", "workers": 1, "image_size": 32}
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    tuned = tmp_path / f"tuned {EVIL}"
    run_json("train", "--data", hostile_shards, "--out", tuned, *words)
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for name, data in ((f"good{EVIL}.jpg", jpeg(1)), (f"bad{EVIL}.jpg", b"no image")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    for call in (
        ["validate", tuned, "--data", hostile_shards],
        ["predict", tuned, hostile / "images", tmp_path / "images.tar", "--picture", tmp_path / f"{EVIL}.png"],
        ["predict", tuned, tmp_path / "images.tar", "--jsonl"],
        ["export", tuned, tmp_path / f"export {EVIL}"],
    ):
        result = run(*call)
        assert result.exit_code == 0, result.output
        assert_harmless(result.stdout, result.stderr)


def test_a_terminal_of_another_encoding_gets_escapes_and_json_stays_json(hostile_shards: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "iso8859-1", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", "from in21k.cli.main import main; main()", "tree", "show", str(hostile_shards)]
    text, document = (
        subprocess.run([*command, *more], env=environment, capture_output=True, check=True).stdout.decode("iso8859-1")
        for more in ([], ["--json"])
    )
    assert "\\u91d1\\u6bdb" in text
    assert_harmless(text, document)
    assert [row["name"] for row in json.loads(document)["largest_branches"]] == [f"cat {EVIL}", f"dog 金毛犬 {EVIL}"]
