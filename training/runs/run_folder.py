"""A run's folder: what it holds, whether it is finished, and who may write to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ...models.export import timm_config
from ...shards.files.atomic import read_json, write_text
from ...shards.files.lock import FileLock, lock_output
from ...shards.files.output import check_folder, check_same, foreign_files, remove_files, remove_temporary
from ...shards.files.shape import COUNT, Shape, check_shape
from ...shards.tree import SemanticTree
from ..distributed import Ranks
from ..settings import BINARY_LOSSES, TrainSettings, known_settings, setting_kinds

log = logging.getLogger(__name__)

# What a run's folder holds. metrics.json is the mark of a finished run; config.yaml, that of a run, is removed last.
FILES = (
    "metrics.json",
    "model.safetensors",
    "model_ema.safetensors",
    "config.json",
    "log.jsonl",
    "nonfinite.json",
    "tree.json",
    "config.yaml",
)
SUBFOLDER_FILES = ("checkpoints/last.pt", "checkpoints/best.pt", "checkpoints/step-*.pt", "tensorboard/events.out.*")
EXPORT_JSON = "export.json"  # is in a folder that `in21k export` made of a run
# Settings that a resumed run may change; the second ones only where equal bits are not asked for.
RESUMABLE_SETTINGS = ("workers", "save_every_steps", "keep_last", "log_every_steps", "trackers")
RESUMABLE_UNLESS_DETERMINISTIC = ("backend", "hw_decoder_load", "world_size")


WRITER = "in21k"  # in config.yaml: the version that wrote it
# Settings by which a network is opened: a default in their place would answer something else.
OPENING = ("model", "model_args", "normalize", "image_size", "crop_pct", "loss", "ema")
_CONFIG: Shape = {"data": {"world_size": COUNT}}


def run_config(settings: TrainSettings, data: Mapping[str, Any], world_size: int) -> dict[str, Any]:
    """Return the content of config.yaml: every setting, and in `data` what the run is trained on, by how many ranks."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(data)))  # as it comes back from the file
    return {**asdict(settings), "data": {**plain, "world_size": world_size}}


def network_config(model: nn.Module, config: Mapping[str, Any], tree: SemanticTree) -> dict[str, Any]:
    """Return the content of config.json, by which timm opens the weights of a run of this config.yaml."""
    return timm_config(
        model,
        architecture=config["model"],
        model_args=config["model_args"],
        image_size=config["image_size"] or 224,
        crop_pct=config["crop_pct"],
        normalize=config["normalize"],
        wnids=tree.wnids,
        names=tree.names,
        num_image_classes=tree.num_image_classes,
        by_sigmoid=config["loss"] in BINARY_LOSSES,
        several_labels="label_sets" in config["data"],
    )


