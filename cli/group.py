"""The group of all commands: imports one when it is called, and gives each its examples, -v and -q."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import platform
import shlex
import sys
from typing import Any

import click

from .commands import EXAMPLES, SECTIONS
from .terminal import colour, in_one_line, set_up_streams, set_verbosity

log = logging.getLogger(__name__)

TRACEBACK = "IN21K_TRACEBACK"
# Commands that resume when they are started again.
RESUMING = ("preprocess", "shard", "train", "finetune", "features")
MODULES = {"report": "report.command"}  # where it is not named as the command is
SUMMARIES = {name: summary for section in SECTIONS.values() for name, summary in section.items()}
NAME_WIDTH = max(map(len, SUMMARIES))


class MistakeError(click.ClickException):
    """What a person can put right: one line, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print the line on stderr."""
        line = in_one_line(" ".join(self.format_message().split()))
        click.echo(f"{click.style('in21k:', fg='red', bold=True)} {line}", file=file or sys.stderr, color=colour())


class StoppedError(MistakeError):
    """Ctrl-C."""

    exit_code = 130


def _verbosity_option(names: tuple[str, str], level: int, text: str) -> click.Option:
    def set_level(_context: click.Context, _option: click.Parameter, value: bool) -> None:
        if value:
            from importlib.metadata import version

            set_verbosity(level)
            log.debug("in21k %s, Python %s: %s", version("in21k"), platform.python_version(), shlex.join(sys.argv))

    return click.Option(names, is_flag=True, expose_value=False, callback=set_level, help=text)


VERBOSITY = [
    _verbosity_option(("-v", "--verbose"), logging.DEBUG, "Also log details, each after its time and module."),
    _verbosity_option(("-q", "--quiet"), logging.WARNING, "Log warnings only, and show no progress."),
]


class _Formatter(click.HelpFormatter):
    def write_heading(self, heading: str) -> None:
        """Write a heading, bold where help goes to a terminal."""
        self.write(f"{'':{self.current_indent}}{_bold(f'{heading}:')}\n")


class _Context(click.Context):
    formatter_class = _Formatter


def _bold(text: str) -> str:
    return click.style(text, bold=True)


def _equip(command: click.Command, *words: str) -> click.Command:
    """Give a command, and those within it, examples, -v and -q, and bold headings."""
    command.context_class = _Context
    command.params += VERBOSITY
    if examples := EXAMPLES.get(" ".join(words)):
        lines = "\n".join(examples).replace("\n", "\n  ")
        command.epilog = f"\b\n{_bold('Examples:')}\n  {lines}"
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            _equip(inner, *words, name)
    return command


class CommandGroup(click.Group):
    """A group whose commands end with one line, never a traceback, when what they were given cannot work."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        _equip(self)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of the commands, by job."""
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, whose module is imported now; for an unknown name all are, as click suggests one."""
        for name in [cmd_name] if cmd_name in SUMMARIES else SUMMARIES:
            if name not in self.commands:
                attribute = name.replace("-", "_")
                module = importlib.import_module(f".{MODULES.get(name, attribute)}", __package__)
                command = _equip(getattr(module, attribute), name)
                command.short_help = SUMMARIES[name]  # which shells show beside what they complete
                self.add_command(command, name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the commands by job."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(NAME_WIDTH), summary) for name, summary in commands.items()])

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Set up the streams before anything is printed."""
        set_up_streams()
        return super().make_context(info_name, args, parent, color=colour(), **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a mistake, a file that cannot be read or a worker that died becomes one line."""
        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise  # click prints the help of the group within
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "in21k"
            raise MistakeError(f"{error.format_message()} (see `{command} --help`)") from error
        except KeyboardInterrupt:
            way_on = "; run the same command again to resume" if ctx.invoked_subcommand in RESUMING else ""
            raise StoppedError(f"stopped{way_on}") from None
        except BrokenPipeError:
            raise  # click ends quietly: the reader of stdout has enough (`| head`)
        except (MemoryError, RuntimeError) as error:
            if os.environ.get(TRACEBACK) or not _is_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or ["MemoryError"])[0]
            raise MistakeError(f"out of memory ({reason}); lower the batch size or the image size") from error
        except (ValueError, OSError) as error:
            if os.environ.get(TRACEBACK):
                raise
            raise MistakeError(_describe(error)) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether this machine's or the GPU's memory ran out, by the words of numpy and torch."""
    phrases = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in phrases)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        way_out = "; make room and start the same command again" if error.errno == errno.ENOSPC else ""
        return f"{where}{error.strerror}{way_out}"
    return str(error) or type(error).__name__
