"""What every job on a trained network needs: its settings, its data, and the network with loaders that suit it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa
import torch
from torch import Tensor

from ...datapipe import rows as row_loaders
from ...datapipe.loader import Loader
from ...datapipe.settings import LoaderSettings
from ...preprocess.pack_labelled import LabelledSet
from ...shards.dataset import ShardSet, ShardSplit
from ...shards.files.parallel import OnProgress, Progress
from ...shards.manifest import read_row_groups
from ..distributed import Ranks
from ..inference.open_model import OpenModel, open_model
from ..recipes import parse_sets
from ..runs.saved_run import Weights
from .finetune_data import open_finished

BATCH_SIZE = 64  # images, where no run says how many it was trained with
FURTHER = ("channels_last", "crop_pct", "hw_decoder_load", "image_size", "max_bad_rate")  # settings of the loader


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """How a trained network is evaluated.

    weights:      of a run: `last`, `best` or `ema`.
    architecture: of a file of published weights; None: by its keys.
    classes:      of a file of published weights: a label space, or a file of them; None: by its number of outputs.
    backend:      of the loader, as `in21k.datapipe.create_loader` takes it.
    batch_size:   images per rank; None: as in training, 64 for a network that is not a run's.
    workers:      processes or threads that decode images; None: one for each core.
    device:       `cuda`, `cpu`, or None: the GPU where there is one.
    loader:       further settings of the loader by name, as `in21k.datapipe.LoaderSettings` has them, in place of the
                  network's: `channels_last`, `crop_pct`, `hw_decoder_load`, `image_size`, `max_bad_rate`.

    Raises ValueError for another setting of the loader, and for a value that makes no sense.
    """

    weights: Weights = "last"
    architecture: str | None = None
    classes: str | None = None
    backend: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    device: str | None = None
    loader: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if others := sorted(set(self.loader) - set(FURTHER)):
            raise ValueError(
                f"{', '.join(others)}: the network decides it, or nothing does here; wanted of the loader's settings "
                f"backend, batch_size, workers, {', '.join(FURTHER)}"
            )
        LoaderSettings(**self.loader)

    @classmethod
    def parse(cls, sets: Sequence[str], **options: Any) -> Self:
        """Return the settings of a command line: `key=value` of the loader, and this class's own by name.

        Raises ValueError as `parse_sets` and this class do.
        """
        names = {setting.name for setting in fields(LoaderSettings)}
        flags = {name: options.pop(name) for name in names & options.keys()}
        values = parse_sets(sets, flags, LoaderSettings)
        own = {setting.name for setting in fields(cls)}
        loader = {name: value for name, value in values.items() if name not in own}
        return cls(**options, **{name: value for name, value in values.items() if name in own}, loader=loader)


class EvalSetup:
    """A network on the device of a rank, and loaders of images as it takes them.

    name:       the network's, in messages.
    batch_size: images per rank.
    amp:        `off`, `bf16` or `fp16`: that of its training on a GPU, else `off`.

    Raises ValueError where the network does not answer two images of its size.
    """

    def __init__(self, opened: OpenModel, settings: EvalSettings, ranks: Ranks) -> None:
        opened.check()
        self.opened, self.settings, self.ranks = opened, settings, ranks
        self.name = opened.source or opened.name
        run = opened.run.settings if opened.run else None
        self.batch_size = settings.batch_size or (run.batch_size if run else BATCH_SIZE)
        self.amp = run.amp if run and ranks.device.type == "cuda" else "off"
        self._channels_last = run.channels_last if run else False

    def loader_settings(self, shards: ShardSet) -> dict[str, Any]:
        """Return the loader's settings for a shard set; its pixels are uint8, 0..255."""
        opened = self.opened
        # timm's crops are meant for whole photographs: they would cut the edges off images that are squished already.
        is_squished = opened.run is None and shards.info["images"]["resize"] == "squish"
        return {
            "backend": self.settings.backend,
            "batch_size": self.batch_size,
            "image_size": opened.image_size,
            "rank": self.ranks.rank,
            "world_size": self.ranks.world_size,
            "workers": self.settings.workers,
            "device": self.ranks.device,
            "channels_last": self._channels_last,
            "crop_pct": None if is_squished else opened.crop_pct,
            "dtype": torch.uint8,
            "normalize": None,
            **self.settings.loader,
        }

    @contextmanager
    def row_loader(self, shards: ShardSet, split: ShardSplit) -> Generator[Loader]:
        """Open a loader of (images, rows); see `in21k.datapipe.rows.create_row_loader`."""
        loader = row_loaders.create_row_loader(shards, split, **self.loader_settings(shards))
        try:
            yield loader
        finally:
            loader.close()


def open_network(model: str | Path | OpenModel, settings: EvalSettings) -> OpenModel:
    """Return a network that is open, or open it; see `open_model`."""
    if isinstance(model, OpenModel):
        return model
    return open_model(model, settings.weights, architecture=settings.architecture, classes=settings.classes)


def open_data(data: str | Path | ShardSet) -> LabelledSet:
    """Open shards, at a path or a URL, or a folder that `in21k finetune` packed (OUT-data).

    Raises ValueError for anything else.
    """
    if isinstance(data, ShardSet):
        return LabelledSet(data, None)
    if "://" not in str(data) and not Path(data).exists():
        raise ValueError(
            f"{data}: does not exist; wanted shards (`in21k shard`), or what `in21k finetune` packed (OUT-data)"
        )
    return open_finished(str(data))


class ValImages(NamedTuple):
    """The validation images of shards, N in all.

    split:   of the shards.
    keys:    (N,), by the number of an image in the split.
    classes: class indices, int64 (N,).
    """

    split: ShardSplit
    keys: pa.StringArray
    classes: Tensor


def val_images(shards: ShardSet) -> ValImages:
    """List the validation images of shards; raises ValueError where the shards have none."""
    split = shards.split("val")
    first = int(split.manifest_rows.min())
    rows = range(first, first + len(split))
    stored = pa.concat_tables(read_row_groups(shards.manifest_path, ["key", "class_index"], rows=rows))
    classes = torch.from_numpy(stored["class_index"].to_numpy().astype("int64"))
    return ValImages(split, stored["key"].combine_chunks(), classes)


def image_counter(
    on_progress: OnProgress, num_images: int, *, num_done: int = 0, num_ranks: int = 1
) -> Callable[[int], None]:
    """Return a callback that takes the number of images in a rank's batch, and reports the progress of all ranks.

    num_images: of the whole work.
    num_done:   of an earlier run of the same work.
    """
    done = num_done

    def on_batch(num_images_of_batch: int) -> None:
        nonlocal done
        done += num_images_of_batch * num_ranks
        on_progress(Progress(min(1.0, done / num_images), done, 0))

    return on_batch
