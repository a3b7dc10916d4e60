"""The command `in21k`."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import click

from . import (
    average,
    bench_loader,
    bench_model,
    browse,
    config,
    doctor,
    export,
    features,
    finetune,
    knn,
    models,
    predict,
    preprocess,
    probe,
    retrieve,
    sample_data,
    shard,
    train,
    tree,
    validate,
    verify,
)
from .report import command as report
from .terminal import in_one_line, print_traceback, set_up_streams

TRACEBACK = "IN21K_TRACEBACK"
# Commands that keep what they have done, and go on with it when they are started again.
GO_ON = ("preprocess", "shard", "train", "finetune", "features")


class MistakeError(click.ClickException):
    """What a person can put right: one line, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print the line on stderr."""
        line = " ".join(self.format_message().split())
        click.echo(in_one_line(f"in21k: {line}"), file=file or sys.stderr)


class StoppedError(MistakeError):
    """Ctrl-C."""

    exit_code = 130


class OneLineGroup(click.Group):
    """A group whose commands end with one line, never a traceback, when what they were given cannot work."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a mistake, a file that cannot be had or a worker that died becomes one line."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "in21k"
            raise MistakeError(f"{error.format_message()} (see `{command} --help`)") from error
        except KeyboardInterrupt:
            kept = "; the same command goes on with what is done" if ctx.invoked_subcommand in GO_ON else ""
            raise StoppedError(f"stopped{kept}") from None
        except BrokenPipeError:
            raise  # click ends quietly: who read stdout has enough (`| head`)
        except (MemoryError, RuntimeError) as error:
            if os.environ.get(TRACEBACK) or not _is_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or ["MemoryError"])[0]
            raise MistakeError(f"memory is lacking ({reason}); lower the batch size or the image size") from error
        except (ValueError, OSError) as error:
            if os.environ.get(TRACEBACK):
                raise
            raise MistakeError(_describe(error)) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory was lacking, here or on the GPU, as numpy and torch say it."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        way_out = "; make room and start the same command again" if error.errno == errno.ENOSPC else ""
        return f"{where}{error.strerror}{way_out}"
    return str(error) or type(error).__name__


@click.group(cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="in21k", prog_name="in21k")
def cli() -> None:
    """Turn raw ImageNet-21K archives into shards, stream them, and pretrain with semantic softmax.

    The way of the data: sample-data -> preprocess -> shard -> verify -> train -> validate -> predict.
    Results go to stdout, progress and logs to stderr. IN21K_TRACEBACK=1 shows where an error came from.
    """
    set_up_streams()


for command in (
    sample_data.sample_data,
    preprocess.preprocess,
    tree.tree,
    shard.shard,
    verify.verify,
    browse.browse,
    bench_loader.bench_loader,
    models.models,
    bench_model.bench_model,
    config.config,
    train.train,
    finetune.finetune,
    validate.validate,
    predict.predict,
    features.features,
    knn.knn,
    probe.probe,
    retrieve.retrieve,
    average.average,
    export.export,
    report.report,
    doctor.doctor,
):
    cli.add_command(command)


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
