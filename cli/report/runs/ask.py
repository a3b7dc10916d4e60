"""What the networks of runs answer when a report asks them: predictions, where they look, features."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from ....datapipe.rows import create_row_loader, read_images
from ....models import class_map
from ....shards import SemanticTree, ShardSet
from ....training import open_model
from ....training.distributed import Ranks, join_ranks
from ....training.evaluation.measure import measure
from ....training.evaluation.predictions import Predictions, load_predictions
from ....training.features.feature_map import flatten, share_alike
from ....training.inference.heat_maps import HeatMaps, heat_maps
from ....training.inference.images import UnreadableImageError, fit_image, read_image
from ....training.inference.layers import FeatureExtractor
from ....training.inference.open_model import OpenModel
from ...image_sources import own_limit
from ...validation import Work, ask_network, val_images
from .shown import Shown

log = logging.getLogger(__name__)

MAX_LOOKS = 100  # images in which the page shows where runs look
MAX_POINTS = 2000  # of a map of features: ten seconds on a CPU, and as many as a screen can tell apart
LOOKS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Question:
    """What to ask the networks of runs.

    data:        shards whose validation images they are asked about; None: none.
    predictions: files that `in21k validate --save-predictions` wrote, one for each run in their order; or none.
    chosen:      image files, and keys of validation images, to show where the networks look; none: `num_looks`
                 validation images, drawn by `seed`.
    """

    data: ShardSet | None = None
    predictions: Sequence[Path] = ()
    chosen: Sequence[str] = ()
    num_looks: int = 12
    seed: int = 0
    weights: Literal["last", "best", "ema"] = "last"
    device: str | None = None
    backend: str = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        count = len(self.chosen) or self.num_looks
        if not 0 <= count <= MAX_LOOKS:
            raise ValueError(f"{count} images to look at: wanted 0 to {MAX_LOOKS}, so that the page stays small")


class Picture(NamedTuple):
    """An image to look at, uint8 (height, width, 3), and its class where that is known."""

    name: str
    pixels: NDArray[np.uint8]
    wnid: str | None


@dataclass(frozen=True)
class FlatFeatures:
    """Features of validation images laid out flat: places (N, 2), and the number of each in the split.

    alike_flat, alike: of the 10 nearest of an image the share of its own branch, 0..1, in the map and by the features.
    """

    places: torch.Tensor
    rows: torch.Tensor
    alike_flat: float
    alike: float


@dataclass
class Answer:
    """What one run answered; of what it was not or could not be asked, nothing.

    problem:  why it could not be asked for its answers to the data's images.
    look_problem, feature_problem: why there are no heat maps, or no map of features.
    tree:     of the classes of the predictions.
    outputs:  of the classes of the network.
    """

    problem: str = ""
    predictions: Predictions | None = None
    tree: SemanticTree | None = None
    looks: HeatMaps | None = None
    look_problem: str = ""
    outputs: SemanticTree | None = None
    flat: FlatFeatures | None = None
    feature_problem: str = ""

    @cached_property
    def measures(self) -> dict[str, Any]:
        """What `training.measure` says of the predictions, which have to be there."""
        return measure(*self.predicted)

    @property
    def predicted(self) -> tuple[Predictions, SemanticTree]:
        """The predictions, which have to be there, and the tree of their classes."""
        assert self.predictions is not None
        assert self.tree is not None
        return self.predictions, self.tree


class Asked:
    """The answers, by run, and the images that they are about."""

    def __init__(self, question: Question, answers: Sequence[Answer]) -> None:
        self.question, self.answers = question, answers
        self.data = question.data
        self.pictures: list[Picture] = []
        self.val = val_images(self.data) if self.data else None

    def images(self, rows: Sequence[int]) -> list[NDArray[np.uint8] | None]:
        """Return validation images by their numbers; None for what is corrupt."""
        assert self.data is not None
        assert self.val is not None
        return read_images(self.data, self.val.split, self.val.keys.take(pa.array(rows, pa.int64())).to_pylist())


def ask(runs: Sequence[Shown], question: Question) -> Asked:
    """Ask the networks of runs; raises ValueError where the question fits no run."""
    asked = Asked(question, [Answer(problem=said, feature_problem=said) for said in map(_several_labels, runs)])
    if question.predictions:
        _take_files(runs, asked)
    if not question.data and not question.chosen:
        return asked
    asked.pictures += _pictures(asked)
    num_opened = num_unfit = 0
    with join_ranks(question.device) as ranks:
        for run, answer in zip(runs, asked.answers, strict=True):
            network = _open(run, question, answer)
            if network is None:
                continue
            num_opened += 1
            network.model.to(ranks.device)
            _look(run, network, asked, answer, ranks)
            if asked.data:
                answer.problem = _unfit(run, network, asked.data)
                num_unfit += bool(answer.problem)
                if not answer.problem:
                    _measure(run, network, asked, answer, ranks)
    if num_unfit and num_unfit == num_opened:
        raise ValueError(next(answer.problem for answer in asked.answers if answer.problem))
    for problem in dict.fromkeys(
        each for answer in asked.answers for each in (answer.problem, answer.look_problem, answer.feature_problem)
    ):
        if problem:
            log.warning("%s", problem)
    return asked


def _take_files(runs: Sequence[Shown], asked: Asked) -> None:
    paths = asked.question.predictions
    if len(paths) != len(runs):
        raise ValueError(f"{len(paths)} files of predictions for {len(runs)} runs; wanted one for each, in their order")
    shards: list[str | None] = []
    for path, run, answer in zip(paths, runs, asked.answers, strict=True):
        if several := _several_labels(run):
            raise ValueError(f"{path}: {several}; leave --predictions out")
        answer.predictions, answer.tree, provenance = load_predictions(path)
        _check_weights(path, provenance, run, asked.question)
        shards.append(provenance.get("shards"))
        if asked.data and not (shards[-1] == asked.data.fingerprint and _is_about(asked, answer)):
            raise ValueError(f"{path}: was not made from {asked.data.location}; give the shards that it was made from")
        if shards[-1] != shards[0]:
            raise ValueError(f"{path}: is about other shards than {paths[0]}; give predictions for the same images")


def _check_weights(path: Path, provenance: Mapping[str, Any], run: Shown, question: Question) -> None:
    """Raise ValueError where a run's predictions are those of other weights."""
    fingerprint = open_model(run.record.path, question.weights).fingerprint()
    if provenance.get("fingerprint") != fingerprint:
        raise ValueError(
            f"{path}: holds no answers of {run.name} with its weights {question.weights!r}: it was made from "
            f"{provenance.get('model')}, weights {provenance.get('weights')!r} (fingerprint "
            f"{provenance.get('fingerprint')}, wanted {fingerprint}); give the run's own, and the --weights they are of"
        )


