"""What every command has: -v and -q, colour on a terminal alone, completion in shells."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from in21k.cli import progress as progress_module
from in21k.cli.main import cli
from in21k.cli.progress import ProgressLine, TrainLine
from in21k.shards.files.parallel import Progress

from .conftest import run

PROGRAM = (sys.executable, "-c", "from in21k.cli.main import main; main()")
ANSI = "\x1b["


@pytest.fixture(autouse=True)
def _usual_verbosity() -> Iterator[None]:
    yield
    logging.getLogger("in21k").setLevel(logging.NOTSET)


def stderr_of(*words: object) -> str:
    """What a whole process prints on stderr."""
    done = subprocess.run([*PROGRAM, *map(str, words)], capture_output=True, text=True, check=True)
    return done.stderr


@pytest.mark.parametrize("before", [True, False], ids=["before the command", "after it"])
def test_verbose_logs_details_and_quiet_nothing(before: bool, tmp_path: Path) -> None:
    def words(option: str) -> list[object]:
        command = ["sample-data", tmp_path / "raw.tar", "--classes", 8, "--images-per-class", 1]
        return [*option.split(), *command] if before else [*command, *option.split()]

    detail = re.compile(r"^\d+\.\d\d s in21k\.\S+: ", re.MULTILINE)
    verbose = stderr_of(*words("-v"))
    assert detail.search(verbose)
    assert f"{tmp_path / 'raw.tar'}: written" in verbose
    usual = stderr_of(*words(""))
    assert "finished already" in usual
    assert not detail.search(usual)
    assert stderr_of(*words("--quiet")) == ""


def test_quiet_leaves_warnings() -> None:
    run("--quiet", "config", "list")
    assert logging.getLogger("in21k").getEffectiveLevel() == logging.WARNING


def test_quiet_of_one_command_is_not_that_of_the_next() -> None:
    run("--quiet", "config", "list")
    run("config", "list")
    assert logging.getLogger("in21k").getEffectiveLevel() == logging.INFO


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_shows_no_progress(
    quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*(["-q"] if quiet else []), "config", "list")
    monkeypatch.setattr(progress_module, "PLAIN_SECONDS", 0)
    with ProgressLine("store") as line:
        for share in (0.0, 0.5, 1.0):
            line(Progress(share, round(10 * share), 0))
    with TrainLine() as training:
        training.on_start(0, 2)
        training.on_step({"step": 1, "epoch": 0, "loss": 1, "lr": 1, "images_per_s": 1, "data_wait": 0})
        training.on_validation({"epoch": 0, "validation": {"top1": 1}})
    shown = capsys.readouterr().err
    assert (shown == "") is quiet


def on_terminal(*words: str, **environment: str) -> tuple[int, str]:
    """Run a command whose stdout and stderr are a terminal; return its exit code and what was printed."""
    ours, theirs = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    with subprocess.Popen([*PROGRAM, *words], stdout=theirs, stderr=theirs, env=variables | environment) as process:
        os.close(theirs)
        parts = list[bytes]()
        try:
            while part := os.read(ours, 65536):
                parts.append(part)
        except OSError:  # the terminal is closed: the process has ended
            pass
    os.close(ours)
    return process.returncode, b"".join(parts).decode()


@pytest.mark.parametrize(
    "words", [("--help",), ("tree", "show", "nowhere"), ("config", "show", "--help")], ids=" ".join
)
def test_colour_is_where_a_terminal_is(words: tuple[str, ...]) -> None:
    code, coloured = on_terminal(*words, TERM="xterm")
    assert ANSI in coloured
    for environment in ({"NO_COLOR": "1", "TERM": "xterm"}, {"TERM": "dumb"}):
        assert on_terminal(*words, **environment) == (code, re.sub(r"\x1b\[[\d;]*m", "", coloured))
    piped = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=False)
    assert ANSI not in piped.stdout + piped.stderr


def test_results_on_a_terminal_are_what_a_pipe_gets() -> None:
    piped = subprocess.run([*PROGRAM, "config", "list"], capture_output=True, text=True, check=True)
    assert on_terminal("config", "list", TERM="xterm")[1].replace("\r\n", "\n") == piped.stdout


def test_warnings_are_yellow_on_a_terminal(tmp_path: Path) -> None:
    from in21k.shards.tree import SemanticTree

    SemanticTree.from_parents(["a", "b"], ["a", "b"], [-1, 0]).save(tmp_path / "tree.json")
    words = ("tree", "export", str(tmp_path), str(tmp_path / "tree.pth"), "--format", "miil", "--overwrite")
    assert "\x1b[33m" in on_terminal(*words, TERM="xterm")[1]
    assert ANSI not in on_terminal(*words, TERM="xterm", NO_COLOR="1")[1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_options_and_values(shell: str) -> None:
    def complete(line: str, place: int) -> list[str]:
        """What is offered for the last word; each shell's protocol has one of these variables."""
        incomplete = "" if line.endswith(" ") else line.split()[-1]
        environment = {"COMP_WORDS": line, "COMP_CWORD": incomplete if shell == "fish" else str(place)}
        environment["_IN21K_COMPLETE"] = f"{shell}_complete"
        return CliRunner().invoke(cli, [], prog_name="in21k", env=environment).stdout.split()

    script = CliRunner().invoke(cli, [], prog_name="in21k", env={"_IN21K_COMPLETE": f"{shell}_source"}).stdout
    assert f"_IN21K_COMPLETE={shell}_complete" in script
    assert "in21k" in script
    offered = " ".join(complete("in21k tr", 1))
    assert "train" in offered
    assert "tree" in offered
    assert "doctor" not in offered
    assert "--workers" in " ".join(complete("in21k verify --w", 2))
    assert "winter21" in " ".join(complete("in21k verify --release w", 3))


def test_bash_takes_the_script() -> None:
    program = 'eval "$(_IN21K_COMPLETE=bash_source in21k)" && complete -p in21k'
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "-F _in21k_completion in21k" in done.stdout
