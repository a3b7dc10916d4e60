"""Probes of cached features: what a linear classifier on them reaches, of few images a class and of all."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...shards.files.parallel import OnProgress, Progress, ignore_progress
from ...shards.tree import SemanticTree
from ..losses.levels import Levels
from ..metrics import SemanticAccuracy
from .feature_file import FeatureFile
from .linear_probe import EPOCHS, LEARNING_RATES, LinearProbe
from .probe_data import Indices, check_pair, draw, shots_at_hand, wnids_of
from .ridge import LAMBDAS, Ridge, moments

log = logging.getLogger(__name__)

SHOTS, SEEDS = (1, 5, 10, 25), (0, 1, 2)
LOGITS = 1 << 26  # at a time: 256 MB
CANDIDATE_BYTES = 2 << 30  # of weights that are tried in one pass over the rows: of 21K-P's classes 23 at width 2,048

Scores = dict[str, float]
Inputs = Callable[[NDArray[Any]], Tensor]


def probe(
    train: FeatureFile,
    test: FeatureFile,
    *,
    shots: Sequence[int] | None = None,
    seeds: Sequence[int] = SEEDS,
    ridge: bool = True,
    linear: bool = True,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = EPOCHS,
    tree: SemanticTree | None = None,
    device: torch.device | None = None,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, Any]:
    """Fit linear classifiers to training rows and measure each once on the test rows.

    shots, seeds: ridge regressions (`Ridge`) of so many rows of each class, or all that it has where they are fewer,
                  one for each seed, which draws them. None: those of 1, 5, 10 and 25 that half of the classes have.
    ridge:        also one of all rows.
    linear:       also logistic regression of all rows (`LinearProbe`).
    tree:         also the semantic top-1: the answer of a level is the ancestor-or-self there of the class that scores
                  highest among all that reach the level (no classifier has learnt scores for ancestors).
    on_progress:  told the share of the classifiers fitted, and the one at work.

    Lambda and learning rate are those that do best (top-1; of equal ones the larger lambda, the smaller learning rate)
    on a part of train that is held back (`draw`): never on test. The shots of a few-shot regression are none of that
    part; what is fitted to all rows is, once chosen, fitted again with that part too.

    Returns {num_train, num_test, num_classes, num_features, few_shot, ridge, linear}: few_shot a list of {shots,
    num_train, seeds: [{seed, lambda, held_back_top1, top1, top5}], top1, top1_deviation, top5} (mean and sample
    standard deviation over the seeds), ridge {lambda, held_back_top1, top1, top5}, linear {lr, held_back_top1, top1,
    top5}; percent all. Raises ValueError for features of two kinds, nothing to hold back, and shots that fewer than
    half of the classes have.
    """
    check_pair(train, test)
    _check(shots or (), seeds, learning_rates, epochs)
    device = device or torch.device("cpu")
    wnids = wnids_of(train, test, tree)
    shots = _fitting(shots, train, wnids)
    work = _Probe(train, test, wnids, tree, device)
    num_jobs = len(shots) * len(seeds) + ridge + 2 * linear
    done = 0

    def say(what: str, part: float = 0.0) -> None:
        on_progress(Progress((done + part) / num_jobs, 0, 0, what))

    result: dict[str, Any] = {
        "num_train": len(train),
        "num_test": len(test),
        "num_classes": len(wnids),
        "num_features": train.num_features,
        "few_shot": [],
    }
    for count in shots:
        fits: list[dict[str, Any]] = []
        num_train = 0
        for seed in seeds:
            say(f"{count}-shot ridge regression, seed {seed}")
            drawn = draw(work.labels, count, seed)
            num_train = len(drawn.shots)
            fits.append({"seed": seed, **work.ridge(drawn.held_back, drawn.shots, refit=False)})
            done += 1
        result["few_shot"].append({"shots": count, "num_train": num_train, "seeds": fits, **_summary(fits)})
    rest = draw(work.labels, None, seeds[0])
    if ridge:
        say("ridge regression of all rows")
        result["ridge"] = work.ridge(rest.held_back, rest.shots, refit=True)
        done += 1
    if linear:

        def on_step(step: int, num_steps: int) -> None:
            say("logistic regression", step / num_steps)

        best = work.learning_rate(rest.held_back, rest.shots, learning_rates, epochs, seeds[0], on_step)
        done += 1
        result["linear"] = {**best, **work.linear(best["lr"], epochs, seeds[0], on_step)}
        done += 1
    say("done")
    return result


class _Probe:
    """The rows of both files, as a probe reads them."""

    def __init__(
        self, train: FeatureFile, test: FeatureFile, wnids: list[str], tree: SemanticTree | None, device: torch.device
    ) -> None:
        self._features, self._test, self._tree, self._device = train.array(), test, tree, device
        self._levels = Levels(tree).to(device) if tree else None
        self.labels, self._test_labels = train.labels(wnids), test.labels(wnids)
        self._num_classes = len(wnids)
        if not len(draw(self.labels, None, 0).held_back):
            raise ValueError(f"{train.path}: no class has two images, so none can be held back to choose settings on")

    def ridge(self, held_back: Indices, rows: Indices, *, refit: bool) -> dict[str, Any]:
        """Choose lambda on the rows held back, and measure it on test, `refit` to all rows or as it was chosen."""
        fitted = self._fit(rows)
        scores = self._held_back_top1(fitted.inputs, map(fitted.weights, LAMBDAS), held_back)
        best = max(range(len(LAMBDAS)), key=lambda place: (scores[place], LAMBDAS[place]))
        if refit:
            fitted = self._fit(np.arange(len(self.labels)))
        on_test = self._on_test(fitted.inputs, fitted.weights(LAMBDAS[best]))
        return {"lambda": LAMBDAS[best], "held_back_top1": scores[best], **on_test}

    def _fit(self, rows: Indices) -> Ridge:
        return Ridge(self._features, rows, self.labels, self._num_classes, self._device)

    def learning_rate(
        self, held_back: Indices, rows: Indices, rates: Sequence[float], epochs: int, seed: int, on_step: Any
    ) -> dict[str, Any]:
        """Choose the learning rate on the rows held back."""
        fitted = self._classifiers(rows, rates, epochs, seed, on_step)
        scores = self._held_back_top1(fitted.inputs, fitted.weights, held_back)
        best = max(range(len(rates)), key=lambda place: (scores[place], -rates[place]))
        return {"lr": rates[best], "held_back_top1": scores[best]}

    def linear(self, rate: float, epochs: int, seed: int, on_step: Any) -> Scores:
        """Measure logistic regression of all rows on test."""
        fitted = self._classifiers(np.arange(len(self.labels)), [rate], epochs, seed, on_step)
        return self._on_test(fitted.inputs, fitted.weights[0])

    def _classifiers(self, rows: Indices, rates: Sequence[float], epochs: int, seed: int, on_step: Any) -> LinearProbe:
        mean, std = moments(self._features, rows, self._device)
        return LinearProbe(
            self._features,
            rows,
            self.labels,
            self._num_classes,
            mean=mean,
            std=std,
            learning_rates=rates,
            epochs=epochs,
            seed=seed,
            on_step=on_step,
        )

    def _held_back_top1(self, inputs: Inputs, candidates: Iterable[Tensor], rows: Indices) -> list[float]:
        """Return the top-1 (percent) of each candidate's weights on training rows, read as few times as memory lets."""
        size, waiting = self._rows_at_once(), iter(candidates)
        together = max(1, CANDIDATE_BYTES // (4 * self._num_classes * (self._features.shape[1] + 1)))
        scores: list[float] = []
        while group := list(islice(waiting, together)):
            hits = torch.zeros(len(group), dtype=torch.int64, device=self._device)
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                x, labels = inputs(self._features[part]), torch.from_numpy(self.labels[part]).to(self._device)
                hits += torch.stack([((x @ weights).argmax(dim=1) == labels).sum() for weights in group])
            scores += [100 * count / len(rows) for count in hits.tolist()]
        return scores

    def _on_test(self, inputs: Inputs, weights: Tensor) -> Scores:
        """Return {top1, top5} in percent, and semantic_top1 where there is a tree, of the test rows."""
        semantic = SemanticAccuracy(self._tree, self._device) if self._tree else None
        hits, first, size = torch.zeros(2, dtype=torch.int64, device=self._device), 0, self._rows_at_once()
        for chunk in self._test.chunks():
            for start in range(0, len(chunk), size):
                logits = inputs(chunk[start : start + size]) @ weights
                labels = torch.from_numpy(self._test_labels[first : first + len(logits)]).to(self._device)
                right = logits.topk(min(5, self._num_classes), dim=1).indices == labels[:, None]
                hits += torch.stack([right[:, 0].sum(), right.sum()])
                if semantic and self._levels:
                    semantic.update(_lifted(logits, self._levels.ancestors), labels)
                first += len(logits)
        top1, top5 = (100 * count / first for count in hits.tolist())
        return {"top1": top1, "top5": top5} | ({"semantic_top1": 100 * semantic.compute()} if semantic else {})

    def _rows_at_once(self) -> int:
        return max(1, LOGITS // (self._num_classes + self._features.shape[1]))


def _lifted(scores: Tensor, ancestors: Tensor) -> Tensor:
    """Return (B, num_classes): 1 at the ancestor, in each hierarchy, of the best-scoring class that has one there.

    scores: of the classes with images. ancestors: see `Levels`.
    """
    answers: list[Tensor] = []
    for above in ancestors[: scores.shape[1]].T:
        (reach,) = (above >= 0).nonzero(as_tuple=True)
        answers.append(above[reach[scores[:, reach].argmax(dim=1)]])
    return scores.new_zeros(len(scores), len(ancestors)).scatter_(1, torch.stack(answers, dim=1), 1)


def _check(shots: Sequence[int], seeds: Sequence[int], learning_rates: Sequence[float], epochs: int) -> None:
    if not seeds or min(seeds) < 0 or (shots and min(shots) < 1):
        raise ValueError(
            f"shots are {list(shots)} and seeds {list(seeds)}; wanted shots of 1 or more, seeds of 0 or more"
        )
    if not learning_rates or not all(math.isfinite(rate) and rate > 0 for rate in learning_rates) or epochs < 1:
        raise ValueError(
            f"learning rates are {list(learning_rates)} and epochs {epochs}; wanted finite rates above 0, and 1 epoch "
            "or more"
        )


def _fitting(shots: Sequence[int] | None, train: FeatureFile, wnids: list[str]) -> Sequence[int]:
    """Return the shots that are asked for, or the usual ones that fit; ValueError for one that does not fit."""
    at_hand = shots_at_hand(train.labels(wnids))
    most = int(at_hand[len(at_hand) // 2])  # that at least half of the classes have
    too_many = [count for count in (SHOTS if shots is None else shots) if count > most]
    have = (
        f"beside what is held back its {len(at_hand):,} classes have from {at_hand[0]:,} to {at_hand[-1]:,} images, "
        f"half of them {most:,} or more"
    )
    if shots is None:
        if too_many:
            log.info("%s: shots left out are %s; %s", train.path, ", ".join(map(str, too_many)), have)
        return [count for count in SHOTS if count <= most]
    if too_many:
        raise ValueError(f"{train.path}: shots are {max(too_many)}; {have}")
    return shots


def _summary(fits: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of each measure over the seeds, and the deviation of top-1 (None for one seed)."""
    means = {
        name: statistics.fmean(fit[name] for fit in fits)
        for name in ("top1", "top5", "semantic_top1")
        if name in fits[0]
    }
    top1 = [fit["top1"] for fit in fits]
    return {**means, "top1_deviation": statistics.stdev(top1) if len(top1) > 1 else None}