def _is_about(asked: Asked, answer: Answer) -> bool:
    """Tell whether predictions fit the images of the data, whose fingerprint they name."""
    assert asked.data is not None
    assert asked.val is not None
    predictions, tree = answer.predicted
    if tree.wnids != asked.data.tree.wnids or int(predictions.rows[-1]) >= len(asked.val.classes):
        return False
    return torch.equal(asked.val.classes[predictions.rows], predictions.labels)


def _open(run: Shown, question: Question, answer: Answer) -> OpenModel | None:
    try:
        opened = open_model(run.record.path, question.weights)
    except ValueError as error:
        # A page says names, as it may travel.
        problem = str(error).replace(str(run.record.path), run.name)
        answer.problem = answer.look_problem = answer.feature_problem = problem
        return None
    answer.outputs = opened.tree
    return opened


def _several_labels(run: Shown) -> str:
    """Return why a run cannot be asked about images at all: that it gives them several labels."""
    if "label_sets" in run.record.config["data"]:
        return f"{run.name} gives images several labels, and the report counts answers of one class an image"
    return ""


def _unfit(run: Shown, opened: OpenModel, data: ShardSet) -> str:
    """Return why a run cannot be asked about shards' classes."""
    if several := _several_labels(run):
        return several
    known = opened.tree.wnids if opened.tree else ()
    if not set(data.tree.wnids) <= set(known):
        return (
            f"{run.name} knows {len(known):,} classes, the shards have {len(data.tree):,}, and it does not know "
            "them all; give by --data the shards it was trained on"
        )
    return ""


