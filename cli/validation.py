"""What the kinds of validation share: a network with the way in which its images are loaded, the images of the split,
the answers for all of them, and the progress."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .progress import ProgressLine

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from ..preprocess.pack_labelled import LabelledSet
    from ..shards import ShardSet
    from ..shards.dataset import ShardSplit
    from ..training.distributed import Ranks
    from ..training.evaluation.predictions import Predictions
    from ..training.inference.open_model import OpenModel


def open_data(data: Path | str) -> LabelledSet:
    """Open what networks are validated on; raises ValueError where it is none."""
    from ..training.jobs.finetune_data import open_finished

    if "://" not in str(data) and not Path(data).exists():
        raise ValueError(
            f"{data}: does not exist; wanted shards (`in21k shard`), or what `in21k finetune` packed (OUT-data)"
        )
    return open_finished(str(data))


class ValImages(NamedTuple):
    """The validation images of shards: of each, by its number in the split (0..), key and class index, int64 (N,)."""

    split: ShardSplit
    keys: pa.StringArray
    classes: Tensor


def val_images(shards: ShardSet) -> ValImages:
    """List the validation images of shards; raises ValueError where there are none."""
    import pyarrow as pa
    import torch

    from ..shards.manifest import read_row_groups

    split = shards.split("val")
    first = int(split.manifest_rows.min())
    rows = range(first, first + len(split))
    stored = pa.concat_tables(read_row_groups(shards.manifest_path, ["key", "class_index"], rows=rows))
    classes = torch.from_numpy(stored["class_index"].to_numpy().astype("int64"))
    return ValImages(split, stored["key"].combine_chunks(), classes)


class Work:
    """A network that answers two images, and how its images are loaded; raises ValueError where it does not answer."""

    def __init__(self, name: str, opened: OpenModel, backend: str, batch_size: int, workers: int | None) -> None:
        opened.check()
        self.name, self.opened, self.batch_size, self.workers = name, opened, batch_size, workers
        self._backend = backend
        self._channels_last = opened.run.settings.channels_last if opened.run else False

    def loader_settings(self, shards: ShardSet, ranks: Ranks) -> dict[str, Any]:
        """Return what the loaders of shards are told; pixels come as they are stored, 0..255."""
        opened = self.opened
        # timm's crops are meant for whole photographs: of what is stretched already they would cut the edge off.
        stretched = opened.run is None and shards.info["images"]["resize"] == "squish"
        return {
            "backend": self._backend,
            "batch_size": self.batch_size,
            "image_size": opened.image_size,
            "rank": ranks.rank,
            "world_size": ranks.world_size,
            "workers": self.workers,
            "device": ranks.device,
            "channels_last": self._channels_last,
            "crop_pct": None if stretched else opened.crop_pct,
        }

    def amp(self, ranks: Ranks) -> str:
        """Return the precision in which the network computes: that of its training on a GPU, the whole elsewhere."""
        return self.opened.run.settings.amp if self.opened.run and ranks.device.type == "cuda" else "off"


def ask_network(
    work: Work, shards: ShardSet, images: ValImages, outputs: Tensor, ranks: Ranks, label: str
) -> Predictions:
    """Have a network answer every validation image; every rank has to call it.

    outputs: for each class of the shards the network's output, int64 (C,).
    label:   of the line of progress.
    """
    from ..datapipe.rows import create_row_loader
    from ..training.evaluation.predictions import collect
    from ..training.inference.pixel_model import PixelModel

    network = PixelModel(work.opened, outputs).to(ranks.device)
    loader = create_row_loader(shards, images.split, **work.loader_settings(shards, ranks))
    try:
        with ProgressLine(label) as progress:
            return collect(
                network,
                loader,
                images.classes,
                shards.tree,
                by_sigmoid=work.opened.by_sigmoid,
                amp=work.amp(ranks),
                ranks=ranks,
                on_batch=counted(progress, len(images.split), ranks),
            )
    finally:
        loader.close()


def counted(progress: ProgressLine, num_images: int, ranks: Ranks) -> Callable[[int], None]:
    """Return what is called with the number of images after each batch of a rank."""
    from ..shards.files.parallel import Progress

    done = 0

    def on_batch(num_done: int) -> None:
        nonlocal done
        done += num_done * ranks.world_size
        progress(Progress(min(1.0, done / num_images), done, 0))

    return on_batch
