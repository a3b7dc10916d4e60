"""Write the pages that are made from the code: docs/cli.md from `--help`, docs/python.md from docstrings.

`make docs` runs it; a test fails when a page is stale.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

DOCS = Path(__file__).parent
FOLDERS = ("shards", "preprocess", "datapipe", "models", "training", "training.jobs")
WIDTH = 100  # columns of a help text
CLI_HEAD = """# Commands

This page is made from `--help` by `make docs`. Results go to stdout, progress and logs to stderr. A mistake ends with
one line and exit code 2.

Every command takes `-v` and `-q`, before or after its name. `-v` also logs details: files as they are written, what
`auto` chose. `-q` logs warnings only and shows no progress. Errors, warnings and headings are coloured on a terminal,
unless `NO_COLOR` is set. [Shells complete](install.md#shell-completion) commands and options.

Next: [python](python.md).
"""
PYTHON_HEAD = """# Python

This page is made from docstrings by `make docs`. Import the names from the folder that heads their section:
`from in21k.datapipe import create_loader`.

Next: [guarantees](guarantees.md).
"""


def commands(group: click.Group, context: click.Context) -> Iterator[click.Context]:
    """Yield a context for each command of a group, groups within it included, by name."""
    for name in sorted(group.list_commands(context)):
        command = group.get_command(context, name)
        assert command
        inner = click.Context(command, parent=context, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
        yield inner
        if isinstance(command, click.Group):
            yield from commands(command, inner)


def cli_page() -> str:
    """Return the text of docs/cli.md."""
    from in21k.cli.main import cli

    # With the settings that a started command has: click keeps the help option of the first context that it sees.
    settings = {**cli.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    root = click.Context(cli, info_name="in21k", **settings)
    parts = [CLI_HEAD]
    for context in [root, *commands(cli, root)]:
        level = "##" if context.parent in (None, root) else "###"
        text = click.unstyle(context.command.get_help(context)).rstrip()
        parts.append(f"{level} {context.command_path}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def python_page() -> str:
    """Return the text of docs/python.md."""
    parts = [PYTHON_HEAD]
    for folder in FOLDERS:
        module = importlib.import_module(f"in21k.{folder}")
        parts.append(f"## in21k.{folder}\n\n{inspect.getdoc(module)}\n")
        for name in sorted(module.__all__):
            parts.append(describe(name, getattr(module, name)))
    return "\n".join(parts)


def describe(name: str, thing: object) -> str:
    """Return the section of a public name: its signature and docstring, and those of a class's public methods."""
    entries = [_entry(name, thing)]
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        entries += [
            _entry(f"{name}.{method}", member)
            for method, member in vars(thing).items()
            if not method.startswith("_") and inspect.isfunction(member) and member.__doc__
        ]
    return f"### {name}\n\n" + "\n".join(entries)


def _entry(name: str, thing: object) -> str:
    try:
        # A function that is a default value stands there by its name.
        signature = re.sub(r"<function (\w+) at \w+>", r"\1", str(inspect.signature(thing))) if callable(thing) else ""
    except ValueError:
        signature = "(...)"
    signature = signature.replace("'", "")
    return f"```text\n{name}{signature}\n\n{inspect.getdoc(thing)}\n```\n"


if __name__ == "__main__":
    (DOCS / "cli.md").write_text(cli_page())
    (DOCS / "python.md").write_text(python_page())
