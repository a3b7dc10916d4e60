"""A run as its folder tells of it: settings, log, where it stands, how long its epochs took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...shards.files.atomic import read_json
from ..metric_names import best_metric
from ..settings import TrainSettings
from .run_folder import RunFolder, read_config
from .run_log import RunLog, read_log


class Epoch(NamedTuple):
    """An epoch (0..) of a run: its steps that the log has, and the seconds they took; neither validation nor saving."""

    number: int
    num_steps: int
    seconds: float


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run, finished or not.

    path:      its folder.
    config:    of config.yaml.
    log:       of log.jsonl.
    metrics:   of metrics.json; None where the run is not finished.
    nonfinite: of nonfinite.json: the batch that lost the loss; None where none did.
    """

    path: Path
    config: dict[str, Any]
    log: RunLog
    metrics: dict[str, Any] | None
    nonfinite: dict[str, Any] | None

    @property
    def images_per_step(self) -> int:
        """How many images a step takes, on all ranks together."""
        config = self.config
        return config["batch_size"] * config["accumulate"] * config["data"]["world_size"]

    @property
    def validation(self) -> dict[str, Any] | None:
        """The last validation; None where there was none."""
        return self.log.validations[-1].values if self.log.validations else None

    @property
    def headline(self) -> str | None:
        """The metric that chooses this run's `best`; None where it was not validated."""
        validation = self.validation
        if validation is None:
            return None
        return best_metric(self.config["best_by"], multi_label="map" in validation)

    @property
    def best(self) -> tuple[float, int] | None:
        """The best headline (percent) and its epoch (0..), of the moving average where there is one."""
        headline = self.headline
        if headline is None:
            return None
        validations = self.log.validations
        best, epoch = max((line.values.get("ema", line.values)[headline], -line.epoch) for line in validations)
        return best, -epoch

    def whole_epochs(self) -> list[Epoch]:
        """Return the epochs that have all their steps, as far as that can be told: as many as the longest has.

        Of an unfinished run the only epoch is not among them.
        """
        epochs = self.epochs()
        if self.metrics is None and len(epochs) == 1:
            return []
        most = max((epoch.num_steps for epoch in epochs), default=0)
        return [epoch for epoch in epochs if epoch.num_steps == most]

    def epochs(self) -> list[Epoch]:
        """Return the epochs that the log has steps of, with the time that the rates of their steps come to."""
        log = self.log
        if not len(log.steps):
            return []
        rates = log.scalars["images_per_s"]
        seconds = np.divide(self.images_per_step, rates, out=np.zeros_like(rates), where=rates > 0)
        first = int(log.epochs[0])
        num_steps = np.bincount(log.epochs - first)
        sums = np.bincount(log.epochs - first, weights=seconds)
        return [
            Epoch(first + place, int(count), float(total))
            for place, (count, total) in enumerate(zip(num_steps, sums, strict=True))
            if count
        ]


def read_record(path: Path) -> RunRecord:
    """Read a run's folder; raises ValueError where it is none, or damaged."""
    run = RunFolder(path)
    if not (path / "config.yaml").is_file():
        raise ValueError(f"{path}: no run of in21k train; wanted a folder with config.yaml")
    config = {**asdict(TrainSettings()), **read_config(path / "config.yaml")}
    return RunRecord(
        path,
        config,
        read_log(path / "log.jsonl"),
        run.metrics() if run.finished else None,
        read_json(run.nonfinite) if run.nonfinite.is_file() else None,
    )


def record_file(path: Path) -> RunRecord:
    """Return the record of a file of published weights: nothing is known of its training."""
    return RunRecord(path, {"data": {}}, read_log(path / "log.jsonl"), None, None)


def telling_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return by name the values of the settings in which runs differ; of one run, those that are not the default.

    Of one run the default comes first, then its own value. Settings inside others go by `outer.inner`; None where a run
    lacks one.
    """
    if len(configs) == 1:
        flat = [_flat(asdict(TrainSettings())), _flat({**configs[0], "data": {}})]
    else:
        flat = [_flat(config) for config in configs]
    names = list(dict.fromkeys(name for config in flat for name in config))
    by_name = {name: [config.get(name) for config in flat] for name in names}
    return {name: values for name, values in by_name.items() if any(value != values[0] for value in values)}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