def read_config(path: Path, *, knows_all: bool = False) -> dict[str, Any]:
    """Read a run's config.yaml as `check_config` gives it; raises ValueError where it is none."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not readable as a run's configuration ({str(error).splitlines()[0]})") from error
    return check_config(config, str(path), knows_all=knows_all)


def check_config(content: object, where: str, *, knows_all: bool = False) -> dict[str, Any]:
    """Return a run's configuration with every setting that this version knows, each of its own kind.

    Settings that this version does not know are left out with a warning that names them and the version that wrote
    them; those that are lacking have their defaults, unless they shape how the network is opened (`OPENING`).

    knows_all: raise ValueError for settings that this version does not know, as who resumes a run has to.

    Raises ValueError, naming `where` it stands, for anything that is not a configuration.
    """
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{where}: no configuration of a run; wanted settings and `data`")
    config: dict[str, Any] = dict(content)
    try:
        check_shape(config, _CONFIG)
    except ValueError as error:
        raise ValueError(f"{where}: no configuration of a run ({error})") from error
    data, writer = config.pop("data"), config.pop(WRITER, "of another version")
    if missing := [name for name in OPENING if name not in config]:
        raise ValueError(f"{where}: lacks {missing[0]}, without which the network cannot be opened as it was trained")
    if unknown := [name for name in config if name not in setting_kinds()]:
        problem = (
            f"{where}: was written by in21k {writer}, with settings that this one ({version('in21k')}) does not know: "
            f"{', '.join(unknown)}"
        )
        if knows_all:
            raise ValueError(f"{problem}; take that version, give another folder, or --overwrite to train anew")
        log.warning("%s; they are left out", problem)
    try:
        known = known_settings({name: value for name, value in config.items() if name not in unknown}, where)
        return {**asdict(TrainSettings(**known)), "data": data}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


class RunFolder:
    """The folder of one run. Ask `finished` and `check` before anything is written; `take` it to write."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.last = self.path / "checkpoints" / "last.pt"
        self.best = self.path / "checkpoints" / "best.pt"
        self.nonfinite = self.path / "nonfinite.json"
        self._lock: FileLock | None = None

    @property
    def finished(self) -> bool:
        """Whether the run is done."""
        return (self.path / "metrics.json").is_file()

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of a finished run; raises ValueError where it is not."""
        path = self.path / "metrics.json"
        metrics = read_json(path)
        try:
            check_shape(metrics, {"num_epochs": COUNT, "num_steps": COUNT})
        except ValueError as error:
            raise ValueError(f"{path}: no metrics of a run ({error})") from error
        return metrics

    def check(self, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Raise ValueError unless the folder is new, empty, or a run: of this configuration, or any if `overwrite`."""
        names = check_folder(self.path)
        if "config.yaml" not in names:
            if names not in ([], ["config.yaml.tmp"]):  # the second: killed while it wrote its first file
                raise foreign_files(self.path)
            return
        if overwrite:
            return
        old = read_config(self.path / "config.yaml", knows_all=True)
        check_same(self.path, _fixed(old), _fixed(config), "train anew")

    def take(self, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Make the folder this process's to write to, emptied if `overwrite`; raises ValueError as `check` does."""
        self.check(config, overwrite=overwrite)  # before a folder is made
        self._lock = lock_output(
            self.path, self.path, "training there", lambda: self.path.mkdir(parents=True, exist_ok=True)
        )
        try:
            self.check(config, overwrite=overwrite)  # as another process may have left it
            if self.finished and not overwrite:
                self.release()
                return
            if overwrite:
                self._clear()
            remove_temporary(self.path, [*FILES, *self._own_files(), "checkpoints/last.pt", "checkpoints/best.pt"])
            written = {WRITER: version("in21k"), **config}
            write_text(self.path / "config.yaml", yaml.safe_dump(written, sort_keys=False, allow_unicode=True))
            self.last.parent.mkdir(exist_ok=True)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let others write to the folder."""
        if self._lock:
            self._lock.release()
            self._lock = None

    def _own_files(self) -> list[str]:
        """Return the files in the folder that a run writes, without config.yaml, which marks it as a run."""
        checkpoints = [entry for pattern in SUBFOLDER_FILES for entry in self.path.glob(pattern)]
        return [*FILES[:-1], *(str(entry.relative_to(self.path)) for entry in checkpoints)]

    def _clear(self) -> None:
        (self.path / "metrics.json").unlink(missing_ok=True)
        remove_files(self.path, self._own_files())


@contextmanager
def open_run(path: Path, config: Mapping[str, Any], ranks: Ranks, *, overwrite: bool = False) -> Generator[RunFolder]:
    """Take a run's folder on rank 0; what rank 0 finds wrong is a ValueError on every rank."""
    run = RunFolder(path)
    ranks.from_first(partial(run.take, config, overwrite=overwrite))
    try:
        yield run
    finally:
        run.release()


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = {**config, **config["data"]}
    free = (*RESUMABLE_SETTINGS, *(() if config["deterministic"] else RESUMABLE_UNLESS_DETERMINISTIC), "data")
    return {key: value for key, value in flat.items() if key not in free}
