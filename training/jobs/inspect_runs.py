"""What the networks of runs answer about images: predictions, where they look, and maps of their features."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from ...datapipe.rows import read_images
from ...preprocess import build_tree
from ...preprocess.pack_labelled import Watch
from ...shards import SemanticTree, ShardSet
from ...shards.files.parallel import ignore_progress
from ..distributed import Ranks, join_ranks
from ..evaluation.measure import measure
from ..evaluation.predictions import Predictions, load_predictions
from ..features.feature_map import flatten, share_alike
from ..inference.heat_maps import HeatMaps, heat_maps
from ..inference.images import UnreadableImageError, fit_image, read_image
from ..inference.layers import FeatureExtractor
from ..inference.open_model import OpenModel
from ..runs.run_record import RunRecord
from .image_sources import own_limit
from .setup import EvalSettings, EvalSetup, open_network, val_images
from .validate_job import collect_predictions

log = logging.getLogger(__name__)

MAX_LOOKS = 100  # images in which a page shows where runs look
MAX_POINTS = 2000  # of a map of features: ten seconds on a CPU, and as many as a screen can tell apart
LOOKS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class InspectSettings(EvalSettings):
    """What the networks of runs are asked, beside how they are evaluated; the batch size is that of training.

    data:        shards whose validation images the networks answer; None: none.
    predictions: files that `in21k validate --save-predictions` wrote, one for each run in their order; or none.
    images:      image files, and keys of validation images, to show where the networks look; none: `num_looks`
                 validation images, drawn by `seed`.

    Raises ValueError for more than 100 images to look at.
    """

    data: ShardSet | None = None
    predictions: Sequence[Path] = ()
    images: Sequence[str] = ()
    num_looks: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        count = len(self.images) or self.num_looks
        if not 0 <= count <= MAX_LOOKS:
            raise ValueError(f"{count} images to look at: wanted 0 to {MAX_LOOKS}, so that the page stays small")


class Picture(NamedTuple):
    """An image to look at, uint8 (height, width, 3), and its class where that is known."""

    name: str
    pixels: NDArray[np.uint8]
    wnid: str | None


@dataclass(frozen=True)
class FlatFeatures:
    """Features of validation images laid out flat.

    places:     float32 (N, 2).
    rows:       int64 (N,), the number of each image in the split.
    alike_flat: the share of an image's 10 nearest that are of its own branch, 0..1, in the map.
    alike:      the same by the features.
    """

    places: torch.Tensor
    rows: torch.Tensor
    alike_flat: float
    alike: float


@dataclass
class RunAnswers:
    """What the network of one run answered; None for what it was not or could not be asked.

    problem:         why it has no predictions.
    tree:            of the classes of the predictions.
    look_problem:    why the heat maps are missing.
    outputs:         the tree of the network's own classes.
    feature_problem: why the map of features is missing.
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
    def metrics(self) -> dict[str, Any]:
        """What `measure` returns for the predictions, which have to be there."""
        return measure(*self.predicted)

    @property
    def predicted(self) -> tuple[Predictions, SemanticTree]:
        """The predictions, which have to be there, and the tree of their classes."""
        assert self.predictions is not None
        assert self.tree is not None
        return self.predictions, self.tree


class Inspection:
    """The answers of some runs, in their order, and the images that they are about."""

    def __init__(self, settings: InspectSettings, answers: Sequence[RunAnswers]) -> None:
        self.settings, self.answers = settings, answers
        self.data = settings.data
        self.pictures: list[Picture] = []
        self.val = val_images(self.data) if self.data else None

    def images(self, rows: Sequence[int]) -> list[NDArray[np.uint8] | None]:
        """Return validation images by their numbers, uint8 (height, width, 3); None for a corrupt one."""
        assert self.data is not None
        assert self.val is not None
        return read_images(self.data, self.val.split, self.val.keys.take(pa.array(rows, pa.int64())).to_pylist())


