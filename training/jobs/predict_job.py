"""Predictions for images in files, folders and tars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ...preprocess import build_tree
from ...preprocess.classes.taxonomy import Taxonomy
from ...shards.files.parallel import OnProgress, Progress, ignore_progress
from ...shards.tree import SemanticTree
from ..distributed import lone_device
from ..inference.classifier import Classified, Classifier
from ..inference.open_model import OpenModel
from .image_sources import SkippedFiles, count_sources, image_sources
from .setup import BATCH_SIZE, EvalSettings, open_network


def predict(
    model: str | Path | OpenModel,
    paths: Iterable[str | Path],
    settings: EvalSettings | None = None,
    *,
    flip: bool = False,
    threshold: float | None = None,
    skipped: SkippedFiles | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Iterator[Classified]:
    """Return an iterator over the images of files, folders and tars, each with its prediction or its error.

    model:     what `open_model` takes, or what it returned.
    paths:     of JPEG, PNG, GIF, BMP and WebP files, of folders and of tars; see `image_sources` for the order.
    settings:  of which the backend is not used.
    flip:      average the logits of an image and of its mirror image.
    threshold: of a network for several labels an image, the probability from which a label is present; None: 0.5.
    skipped:   counts the files whose names are not those of images.

    A prediction is what `Classifier` returns: {levels, chain, top5}, or of a network for several labels {labels, top5};
    each answer is {wnid, name, probability (0..1), definition}. The tree of a timm model that knows ImageNet-21K is
    built. Images are read as the iterator advances, a few batches at a time.

    Raises ValueError for a path that does not exist, a model that cannot be opened, a threshold for a network that
    gives each image one class, and under torchrun with several ranks.

    >>> [row.prediction["chain"][-1]["name"] for row in predict("run/", ["swan.jpg"])]  # doctest: +SKIP
    ['swan']
    """
    settings = settings or EvalSettings()
    device, paths = lone_device(settings.device), [Path(path) for path in paths]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: does not exist; wanted an image, a folder of images, or a tar of images")
    opened = open_network(model, settings)
    tree, definitions = _tree_and_definitions(opened)
    classifier = Classifier(
        opened,
        tree=tree,
        definitions=definitions,
        device=device,
        batch_size=settings.batch_size or BATCH_SIZE,
        workers=settings.workers,
        flip=flip,
        threshold=threshold,
    )
    answers = classifier.stream(image_sources(paths, skipped))
    return answers if on_progress is ignore_progress else _watched(answers, paths, on_progress)


def _watched(answers: Iterator[Classified], paths: list[Path], on_progress: OnProgress) -> Iterator[Classified]:
    """Report the number of images done; the number of images in tars is unknown until they are read."""
    counts = count_sources(paths)
    detail = f"of {counts.num_images:,} and those in {counts.num_tars:,} tars" if counts.num_tars else ""
    total = 0 if counts.num_tars else counts.num_images
    on_progress(Progress(0.0, 0, 0, detail))
    for num_done, answer in enumerate(answers, start=1):
        yield answer
        on_progress(Progress(min(1.0, num_done / total) if total else 0.0, num_done, 0, detail))


def _tree_and_definitions(opened: OpenModel) -> tuple[SemanticTree | None, Mapping[str, str] | None]:
    """Return a tree for a network of WordNet's classes that comes without one, and the definitions of its classes."""
    if opened.classes is None:
        return None, None
    taxonomy, wnids = Taxonomy.packaged(), opened.classes.wnids
    known = [wnid for wnid in wnids if wnid in taxonomy]
    needs_tree = opened.tree is None and opened.classes.name != "in1k" and bool(known)
    return build_tree(wnids, taxonomy) if needs_tree else None, {wnid: taxonomy.definition(wnid) for wnid in known}
