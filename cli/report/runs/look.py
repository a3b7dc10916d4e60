"""Where networks look, and their features laid out flat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from ....shards import SemanticTree
from ....training.features.feature_map import NUM_NEIGHBOURS
from ....training.jobs.inspect_runs import FlatFeatures, Inspection, Picture, RunAnswers
from ..charts import SIDE
from ..markup import figure, number, percent, plural, short, text
from ..prepared.sheet import data_uri
from .report_run import ReportRun, notes

LOOK_PIXELS = 112
# From where it does not look to where it does: RGB at places 0..1. Blue to yellow by way of red is told apart in
# print and by most who are colour-blind, as its lightness rises all the way.
HEAT_PLACES = (0.0, 0.35, 0.65, 0.85, 1.0)
HEAT = ((20, 14, 60), (110, 30, 120), (225, 75, 75), (253, 165, 60), (252, 250, 170))
NUM_COLOURED = 10  # branches; all others share a grey

MEANING = {
    "Grad-CAM": "Grad-CAM: bright is where the features speak for the answer below.",
    "attention roll-out": "Attention roll-out: bright is where what the head takes comes from, whatever it says of it.",
}
HOW_LOOKS = "This needs images: validation images by <code>--data SHARDS</code>, or files by <code>--look IMAGE</code>."
HOW_FEATURES = "This needs the networks' features of validation images: give the shards by <code>--data SHARDS</code>."


def looks(runs: Sequence[ReportRun], inspection: Inspection) -> str:
    """The images, and where each run looks in them."""
    reasons = notes([short(answer.look_problem) for answer in inspection.answers if answer.look_problem])
    answered = [(run, answer) for run, answer in zip(runs, inspection.answers, strict=True) if answer.looks]
    if not answered:
        return reasons or notes([HOW_LOOKS])
    several = len(runs) > 1
    items = "".join(
        f'<li><h4>{_title(picture, inspection)}</h4><div class="row">{_tile(picture.pixels, "as it is", "")}'
        + "".join(_look(run, answer, place, picture, several) for run, answer in answered)
        + "</div></li>"
        for place, picture in enumerate(inspection.pictures)
    )
    kinds = {answer.looks.kind for _, answer in answered if answer.looks}
    caption = " ".join(MEANING[kind] for kind in sorted(kinds)) + " Each from its own lowest to its own highest."
    return reasons + figure(
        "Where the networks look",
        f'<ul class="looks" style="--tiles:{1 + len(answered)}">{items}</ul>',
        caption,
        wide=True,
    )


def _title(picture: Picture, inspection: Inspection) -> str:
    if picture.wnid is None or inspection.data is None:
        return short(picture.name)
    tree = inspection.data.tree
    return f"{short(tree.names[tree.wnids.index(picture.wnid)])} <small>{short(picture.name)}</small>"


def _look(run: ReportRun, answer: RunAnswers, place: int, picture: Picture, several: bool) -> str:
    assert answer.looks is not None
    assert answer.outputs is not None
    maps, answers, probabilities, kind = answer.looks
    index = int(answers[place])
    is_known, is_right = picture.wnid in answer.outputs.wnids, answer.outputs.wnids[index] == picture.wnid
    # A mark for those whom colours do not tell apart.
    mark, verdict = ("", "") if not is_known else ("✓ ", "right") if is_right else ("✗ ", "wrong")
    caption = f"{mark}{short(answer.outputs.names[index])} <small>{100 * float(probabilities[place]):.0f} %</small>"
    name = run.label if several else ""
    return _tile(overlay(picture.pixels, maps[place].numpy()), f"{kind} of {run.name}", f"{caption}{name}", verdict)


def _tile(pixels: NDArray[np.uint8], alt: str, caption: str, verdict: str = "") -> str:
    uri = data_uri(_shown_size(Image.fromarray(pixels)))
    return (
        f'<figure class="look {verdict}"><img src="{uri}" alt="{text(alt)}" decoding="async">'
        f"<span>{caption or text(alt)}</span></figure>"
    )


def _shown_size(image: Image.Image) -> Image.Image:
    """Scale an image so that its longer side is LOOK_PIXELS."""
    scale = LOOK_PIXELS / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Resampling.BICUBIC)


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay a heat map (h, w), 0..1, over an image (H, W, 3), which shows grey through it."""
    photo = _shown_size(Image.fromarray(pixels).convert("L"))
    smooth = np.asarray(Image.fromarray(heat).resize(photo.size, Resampling.BICUBIC)).clip(0, 1)
    channels = zip(*HEAT, strict=True)
    colours = np.stack([np.interp(smooth, HEAT_PLACES, channel) for channel in channels], axis=2)
    grey = np.asarray(photo, np.float32)[..., None]
    return (0.45 * grey + 0.55 * colours).round().clip(0, 255).astype(np.uint8)