def inspect_runs(
    runs: Mapping[str, RunRecord],
    settings: InspectSettings,
    *,
    watch: Watch = lambda _: nullcontext(ignore_progress),
) -> Inspection:
    """Ask the networks of runs, each known by a name of its own.

    watch: opens a callback for the progress of each step, by the step's name.

    The log and each run's answers say what could not be asked.

    Raises ValueError where the settings fit none of the runs, or files of predictions are not those of the runs.

    >>> inspection = inspect_runs({"run": read_record("run/")}, InspectSettings(data=shards))  # doctest: +SKIP
    >>> inspection.answers[0].metrics["top1"]  # doctest: +SKIP
    54.2
    """
    answers = [
        RunAnswers(problem=problem, feature_problem=problem) for problem in map(_multi_label, runs, runs.values())
    ]
    inspection = Inspection(settings, answers)
    if settings.predictions:
        _load_files(runs, inspection)
    if not settings.data and not settings.images:
        return inspection
    inspection.pictures += _pictures(inspection)
    num_opened = num_unfit = 0
    with join_ranks(settings.device) as ranks:
        for (name, record), answer in zip(runs.items(), answers, strict=True):
            opened = _open(name, record, settings, answer)
            if opened is None:
                continue
            num_opened += 1
            opened.model.to(ranks.device)
            _look(name, opened, inspection, answer, ranks)
            if inspection.data:
                answer.problem = _multi_label(name, record) or _unknown_classes(name, opened, inspection.data)
                num_unfit += bool(answer.problem)
                if not answer.problem:
                    _measure(name, opened, inspection, answer, ranks, watch)
    if num_unfit and num_unfit == num_opened:
        raise ValueError(next(answer.problem for answer in answers if answer.problem))
    _log_problems(answers)
    return inspection


def _log_problems(answers: Sequence[RunAnswers]) -> None:
    problems = [(answer.problem, answer.look_problem, answer.feature_problem) for answer in answers]
    for problem in dict.fromkeys(itertools.chain(*problems)):
        if problem:
            log.warning("%s", problem)


def _load_files(runs: Mapping[str, RunRecord], inspection: Inspection) -> None:
    """Take the predictions of files; raises ValueError for those of other weights, images or shards."""
    paths, data = inspection.settings.predictions, inspection.data
    if len(paths) != len(runs):
        raise ValueError(f"{len(paths)} files of predictions for {len(runs)} runs; wanted one for each, in their order")
    shards: list[str | None] = []
    for path, (name, record), answer in zip(paths, runs.items(), inspection.answers, strict=True):
        if problem := _multi_label(name, record):
            raise ValueError(f"{path}: {problem}; leave --predictions out")
        answer.predictions, answer.tree, provenance, _ = load_predictions(path)
        _check_weights(path, provenance, name, record, inspection.settings)
        shards.append(provenance.get("shards"))
        if data and not (shards[-1] == data.fingerprint and _fits_images(inspection, answer)):
            raise ValueError(f"{path}: was not made from {data.location}; give the shards that it was made from")
        if shards[-1] != shards[0]:
            raise ValueError(f"{path}: is about other shards than {paths[0]}; give predictions for the same images")


def _check_weights(
    path: Path, provenance: Mapping[str, Any], name: str, record: RunRecord, settings: InspectSettings
) -> None:
    """Raise ValueError where predictions are those of other weights than a run's."""
    fingerprint = _open_record(record, settings).fingerprint()
    if provenance.get("fingerprint") != fingerprint:
        raise ValueError(
            f"{path}: holds no answers of {name} with its weights {settings.weights!r}: it was made from "
            f"{provenance.get('model')}, weights {provenance.get('weights')!r} (fingerprint "
            f"{provenance.get('fingerprint')}, wanted {fingerprint}); give the run's own, and the --weights they are of"
        )


def _fits_images(inspection: Inspection, answer: RunAnswers) -> bool:
    """Return whether predictions are about the validation images of the data."""
    assert inspection.data is not None
    assert inspection.val is not None
    predictions, tree = answer.predicted
    if tree.wnids != inspection.data.tree.wnids or int(predictions.rows[-1]) >= len(inspection.val.classes):
        return False
    return torch.equal(inspection.val.classes[predictions.rows], predictions.labels)


def _open(name: str, record: RunRecord, settings: InspectSettings, answer: RunAnswers) -> OpenModel | None:
    try:
        opened = _open_record(record, settings)
        if opened.classes is None:
            raise ValueError(f"{record.path}: the classes of its outputs are unknown; give --classes")
    except ValueError as error:
        # A page may travel: it names the run and no path.
        problem = str(error).replace(str(record.path), name)
        answer.problem = answer.look_problem = answer.feature_problem = problem
        return None
    answer.outputs = opened.tree or build_tree(opened.classes.wnids)
    return opened


def _open_record(record: RunRecord, settings: InspectSettings) -> OpenModel:
    """Open the network of a run, or of a file of published weights, which alone has its network and classes named."""
    if not record.path.is_file():
        settings = replace(settings, architecture=None, classes=None)
    return open_network(record.path, settings)


def _multi_label(name: str, record: RunRecord) -> str:
    """Return why a run has no predictions: it gives images several labels; empty where it gives one."""
    if "label_sets" in record.config["data"]:
        return f"{name} gives images several labels, and the report counts answers of one class an image"
    return ""


