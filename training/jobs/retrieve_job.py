"""The stored images that are nearest to others: from keys and image files to answers and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...datapipe.rows import read_images
from ...shards import SemanticTree, ShardSet
from ...shards.files.parallel import OnProgress, ignore_progress
from ..distributed import lone_device
from ..features.feature_file import FeatureFile, open_features
from ..features.retrieval_metrics import evaluate_retrieval as measure_retrieval
from ..features.retrieve import retrieve as retrieve_vectors
from ..features.retrieved_picture import draw_retrieved
from ..inference.classifier import extract_features
from ..inference.images import read_image
from ..inference.open_model import OpenModel
from .image_sources import own_limit
from .setup import EvalSettings, open_data, open_network


@dataclass(frozen=True)
class Retrieved:
    """The images nearest to some queries.

    rows:   for each query {query, nearest}, with `wnid` and `name` where they are known; nearest: a list of {key, wnid,
            similarity (cosine, -1..1)}, the nearest first, with `name` where the shards are given.
    file:   the features that were searched.
    shards: which hold the images; None where they were not given.
    """

    rows: list[dict[str, Any]]
    file: FeatureFile
    shards: ShardSet | None

    def draw(self) -> Image.Image:
        """Draw queries and their nearest images as an RGB picture; raises ValueError where no shards were given."""
        if self.shards is None:
            raise ValueError("the shards hold the images to draw; give their place as data")
        files = {row["query"] for row in self.rows if "wnid" not in row}
        keys = {answer["key"] for row in self.rows for answer in row["nearest"]}
        keys = sorted(keys | {row["query"] for row in self.rows} - files)
        facts = self.file.provenance
        stored = read_images(self.shards, self.shards.split(facts["split"]), keys)
        images = dict(zip(keys, stored, strict=True)) | {query: _read(query) for query in files}
        subtitle = f"{len(self.file):,} images of {facts['split']}, by the cosine of {facts['layer']} features"
        return draw_retrieved(self.rows, images, f"What {facts['model']} finds alike", subtitle)


def evaluate_retrieval(
    features: str | Path,
    settings: EvalSettings | None = None,
    *,
    k: int = 10,
    tree: SemanticTree | None = None,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, Any]:
    """Measure how well each image of a features file finds the others of its class.

    features: a file that `extract_features` wrote.
    settings: of which the device is used.
    k:        of mAP@k, 1 to 1,000.
    tree:     of the classes; with one, ancestors are measured too.

    Returns what `training.features.retrieval_metrics.evaluate_retrieval` does, and raises ValueError as it does.

    >>> evaluate_retrieval("val.parquet")["recall_at_1"]  # doctest: +SKIP
    54.2
    """
    device = lone_device((settings or EvalSettings()).device)
    file = _open(features)
    with own_limit():
        return measure_retrieval(file, k=k, tree=tree, device=device, on_progress=on_progress)


def retrieve(
    features: str | Path,
    queries: Sequence[str],
    settings: EvalSettings | None = None,
    *,
    count: int = 10,
    model: str | Path | OpenModel | None = None,
    data: str | Path | ShardSet | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Retrieved:
    """Find the images of a features file that are nearest to others by cosine.

    features: a file that `extract_features` wrote.
    queries:  keys of images in the file, and paths of image files. An image in the file is left out of its own answers.
    settings: of which weights and device are used.
    count:    of nearest images.
    model:    the network that made the features, which queries by path need.
    data:     the shards of the features, for names and pictures.

    Raises ValueError for a file of anything else, a key that it lacks, shards or a network that it was not made from,
    and an image that cannot be read.

    >>> retrieve("val.parquet", ["n01440764_10026"], count=3).rows[0]["nearest"][0]["key"]  # doctest: +SKIP
    'n01440764_3421'
    """
    settings = settings or EvalSettings()
    device = lone_device(settings.device)
    file = _open(features)
    shards = open_data(data).shards if data is not None else None
    if shards and shards.fingerprint != file.provenance["shards"]:
        raise ValueError(f"{features} was not made from {data}; give the shards that it was made from")
    files = [query for query in queries if Path(query).is_file()]
    keys = [query for query in queries if query not in files]
    row_of = dict(zip(keys, file.find(keys), strict=True))
    vectors = dict(zip(keys, file.rows(list(row_of.values())), strict=True))
    with own_limit():
        if files:
            vectors |= _features_of(files, file, model, settings, str(device))
        nearest = retrieve_vectors(
            file,
            [vectors[query] for query in queries],
            count,
            own_rows=[row_of.get(query) for query in queries],
            device=device,
            on_progress=on_progress,
        )
    names = dict(zip(shards.tree.wnids, shards.tree.names, strict=True)) if shards else {}
    wnid_of = dict(file.names(list(row_of.values())))
    rows = [
        {
            "query": query,
            **(_named({"wnid": wnid_of[query]}, names) if query in wnid_of else {}),
            "nearest": [_named(answer, names) for answer in answers],
        }
        for query, answers in zip(queries, nearest, strict=True)
    ]
    return Retrieved(rows, file, shards)


def _open(features: str | Path) -> FeatureFile:
    if not Path(features).exists():
        raise ValueError(
            f"{features}: does not exist; wanted features that `in21k features` wrote: NAME.parquet, or NAME.npy with "
            "NAME.keys.parquet beside it"
        )
    return open_features(features)


def _named(row: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Add the name of a row's class, where names are known."""
    return {**row, **({"name": names[row["wnid"]]} if names else {})}


def _features_of(
    files: list[str], file: FeatureFile, model: str | Path | OpenModel | None, settings: EvalSettings, device: str
) -> dict[str, NDArray[Any]]:
    """Return the features of image files, (D,) each, by the network that made a features file."""
    facts = file.provenance
    made_by = f"{facts['model']}, weights {facts['weights']}"
    if model is None:
        raise ValueError(f"{files[0]}: is an image; give by --model the network that made {file.path} ({made_by})")
    opened = open_network(model, settings)
    if opened.fingerprint() != facts["fingerprint"]:
        raise ValueError(
            f"{opened.source or opened.name}: has other weights than the network that made {file.path} ({made_by}, "
            f"fingerprint {facts['fingerprint']}); give that one"
        )
    opened = replace(opened, image_size=facts["image_size"])
    features = extract_features(opened, files, layer=facts["layer"], device=device)
    return dict(zip(files, features.numpy(), strict=True))


def _read(path: str) -> NDArray[np.uint8]:
    with own_limit():
        return np.array(read_image(path))
