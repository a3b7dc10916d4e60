"""The classes that runs know best and worst, and the pairs that they confuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from ....shards import SemanticTree
from ....training.evaluation.measure import own_level_answers, per_class
from ....training.evaluation.predictions import Predictions
from ....training.jobs.inspect_runs import Inspection, RunAnswers
from ....training.metric_names import BASELINES, METRICS, measured
from ..markup import bars, figure, number, plural, short, table, text
from ..prepared.sheet import data_uri
from .report_run import ReportRun, notes

NUM_CLASSES = 10
NUM_PAIRS = 8
NUM_WRONG, NUM_RIGHT = 4, 3  # example images of a pair

HOW = (
    "This needs the networks' answers: give the shards by <code>--data SHARDS</code>, or what <code>in21k validate "
    "--save-predictions FILE</code> wrote by <code>--predictions FILE</code>."
)


def problems(answers: Sequence[RunAnswers]) -> str:
    """Return why runs have no predictions."""
    return notes([short(answer.problem) for answer in answers if answer.problem])


def classes(runs: Sequence[ReportRun], inspection: Inspection) -> str:
    """Return the metrics of the runs' answers, and their best and worst classes."""
    answered = [(run, answer) for run, answer in zip(runs, inspection.answers, strict=True) if answer.predictions]
    if not answered:
        return problems(inspection.answers) or notes([HOW])
    return (
        problems(inspection.answers)
        + _measured(answered)
        + "".join(_best_and_worst(run, answer, len(runs) > 1) for run, answer in answered)
    )


def _measured(answered: Sequence[tuple[ReportRun, RunAnswers]]) -> str:
    results = [dict(measured(answer.metrics)) for _, answer in answered]
    metrics = [
        metric
        for metric in METRICS
        if metric.digits and metric.name not in BASELINES and any(metric in result for result in results)
    ]
    rows = [
        (text(metric.title), *(metric.text(result[metric], 2) if metric in result else "–" for result in results))
        for metric in metrics
    ]
    count = number(answered[0][1].metrics["num_samples"])
    caption = f"The answers to {count} validation images; a calibration error is in 15 bins of the likeliest class's."
    body = f'<div class="measures">{table(["", *(run.name for run, _ in answered)], rows)}</div>'
    return figure("The answers, measured", body, caption, wide=True)


def _best_and_worst(run: ReportRun, answer: RunAnswers, several: bool) -> str:
    predictions, tree = answer.predicted
    rows = [row for row in per_class(predictions, tree).to_pylist() if row["num_samples"]]
    # Of equally many right answers the surer ones are the better.
    rows.sort(key=lambda row: (row["top1"], row["mean_probability"], row["wnid"]))
    names = dict(zip(tree.wnids, tree.names, strict=True))
    of_run = f", {run.name}" if several else ""
    count = min(NUM_CLASSES, (len(rows) + 1) // 2)
    caption = "Top-1 of the images of each class; where equal, by the mean probability of the right class."
    listed = [(short(row["name"]), row) for row in rows[::-1][:count]]
    best = figure(f"Best classes{of_run}", _bars(listed, run.kind), caption)
    listed = [(short(row["name"]) + _taken_for(row, names), row) for row in rows[:count]]
    caption += " With what each is taken for most at its level."
    worst = figure(f"Worst classes{of_run}", _bars(listed, run.kind), caption)
    return best + worst


def _taken_for(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return f" <small>taken for {short(names[row['confused_with']])}</small>" if row["confused_with"] else ""


def _bars(rows: Sequence[tuple[str, Mapping[str, Any]]], kind: str) -> str:
    """Return a bar for each class, given with its label."""
    of = [f"{row['top1']:.0f} % <small>of {number(row['num_samples'])}</small>" for _, row in rows]
    return bars([(label, row["top1"], note) for (label, row), note in zip(rows, of, strict=True)], 100, kind)


def mistakes(runs: Sequence[ReportRun], inspection: Inspection) -> str:
    """The most confused pairs with images."""
    answered = [(run, answer) for run, answer in zip(runs, inspection.answers, strict=True) if answer.predictions]
    if not answered:
        return problems(inspection.answers) or notes([HOW])
    several = len(runs) > 1
    return "".join(_mistakes_of(run, answer, inspection, several) for run, answer in answered)


def _mistakes_of(run: ReportRun, answer: RunAnswers, inspection: Inspection, several: bool) -> str:
    predictions, tree = answer.predicted
    confusions = answer.metrics["confusions"]
    title = f"Most confused pairs{f', {run.name}' if several else ''}"
    if not confusions:
        caption = "At the level of its class every image got it."
        return figure(title, '<p class="none">No wrong answer.</p>', caption, wide=True)
    answers = own_level_answers(predictions, tree)
    pairs = "".join(_pair(pair, predictions, answers, tree, inspection) for pair in confusions[:NUM_PAIRS])
    caption = (
        "Of how many images of the first class the second was the likeliest class of its level, and how many steps "
        "through the tree lie between the two (2: neighbours below one class)."
    )
    if not inspection.data:
        caption += " Images of them need <code>--data SHARDS</code>."
    details = table(
        ["class", "taken for", "images", "steps"],
        [
            (short(pair["name"]), short(pair["answer_name"]), number(pair["count"]), str(pair["distance"]))
            for pair in confusions
        ],
    )
    return figure(title, f'<ul class="pairs">{pairs}</ul>', caption, details, wide=True)


def _pair(
    confusion: Mapping[str, Any], predictions: Predictions, answers: Tensor, tree: SemanticTree, inspection: Inspection
) -> str:
    """Return a pair with some of the images in which `answers`, those at the levels of their classes, confuse it."""
    label, other = tree.wnids.index(confusion["wnid"]), tree.wnids.index(confusion["answer_wnid"])
    of_class = int((predictions.labels == label).sum())
    name, taken = short(confusion["name"]), short(confusion["answer_name"])
    images = ""
    if inspection.data:
        wrong = predictions.rows[(predictions.labels == label) & (answers == other)][:NUM_WRONG].tolist()
        right = predictions.rows[(predictions.labels == other) & (answers == other)][:NUM_RIGHT].tolist()
        images = _thumbnails(f"{name}, taken for {taken}", wrong, inspection) + _thumbnails(
            f"{taken}, known as such", right, inspection
        )
    count = f"{number(confusion['count'])} of {plural(of_class, 'image', 'images')}"
    steps = plural(confusion["distance"], "step", "steps")
    return (
        f"<li><h4>{name} <small>taken for</small> {taken} <small>{count}, {steps} apart</small></h4>"
        f'<div class="sides">{images}</div></li>'
    )


def _thumbnails(caption: str, rows: Sequence[int], inspection: Inspection) -> str:
    """Return images of the split under their caption, both HTML; nothing for none."""
    listed = "".join(
        f'<li><img src="{data_uri(Image.fromarray(pixels))}" alt="{caption}" decoding="async"></li>'
        for pixels in inspection.images(rows)
        if pixels is not None
    )
    return f'<div><ul class="row">{listed}</ul><small>{caption}</small></div>' if listed else ""