def _unknown_classes(name: str, opened: OpenModel, data: ShardSet) -> str:
    """Return why a run has no predictions: it does not know the shards' classes; empty where it does."""
    known = opened.classes.wnids if opened.classes else ()
    if set(data.tree.wnids[: data.tree.num_image_classes]) <= set(known):
        return ""
    return (
        f"{name} knows {len(known):,} classes, the shards have {len(data.tree):,}, and it does not know them all; give "
        "by --data the shards it was trained on"
    )


def _measure(
    name: str, opened: OpenModel, inspection: Inspection, answer: RunAnswers, ranks: Ranks, watch: Watch
) -> None:
    """Have a network answer every validation image, where no file has that, and lay out the features of some."""
    shards, images = inspection.data, inspection.val
    assert shards is not None
    assert images is not None
    assert opened.classes is not None
    setup = EvalSetup(opened, inspection.settings, ranks)
    if answer.predictions is None:
        outputs = opened.outputs_of(shards.tree)
        with watch(f"answers of {name}") as on_progress:
            answer.predictions = collect_predictions(setup, shards, images, outputs, on_progress)
        answer.tree = shards.tree
    with setup.row_loader(shards, images.split) as loader:
        try:
            answer.flat = _features(setup, loader, inspection)
        except ValueError as error:
            answer.feature_problem = f"{name}: {error}"


def _features(setup: EvalSetup, loader: Any, inspection: Inspection) -> FlatFeatures:
    extractor = FeatureExtractor(setup.opened.model).eval()
    vectors: list[torch.Tensor] = []
    numbers: list[torch.Tensor] = []
    with torch.inference_mode():
        for images, rows in itertools.islice(loader, -(-MAX_POINTS // setup.batch_size)):
            vectors.append(extractor(setup.opened.normalize(images.to(setup.ranks.device))).float())
            numbers.append(rows.cpu())
    features, rows = torch.cat(vectors)[:MAX_POINTS], torch.cat(numbers)[:MAX_POINTS]
    assert inspection.data is not None
    assert inspection.val is not None
    tree = inspection.data.tree
    tops = torch.tensor([tree.paths[label][-1] for label in inspection.val.classes[rows].tolist()])
    places = flatten(features, inspection.settings.seed)
    unit = torch.nn.functional.normalize(features, dim=1).cpu()
    return FlatFeatures(places, rows, share_alike(places, tops), share_alike(unit, tops))


def _pictures(inspection: Inspection) -> Iterator[Picture]:
    """Yield the images to look at: those of the settings, else some drawn by chance from the validation split."""
    settings, data, val = inspection.settings, inspection.data, inspection.val
    files = [name for name in settings.images if Path(name).is_file()]
    for name in files:
        try:
            with own_limit():
                pixels = np.array(read_image(name))
        except UnreadableImageError as error:
            raise ValueError(f"{name}: {error}") from error
        yield Picture(Path(name).name, pixels, None)
    keys = [name for name in settings.images if name not in files]
    if keys and data is None:
        raise ValueError(f"{keys[0]}: no such file; to choose validation images by key, give their shards by --data")
    if not data or not val:
        return
    if not settings.images:
        rows = random.Random(settings.seed).sample(range(len(val.keys)), min(settings.num_looks, len(val.keys)))
        keys = val.keys.take(pa.array(sorted(rows), pa.int64())).to_pylist()
    if keys:
        wnids = dict(zip(val.keys.to_pylist(), val.classes.tolist(), strict=True))
        for key, pixels in zip(keys, read_images(data, val.split, keys), strict=True):
            if pixels is not None:
                yield Picture(key, pixels, data.tree.wnids[wnids[key]])


def _look(name: str, opened: OpenModel, inspection: Inspection, answer: RunAnswers, ranks: Ranks) -> None:
    """Compute where a network looks, a few images at a time."""
    if not inspection.pictures:
        return
    pixels = [
        fit_image(Image.fromarray(picture.pixels), opened.image_size, opened.crop_pct, opened.interpolation)
        for picture in inspection.pictures
    ]
    by_sigmoid = opened.by_sigmoid
    try:
        parts = [
            heat_maps(opened.model, opened.normalize(batch.to(ranks.device)), by_sigmoid=by_sigmoid)
            for batch in torch.stack(pixels).split(LOOKS_AT_ONCE)
        ]
    except ValueError as error:
        answer.look_problem = f"{name}: {error}"
        return
    maps, answers, probabilities = map(torch.cat, zip(*(part[:3] for part in parts), strict=True))
    answer.looks = HeatMaps(maps, answers, probabilities, parts[0].kind)
