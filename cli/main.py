"""The command `in21k`."""

from __future__ import annotations

import os
import sys

import click

from .group import CommandGroup
from .terminal import print_traceback


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="in21k", prog_name="in21k")
def cli() -> None:
    """Turn raw ImageNet-21K archives into shards, stream them, and pretrain with semantic softmax.

    Results go to stdout, progress and logs to stderr. IN21K_TRACEBACK=1 shows where an error came from.
    """


def main() -> None:
    """Run the command line."""
    _open_closed_streams()
    sys.excepthook = print_traceback
    cli()


def _open_closed_streams() -> None:
    """Send to /dev/null what goes to standard output or standard error where the caller closed them (`2>&-`).

    Otherwise a file that is opened later gets the number of the closed stream, and messages are written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
