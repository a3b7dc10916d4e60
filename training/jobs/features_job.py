"""The features of a whole split, written into a file: one row an image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch

from ...datapipe import rows as row_loaders
from ...models.trial import try_images
from ...shards import ShardSet
from ...shards.files.parallel import OnProgress, ignore_progress
from ...shards.manifest import read_row_groups
from ..distributed import Ranks, join_ranks
from ..features.feature_file import (
    KEYS,
    Rows,
    check_memory,
    finished_features,
    open_features,
    write_features,
)
from ..features.features import collect_features
from ..features.row_store import RowStore, remove_leftover_rows
from ..inference.layers import PRE_LOGITS, FeatureExtractor
from ..inference.open_model import OpenModel
from .setup import EvalSettings, image_counter, open_data, open_network

BATCH_SIZE = 256
ROWS_AT_ONCE = 4096  # read back from the work file; guessed: some megabytes


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(EvalSettings):
    """Which features are extracted, and how.

    split:      `train` or `val`.
    layer:      `pre-logits`, or the name of a module; see `FeatureExtractor`.
    dtype:      of the stored numbers.
    image_size: side in pixels; None: as the network was trained.
    amp:        `off`, `bf16`, `fp16`, or `auto`: bf16 on a GPU, off on a CPU.
    batch_size: images per rank; None: 256.
    """

    split: str = "val"
    layer: str = PRE_LOGITS
    dtype: Literal["float16", "float32"] = "float16"
    image_size: int | None = None
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"


@dataclass(frozen=True)
class ExtractedFeatures:
    """A features file that a job wrote; `open_features(path)` opens it.

    provenance:   what shaped the features, as the file records it: model, weights, fingerprint, layer, split, ...
    num_rows:     in the file.
    num_corrupt:  the number of images that the file lacks.
    was_finished: whether an earlier call had written the file.
    """

    path: Path
    provenance: dict[str, Any]
    num_rows: int
    num_corrupt: int
    was_finished: bool


def extract_features(
    model: str | Path | OpenModel,
    data: str | Path | ShardSet,
    out: str | Path,
    settings: FeatureSettings | None = None,
    *,
    overwrite: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> ExtractedFeatures:
    """Write the features of every image of a split into a file.

    model: what `open_model` takes, or what it returned.
    data:  a shard set, its path or URL, or a folder that `in21k finetune` packed.
    out:   NAME.parquet, or NAME.npy (N x D) with the keys in NAME.keys.parquet beside it.

    Rows are in the manifest's order, whatever the loader and the ranks; corrupt images are left out and logged. A
    finished file of the same settings is returned as it is. After a kill the same call resumes. Under torchrun each
    rank extracts its share, and rank 0 writes.

    Raises ValueError where model or data cannot be opened, the network lacks the layer, images have several labels,
    memory or disk cannot hold the work, a feature is not finite in the dtype, or `out` holds anything else (unless it
    is a features file and `overwrite`).

    >>> extract_features("run/", "shards/", "val.parquet").num_rows  # doctest: +SKIP
    522500
    """
    out, settings = Path(out), settings or FeatureSettings()
    opened = open_network(model, settings)
    image_size = settings.image_size or opened.image_size
    batch_size = settings.batch_size or BATCH_SIZE
    check_memory(batch_size, image_size)
    shards = _open_shards(data)
    provenance = _describe(opened, shards, settings, image_size)
    with join_ranks(settings.device) as ranks:
        amp = settings.amp
        provenance["amp"] = ("bf16" if ranks.device.type == "cuda" else "off") if amp == "auto" else amp
        ranks.check_alike(provenance)
        work = _Work(opened, shards, out, provenance, ranks, overwrite)
        was_finished = work.is_finished()
        if not was_finished:
            shaping = {"crop_pct", "image_size"}  # which the provenance holds
            loading = {name: value for name, value in settings.loader.items() if name not in shaping}
            loading |= {"backend": settings.backend, "batch_size": batch_size, "workers": settings.workers}
            work.extract(loading, on_progress)
        num_rows: int = ranks.from_first(lambda: len(open_features(out)))
        return ExtractedFeatures(out, provenance, num_rows, provenance["num_samples"] - num_rows, was_finished)


def _open_shards(data: str | Path | ShardSet) -> ShardSet:
    """Open the shards; raises ValueError where their classes are label sets, which a features file cannot describe."""
    labelled = open_data(data)
    if labelled.sets is not None:
        raise ValueError(
            f"{data}: its images have several labels, and a row of features has one class; give "
            f"{labelled.shards.location}, where each label set is a class of its own"
        )
    return labelled.shards


def _describe(opened: OpenModel, shards: ShardSet, settings: FeatureSettings, image_size: int) -> dict[str, Any]:
    """Return what shapes the features, which the file records."""
    split = settings.split
    if split not in shards.num_samples:
        raise ValueError(f"{shards.location}: has no split {split!r}; it holds {', '.join(shards.num_samples)}")
    extractor = FeatureExtractor(opened.model, settings.layer)
    trial = try_images(extractor, image_size, name=opened.name, option="--image-size ")
    return {
        "model": opened.name,
        "weights": settings.weights if opened.run else "published",
        "fingerprint": opened.fingerprint(),
        "layer": settings.layer,
        "num_features": trial.num_outputs,
        "dtype": settings.dtype,
        "image_size": image_size,
        "crop_pct": settings.loader.get("crop_pct", opened.crop_pct),
        "mean": list(opened.mean),
        "std": list(opened.std),
        "shards": shards.fingerprint,
        "split": split,
        "num_samples": shards.num_samples[split],
    }


@dataclass(frozen=True)
class _Work:
    """One file in the making; every rank has to call its methods, and gets rank 0's ValueError."""

    opened: OpenModel
    shards: ShardSet
    out: Path
    provenance: dict[str, Any]
    ranks: Ranks
    overwrite: bool

    def is_finished(self) -> bool:
        """Return whether an earlier call finished the file."""

        def finish() -> bool:
            is_finished = finished_features(self.out, self.provenance, overwrite=self.overwrite) is not None
            if is_finished:
                remove_leftover_rows(self.out)
            return is_finished

        return self.ranks.from_first(finish)

    def extract(self, loading: dict[str, Any], on_progress: OnProgress) -> None:
        """Extract the features that an earlier call did not, and write the file.

        loading: the loader's settings that shape no feature.
        """
        provenance, ranks = self.provenance, self.ranks
        split = self.shards.split(provenance["split"])
        loader = row_loaders.create_row_loader(
            self.shards,
            split,
            **loading,
            image_size=provenance["image_size"],
            crop_pct=provenance["crop_pct"],
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=ranks.device,
        )
        with ExitStack() as stack:
            stack.callback(loader.close)
            store = self._enter_store(stack, len(split))
            num_done = store.place["samples"] if store and store.place else 0
            collect_features(
                FeatureExtractor(self.opened.model, provenance["layer"]).to(ranks.device),
                loader,
                store,
                normalize=self.opened.normalize,
                num_features=provenance["num_features"],
                dtype=getattr(torch, provenance["dtype"]),
                amp=provenance["amp"],
                ranks=ranks,
                on_rows=image_counter(on_progress, len(split), num_done=num_done),
            )
            if store:
                rows = self._rows(int(split.manifest_rows.min()), store, len(split))
                write_features(self.out, rows, provenance, store.num_filled, provenance["dtype"])
                store.remove()

    def _enter_store(self, stack: ExitStack, num_rows: int) -> RowStore | None:
        """Take the work file on rank 0; None on the others."""
        provenance = self.provenance
        shape = (num_rows, provenance["num_features"])
        store = RowStore(self.out, provenance, shape, provenance["dtype"], overwrite=self.overwrite)

        def take() -> None:
            stack.enter_context(store)
            if finished_features(self.out, provenance, overwrite=self.overwrite) is not None:
                raise ValueError(
                    f"{self.out}: another in21k finished it meanwhile; run the same command again to use it"
                )

        self.ranks.from_first(take)
        return store if self.ranks.is_first else None

    def _rows(self, first: int, store: RowStore, num_rows: int) -> Iterator[tuple[pa.Table, Rows]]:
        """Yield key, wnid and class index of some images at a time, and their features, in the manifest's order."""
        start, rows = 0, range(first, first + num_rows)
        for keys in read_row_groups(self.shards.manifest_path, list(KEYS), rows=rows):
            for offset in range(0, keys.num_rows, ROWS_AT_ONCE):
                part = keys.slice(offset, ROWS_AT_ONCE)
                is_filled, values = store.part(start, start + part.num_rows)
                yield part.filter(is_filled), values
                start += part.num_rows
