"""A map of features: t-SNE lays them out flat, so that similar images lie together."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NUM_COMPONENTS = 50  # of the features, before they are laid out (van der Maaten and Hinton, 2008, section 4.2)
PERPLEXITY = 30.0
NUM_NEIGHBOURS = 10
MIN_POINTS = 8


def flatten(features: Tensor, seed: int = 0) -> Tensor:
    """Lay features (N, D) out flat: float32 (N, 2) on the CPU; equal features and seeds give equal places.

    scikit-learn's t-SNE (van der Maaten and Hinton, 2008) of perplexity 30 over unit vectors, reduced to 50 dimensions
    by principal components. The first two components are its start (Kobak and Berens, 2019, arXiv:1902.09222).
    Raises ValueError for fewer than 8 features.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(features) < MIN_POINTS:
        raise ValueError(f"{len(features)} images are too few for a map; wanted {MIN_POINTS} or more")
    points = torch.nn.functional.normalize(features.float(), dim=1).cpu()
    points = points - points.mean(dim=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        directions = torch.pca_lowrank(points, q=min(NUM_COMPONENTS, *points.shape), center=False, niter=4)[2]
    points = (points @ directions).numpy()
    start = np.zeros((len(points), 2), np.float32)
    start[:, : points.shape[1]] = points[:, :2]
    start *= 1e-4 / max(start[:, 0].std(), 1e-12)
    tsne = TSNE(perplexity=min(PERPLEXITY, (len(points) - 1) / 3), init=start, random_state=seed)
    with threadpool_limits(1):  # threads add up in an order of their own
        return torch.from_numpy(tsne.fit_transform(points))


def share_alike(points: Tensor, labels: Tensor) -> float:
    """Return the mean share of a point's 10 nearest neighbours that have its label: points (N, D), labels (N,)."""
    distances = torch.cdist(points.float(), points.float()).fill_diagonal_(torch.inf)
    nearest = distances.topk(min(NUM_NEIGHBOURS, len(points) - 1), largest=False).indices
    return float((labels[nearest] == labels[:, None]).float().mean())
