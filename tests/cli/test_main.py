"""The command line as a whole: help, the README, and how little it takes to answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from in21k.cli.main import cli

from .conftest import run

README = Path(__file__).parents[2] / "README.md"
HEAVY = ("torch", "timm", "pyarrow", "nltk", "numpy", "PIL", "nvidia")


def commands(group: click.Group = cli, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
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


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_in_the_readme(words: tuple[str, ...]) -> None:
    assert f"in21k {' '.join(words)}" in README.read_text()


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
