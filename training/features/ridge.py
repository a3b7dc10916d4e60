"""Ridge regression onto classes, one against all others, in closed form.

As big_vision's few-shot evaluation has it (https://github.com/google-research/big_vision, evaluators/fewshot_lsr.py):
features are standardised by the training rows, a constant 100 is added as the last one, so that the bias is hardly
held down, and the targets are 1 for the row's class and -1 for all others. W = (X'X + lambda I)^-1 X'Y.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .feature_file import float_rows
from .probe_data import Indices

LAMBDAS = tuple(2.0**power for power in range(-10, 21, 2))
BIAS, SMALL = 100.0, 1e-5
CHUNK_ROWS = 8192


class Ridge:
    """Ridge regressions of one training set for any number of lambdas: one eigendecomposition serves all.

    mean, std: of the training rows, float32 (D,), on the device.
    """

    def __init__(self, features: NDArray[Any], rows: Indices, labels: Indices, num_classes: int, device: torch.device):
        """Fit `features[rows]` to `labels[rows]`; N x D features may be mapped from a file."""
        self._features, self._device = features, device
        self.mean, self.std = moments(features, rows, device)
        width = features.shape[1] + 1
        gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        sums = torch.zeros(num_classes, width, dtype=torch.float64, device=device)
        for start in range(0, len(rows), CHUNK_ROWS):
            part = rows[start : start + CHUNK_ROWS]
            # Of fewer rows than features most eigenvalues are 0, and have to come out well below the smallest lambda.
            x = self.inputs(features[part]).double()
            gram += x.T @ x
            sums.index_add_(0, torch.from_numpy(labels[part]).to(device), x)
        # X'Y with Y = 2 onehot - 1: twice the sum of a class's rows, less that of all.
        targets = (2 * sums - sums.sum(0)).T
        self._eigenvalues, self._vectors = torch.linalg.eigh(gram)
        self._rotated = self._vectors.T @ targets

    def inputs(self, features: NDArray[Any]) -> Tensor:
        """Return features (n, D) as the regression takes them, float32 (n, D + 1) on the device."""
        x = float_rows(features, self._device)
        return F.pad((x - self.mean) / self.std, (0, 1), value=BIAS)

    def weights(self, lambda_: float) -> Tensor:
        """Return the weights for a lambda, float32 (D + 1, num_classes)."""
        scaled = self._rotated / (self._eigenvalues.clamp(min=0)[:, None] + lambda_)
        return (self._vectors @ scaled).float()


def moments(features: NDArray[Any], rows: Indices, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation plus 1e-5 of some rows, float32 (D,) on the device, in two passes."""
    mean = torch.zeros(features.shape[1], dtype=torch.float64, device=device)
    for x in _doubles(features, rows, device):
        mean += x.sum(0) / len(rows)
    variance = torch.zeros_like(mean)
    for x in _doubles(features, rows, device):
        variance += (x - mean).square().sum(0) / len(rows)
    return mean.float(), (variance.sqrt() + SMALL).float()


def _doubles(features: NDArray[Any], rows: Indices, device: torch.device) -> Any:
    for start in range(0, len(rows), CHUNK_ROWS):
        yield float_rows(features[rows[start : start + CHUNK_ROWS]], device).double()