def _measure(run: Shown, opened: OpenModel, asked: Asked, answer: Answer, ranks: Ranks) -> None:
    """Have a run's network answer every validation image, where no file has that, and lay out the features of some."""
    shards, question, images = asked.data, asked.question, asked.val
    assert shards is not None
    assert images is not None
    assert opened.run is not None
    assert opened.classes is not None
    work = Work(run.name, opened, question.backend, opened.run.settings.batch_size, question.workers)
    if answer.predictions is None:
        outputs = class_map(opened.classes, shards.tree.wnids)
        answer.predictions = ask_network(work, shards, images, outputs, ranks, f"answers of {run.name}")
        answer.tree = shards.tree
    loader = create_row_loader(shards, images.split, **work.loader_settings(shards, ranks))
    try:
        answer.flat = _features(opened, loader, asked, work.batch_size, ranks)
    except ValueError as error:
        answer.feature_problem = f"{run.name}: {error}"
    finally:
        loader.close()


def _features(opened: OpenModel, loader: Any, asked: Asked, batch_size: int, ranks: Ranks) -> FlatFeatures:
    extractor = FeatureExtractor(opened.model).eval()
    found: list[torch.Tensor] = []
    numbers: list[torch.Tensor] = []
    with torch.inference_mode():
        for images, rows in islice(loader, -(-MAX_POINTS // batch_size)):
            found.append(extractor(opened.normalize(images.to(ranks.device))).float())
            numbers.append(rows.cpu())
    features, rows = torch.cat(found)[:MAX_POINTS], torch.cat(numbers)[:MAX_POINTS]
    assert asked.data is not None
    assert asked.val is not None
    tree = asked.data.tree
    tops = torch.tensor([tree.paths[label][-1] for label in asked.val.classes[rows].tolist()])
    places = flatten(features, asked.question.seed)
    unit = torch.nn.functional.normalize(features, dim=1).cpu()
    return FlatFeatures(places, rows, share_alike(places, tops), share_alike(unit, tops))


def _pictures(asked: Asked) -> Iterator[Picture]:
    """Yield the images to look at: those chosen, else some drawn by chance from the validation split."""
    question, data, val = asked.question, asked.data, asked.val
    files = [name for name in question.chosen if Path(name).is_file()]
    for name in files:
        try:
            with own_limit():
                pixels = np.array(read_image(name))
        except UnreadableImageError as error:
            raise ValueError(f"{name}: {error}") from error
        yield Picture(Path(name).name, pixels, None)
    keys = [name for name in question.chosen if name not in files]
    if keys and data is None:
        raise ValueError(f"{keys[0]}: no such file; to choose validation images by key, give their shards by --data")
    if not data or not val:
        return
    if not question.chosen:
        rows = random.Random(question.seed).sample(range(len(val.keys)), min(question.num_looks, len(val.keys)))
        keys = val.keys.take(pa.array(sorted(rows), pa.int64())).to_pylist()
    if keys:
        wnids = dict(zip(val.keys.to_pylist(), val.classes.tolist(), strict=True))
        for key, pixels in zip(keys, read_images(data, val.split, keys), strict=True):
            if pixels is not None:
                yield Picture(key, pixels, data.tree.wnids[wnids[key]])


def _look(run: Shown, opened: OpenModel, asked: Asked, answer: Answer, ranks: Ranks) -> None:
    """See where a network looks, a few images at a time."""
    if not asked.pictures:
        return
    pixels = [
        fit_image(Image.fromarray(picture.pixels), opened.image_size, opened.crop_pct, opened.interpolation)
        for picture in asked.pictures
    ]
    batches = torch.stack(pixels).split(LOOKS_AT_ONCE)
    by_sigmoid = opened.by_sigmoid
    try:
        found = [
            heat_maps(opened.model, opened.normalize(batch.to(ranks.device)), by_sigmoid=by_sigmoid)
            for batch in batches
        ]
    except ValueError as error:
        answer.look_problem = f"{run.name}: {error}"
        return
    maps, answers, probabilities = map(torch.cat, zip(*(each[:3] for each in found), strict=True))
    answer.looks = HeatMaps(maps, answers, probabilities, found[0].kind)
