"""Where a run's lines go: log.jsonl always, and whom the setting `trackers` names."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

from ..shards.files.atomic import write_text

WAYS_OUT = {
    "tensorboard": "pip install tensorboard",
    "wandb": "pip install 'in21k[wandb]'",
    "mlflow": "pip install 'in21k[mlflow]'",
}


class Log(Protocol):
    """Takes a run's lines."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Take the line of a step, or of a validation."""
        ...

    def close(self) -> None:
        """Write what still waits."""
        ...


class JsonLog:
    """log.jsonl: one JSON object per line, each with its `step`.

    after_step: what an unfinished run wrote beyond this step is cut off, so that each step stands there once.
    epoch:      the epoch that the run goes on in; a validation of it comes again, and is cut off too.
    """

    def __init__(self, path: Path, *, after_step: int, epoch: int | None = None) -> None:
        kept: list[str] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                told = json.loads(line)
                if told["step"] > after_step or ("validation" in told and epoch is not None and told["epoch"] >= epoch):
                    break
            except ValueError:  # the run was killed in the middle of this line
                break
            kept.append(line + "\n")
        write_text(path, "".join(kept))
        self._file = _File(path)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line."""
        self._file.write(json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardLog:
    """TensorBoard's event files in a folder, one for each time that the run was started.

    TensorBoard's own writer has the host's name in the file's, and tells of a full disk later and without the file.
    """

    def __init__(self, folder: Path, *, after_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events, self._summaries = cast(Any, event_pb2), cast(Any, summary_pb2)
        folder.mkdir(exist_ok=True)
        number = sum(1 for _ in folder.glob("*tfevents*"))  # TensorBoard reads them in the order of their names
        self._file = _File(folder / f"events.out.tfevents.{time.time():.0f}.{number}")
        self._records: Any = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        if after_step:  # what an earlier start wrote from the next step on counts no more
            begins = self._events.SessionLog(status=self._events.SessionLog.START)
            self._add(step=after_step + 1, session_log=begins)

    def _add(self, **content: Any) -> None:
        event = self._events.Event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line's numbers as scalars."""
        values = [self._summaries.Summary.Value(tag=name, simple_value=value) for name, value in scalars_of(line)]
        self._add(step=line["step"], summary=self._summaries.Summary(value=values))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _File:
    """A file that is written to at its end, at once; an error names it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:  # of a disk that is nearly full, what has room is written first
                left = left[self._file.write(left) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        self._file.close()


class WandbLog:
    """Weights & Biases; project, mode and key come from its own environment variables."""

    def __init__(self, run: str, config: Mapping[str, Any], folder: Path) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run: Any = wandb.init(id=run, name=folder.resolve().name, config=dict(config), dir=folder, resume="allow")

    def write(self, line: Mapping[str, Any]) -> None:
        """Send a line's numbers."""
        self._run.log(dict(scalars_of(line)), step=line["step"])

    def close(self) -> None:
        """Send what still waits."""
        self._run.finish()


class MLflowLog:
    """MLflow; server and experiment come from its own environment variables."""

    def __init__(self, run: str, config: Mapping[str, Any], folder: Path) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "in21k"))
        self._client: Any = mlflow.MlflowClient()
        runs = self._client.search_runs([experiment.experiment_id], f"tags.in21k = '{run}'", max_results=1)
        if runs:
            self._id: str = runs[0].info.run_id
            self._client.update_run(self._id, "RUNNING")
            return
        tags = {"in21k": run, "mlflow.runName": folder.resolve().name}
        self._id = self._client.create_run(experiment.experiment_id, tags=tags).info.run_id
        for key, value in config.items():
            self._client.log_param(self._id, key, value)

    def write(self, line: Mapping[str, Any]) -> None:
        """Send a line's numbers."""
        for name, value in scalars_of(line):
            self._client.log_metric(self._id, name, value, step=line["step"])

    def close(self) -> None:
        """Say that the run has ended."""
        self._client.set_terminated(self._id)


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError for a tracker that is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"tracker {name} is not installed; {WAYS_OUT[name]}, or --set trackers=[]")


@contextmanager
def open_logs(
    folder: Path,
    trackers: Sequence[str],
    config: Mapping[str, Any],
    *,
    after_step: int,
    epoch: int | None = None,
    here: bool,
) -> Generator[list[Log]]:
    """Open log.jsonl in a run's folder, and the trackers; they close when the block ends.

    after_step: the step that the run goes on after, 0 where it begins.
    epoch:      the epoch (0..) that it goes on in, and may validate again; None: nothing is validated again.
    here:       whether this rank logs; the others have an empty list.
    """
    if not here:
        yield []
        return
    # What a run is called among all others, the same each time that it goes on.
    run = hashlib.sha256(f"{folder.resolve()} {config['seed']}".encode()).hexdigest()[:16]
    makers: dict[str, Callable[[], Log]] = {
        "tensorboard": lambda: TensorBoardLog(folder / "tensorboard", after_step=after_step),
        "wandb": lambda: WandbLog(run, config, folder),
        "mlflow": lambda: MLflowLog(run, config, folder),
    }
    with ExitStack() as stack:
        logs: list[Log] = [JsonLog(folder / "log.jsonl", after_step=after_step, epoch=epoch)]
        stack.callback(logs[0].close)
        for name in trackers:
            logs.append(makers[name]())
            stack.callback(logs[-1].close)
        yield logs


def scalars_of(line: Mapping[str, Any], prefix: str = "train/") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a line by name: `train/loss`, `val/semantic_top1`, `val/ema/top1`, ...

    >>> dict(scalars_of({"step": 2, "epoch": 0, "loss": 0.5}))
    {'train/loss': 0.5}
    """
    for name, value in line.items():
        if name == "validation":
            yield from scalars_of(value, "val/")
        elif isinstance(value, Mapping):
            yield from scalars_of(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name not in ("step", "epoch"):
            yield prefix + name, value
