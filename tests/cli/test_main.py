"""The command line as a whole: help, the README, and how little it takes to answer."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from unittest.mock import patch

import click
import pytest
import torch
from click.testing import CliRunner

from in21k.cli.commands import EXAMPLES, SECTIONS
from in21k.cli.main import cli

from .conftest import run

README = Path(__file__).parents[2] / "README.md"
PAGES = [README, *sorted((README.parent / "docs").glob("*.md"))]
CONTEXT = click.Context(cli)
HEAVY = ("torch", "timm", "pyarrow", "nltk", "numpy", "PIL", "nvidia")


def commands(group: click.Group = cli, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name in group.list_commands(CONTEXT):
        command = group.get_command(CONTEXT, name)
        assert command
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = dict(commands())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_each_of_its_options_too(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    assert command.help
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def commands_in(text: str) -> Iterator[list[str]]:
    """The words after each `in21k` in shell lines, but for the label space of that name."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words = list(lexer)
        for start in [place for place, word in enumerate(words) if word == "in21k" and words[place - 1] != "--classes"]:
            yield list(takewhile(lambda word: not set(word) <= set("|&;<>"), words[start + 1 :]))


def parse(words: list[str]) -> tuple[str, ...]:
    """Parse a command as `in21k` does, its settings too; return the words that name it."""
    from in21k.training import resolve_settings
    from in21k.training.recipes import parse_sets

    command: click.Command = cli
    name: tuple[str, ...] = ()
    while isinstance(command, click.Group):
        word, inner, words = command.resolve_command(CONTEXT, words)
        assert inner, word
        command, name = inner, (*name, str(word))
    with patch("in21k.cli.options._read_tree"):  # --tree is read when it is parsed; these commands have no files
        values = command.make_context("in21k", list(words)).params
    if "sets" in values:
        resolve_settings(values.get("recipe"), parse_sets(values["sets"]))
    return name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_give_commands_that_exist_with_options_that_exist(page: Path) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    shell = [block for kind, block in blocks if kind not in ("python", "text")]
    calls = [words for block in shell for words in commands_in(block) if "…" not in words]
    assert calls or page.parent.name == "docs"
    for words in calls:
        parse(words)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_shows_examples_of_itself_that_parse_and_fit_80_columns(words: tuple[str, ...]) -> None:
    text = run(*words, "--help").stdout
    examples = text[text.index("Examples:\n") :]
    assert max(map(len, examples.splitlines())) <= 80
    assert {parse(call) for call in commands_in(examples)} == {words}


def test_the_examples_of_the_group_are_the_main_job() -> None:
    commands = [parse(words)[0] for words in commands_in("\n".join(EXAMPLES[""]))]
    assert commands == [
        "sample-data",
        "preprocess",
        "shard",
        "verify",
        "train",
        "validate",
        "predict",
    ]


def test_the_help_names_every_command_by_its_job_and_cuts_no_summary() -> None:
    text = CliRunner().invoke(cli, ["--help"], env={"COLUMNS": "80"}).stdout
    sections = dict(re.findall(r"^([\w ]+):\n((?:  .*\n)+)", text, re.MULTILINE))
    assert {"Data", "Training", "Using a model", "Looking"} <= set(sections)
    for title, summaries in SECTIONS.items():
        rows = [re.split(r"  +", line.strip()) for line in sections[title].splitlines()]
        assert rows == [list(row) for row in summaries.items()]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("group", ["config", "preprocess", "tree"])
def test_the_summaries_within_a_group_fit_their_line(group: str) -> None:
    assert "..." not in CliRunner().invoke(cli, [group, "--help"], env={"COLUMNS": "80"}).stdout.split("Commands:")[1]


def test_a_group_without_a_command_prints_its_help() -> None:
    assert "\nCommands:\n  export " in run("tree").stderr


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_changes_no_exit_code_and_no_file(closed: str, tmp_path: Path) -> None:
    """The closed stream's number must not go to a file of ours, which would then hold what is said."""

    def exit_code(out: str, num_classes: int, streams: str) -> int:
        words = ["sample-data", tmp_path / out, "--classes", num_classes, "--images-per-class", 1]
        command = shlex.join([sys.executable, "-c", "from in21k.cli.main import main; main()", *map(str, words)])
        return subprocess.run(f"{command} {streams}", shell=True, check=False, capture_output=True).returncode

    assert [exit_code("1.tar", 8, closed), exit_code("2.tar", 8, "")] == [0, 0]
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    assert exit_code("3.tar", 1, closed) == 2


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['in21k', '--help']\n"
        "from in21k.cli.main import main\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: in21k")
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(("command", "resumes"), [("knn", False), ("predict", False), ("shard", True), ("train", True)])
def test_ctrl_c_promises_no_more_than_is_kept(
    command: str, resumes: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.get_command(CONTEXT, command), "make_context", interrupted)
    stopped = run(command)
    assert stopped.exit_code == 130
    assert stopped.stderr.startswith("in21k: stopped")
    assert ("run the same command again to resume" in stopped.stderr) is resumes


def test_a_reader_that_has_enough_is_no_mistake() -> None:
    program = (sys.executable, "-c", "from in21k.cli.main import main; main()", "config", "list")
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        text = process.stderr.read()
    assert (process.returncode, text) == (1, "")


@pytest.mark.parametrize("command", ["knn", "probe", "retrieve", "bench-model", "predict"])
def test_the_work_of_one_process_is_refused_to_several_ranks(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = run(command, "resnet10t", tmp_path)
    assert refused.exit_code == 2
    assert "without torchrun" in refused.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 1. TiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    ],
    ids=["numpy", "torch", "gpu"],
)
def test_memory_that_lacks_is_one_line_and_other_errors_are_none(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli.get_command(CONTEXT, "doctor"), "invoke", fails)
    refused = run("doctor")
    assert refused.exit_code == 2
    assert "out of memory" in refused.stderr
    error.args = ("a bug",)
    assert (run("doctor").exit_code == 1) is not isinstance(error, MemoryError)