def features(runs: Sequence[ReportRun], inspection: Inspection) -> str:
    """A map of features a run, coloured by branch."""
    problems = [answer.feature_problem for answer in inspection.answers if answer.feature_problem]
    reasons = notes([short(problem) for problem in problems])
    mapped = [(run, answer.flat) for run, answer in zip(runs, inspection.answers, strict=True) if answer.flat]
    if not mapped or not inspection.data or not inspection.val:
        return reasons or notes([HOW_FEATURES])
    tree = inspection.data.tree
    of_class, names = _branch_of(tree, inspection.val.classes)
    several = len(runs) > 1
    figures = "".join(
        figure(
            f"Features{f', {run.name}' if several else ''}",
            _scatter(flat, inspection, of_class) + _key(names),
            _feature_caption(flat),
            wide=not several,
        )
        for run, flat in mapped
    )
    return reasons + figures


def _feature_caption(flat: FlatFeatures) -> str:
    return (
        f"What the classifier takes of {plural(len(flat.rows), 'validation image', 'validation images')}, laid out by "
        f"t-SNE: what lies close is alike; distances between clouds say little. Of an image's {NUM_NEIGHBOURS} nearest "
        f"{percent(flat.alike, 1)} are of its own top class by the features themselves, {percent(flat.alike_flat, 1)} "
        "on the map. A branch's name picks it out."
    )


def _branch_of(tree: SemanticTree, labels: torch.Tensor) -> tuple[Mapping[int, int], list[str]]:
    """Return for each class that lies in one of the coloured branches its number, and the names of those branches."""
    nodes = coloured_branches(tree, torch.bincount(labels, minlength=len(tree)).tolist())
    numbers = {node: place for place, node in enumerate(nodes)}
    of_class = {
        index: next(numbers[up] for up in path if up in numbers)
        for index, path in enumerate(tree.paths)
        if any(up in numbers for up in path)
    }
    return of_class, [tree.names[node] for node in nodes]


def coloured_branches(tree: SemanticTree, counts: Sequence[int]) -> list[int]:
    """Return the largest branches, NUM_COLOURED at most, the largest first; of no two is one in the other.

    Those above a tenth of all are opened into those below them as long as there are colours for all.
    """
    below = tree.branch_sums(counts)
    nodes = list(tree.classes_by_level[0])
    for node in sorted(range(len(tree)), key=lambda index: (-below[index], index)):
        children = [child for child in tree.children[node] if below[child]]
        is_large = below[node] > sum(counts) / NUM_COLOURED
        if is_large and node in nodes and children and len(nodes) - 1 + len(children) <= NUM_COLOURED:
            nodes = [other for other in nodes if other != node] + children
    return sorted((node for node in nodes if below[node]), key=lambda index: (-below[index], index))[:NUM_COLOURED]


def _scatter(flat: FlatFeatures, inspection: Inspection, of_class: Mapping[int, int]) -> str:
    """Draw a dot for each image, a path for each class: its title says which."""
    assert inspection.data is not None
    assert inspection.val is not None
    tree = inspection.data.tree
    low, high = flat.places.amin(dim=0), flat.places.amax(dim=0)
    spread = (high - low).clamp(min=1e-12)
    places = ((flat.places - low) / spread * 0.96 + 0.02) * SIDE
    dots: dict[int, str] = {}
    for label, (x, y) in zip(inspection.val.classes[flat.rows].tolist(), places.tolist(), strict=True):
        dots[label] = f"{dots.get(label, '')}M{x:.0f} {y:.0f}h0"
    kinds = {label: f"branch-{of_class.get(label, 'other')}" for label in dots}
    paths = "".join(
        f'<path class="dots {kinds[label]}" d="{path}"><title>{text(tree.names[label])}</title></path>'
        # Grey ones lie below the others.
        for label, path in sorted(dots.items(), key=lambda item: (item[0] in of_class, item[0]))
    )
    return (
        f'<div class="scatter" role="img" aria-label="Map of the features of {number(len(flat.rows))} images">'
        f'<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none">{paths}</svg></div>'
    )


def _key(names: Sequence[str]) -> str:
    entries = [(f"branch-{place}", name) for place, name in enumerate(names)]
    return (
        '<ul class="legend branches">'
        + "".join(
            f'<li><button type="button" data-branch="{kind}" aria-pressed="false"><i class="{kind}"></i>{short(name)}'
            "</button></li>"
            for kind, name in [*entries, ("branch-other", "all others")]
        )
        + "</ul>"
    )
