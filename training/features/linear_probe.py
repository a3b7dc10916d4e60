"""Multinomial logistic regression on features by SGD, for several learning rates in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .feature_file import float_rows
from .probe_data import Indices

# Guessed, around what theory allows: for inputs of length 1 softmax's loss curves by 1/2 at most, where momentum 0.9 is
# stable up to 7.6; features with few directions take less, well spread ones more.
LEARNING_RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
BATCH_ROWS, EPOCHS, MOMENTUM = 1024, 10, 0.9
MIN_STEPS = 500  # of few rows the epochs are more, or the learning rates would have no time to tell apart


class LinearProbe:
    """Linear classifiers of one training set, one for each learning rate, all shown the same batches.

    Features are standardised by mean and standard deviation of the training rows (as a batch norm without weights) and
    divided by sqrt(D), so that learning rates mean the same for features of any size; weights begin at zero; SGD with
    momentum 0.9, batches of 1,024 rows, no weight decay, half a cosine down to 0.

    weights: float32 (G, D + 1, num_classes) on the device, the last row the bias.
    """

    def __init__(
        self,
        features: NDArray[Any],
        rows: Indices,
        labels: Indices,
        num_classes: int,
        *,
        mean: Tensor,
        std: Tensor,
        learning_rates: Sequence[float] = LEARNING_RATES,
        epochs: int = EPOCHS,
        seed: int = 0,
        on_step: Callable[[int, int], object] | None = None,
    ) -> None:
        """Train on `features[rows]` with `labels[rows]`; N x D features may be mapped from a file.

        mean, std: of the training rows, float32 (D,), on the device that computes.
        epochs:    passes over the rows; more where they are too few for 500 steps.
        on_step:   called with the steps done and their number.
        """
        self.mean, self.std, self._device = mean, std, mean.device
        batch = min(BATCH_ROWS, len(rows))
        per_epoch = len(rows) // batch
        num_steps = max(epochs * per_epoch, MIN_STEPS)
        rates = torch.tensor(learning_rates, device=self._device).view(-1, 1, 1)
        self.weights = torch.zeros(len(rates), features.shape[1] + 1, num_classes, device=self._device)
        velocity = torch.zeros_like(self.weights)
        order = np.empty(0, np.int64)
        for step in range(num_steps):
            if step % per_epoch == 0:
                philox: Any = np.random.Philox(np.random.SeedSequence((seed, step)))
                order = rows[np.argsort(philox.random_raw(len(rows)), kind="stable")]
            part = order[step % per_epoch * batch : (step % per_epoch + 1) * batch]
            x = self.inputs(features[np.sort(part)])  # in the file's order: a mapped one is read forwards
            right = torch.from_numpy(labels[np.sort(part)]).to(self._device)
            # The gradient of cross-entropy: X'(softmax - onehot) / B.
            errors = (x @ self.weights).softmax(dim=2)
            errors[:, torch.arange(len(right), device=self._device), right] -= 1
            velocity.mul_(MOMENTUM).add_(x.T @ errors, alpha=1 / len(right))
            self.weights -= 0.5 * (1 + math.cos(math.pi * step / num_steps)) * rates * velocity
            if on_step:
                on_step(step + 1, num_steps)

    def inputs(self, features: NDArray[Any]) -> Tensor:
        """Return features (n, D) as the classifiers take them, float32 (n, D + 1) on the device."""
        x = float_rows(features, self._device)
        return F.pad((x - self.mean) / self.std / math.sqrt(x.shape[1]), (0, 1), value=1.0)
