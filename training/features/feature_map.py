"""Features of many dimensions laid out flat, so that what is alike lies together: t-SNE, exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_COMPONENTS = 50  # of the features, before they are laid out (van der Maaten and Hinton, 2008, section 4.2)
PERPLEXITY = 30.0
NUM_STEPS, EARLY_STEPS = 500, 125  # the second: with attraction EXAGGERATION times as strong
EXAGGERATION = 12.0
NUM_NEIGHBOURS = 10
LEAST = 8  # points


def flatten(features: Tensor, seed: int = 0) -> Tensor:
    """Lay features (N, D) out flat: float32 (N, 2) on the CPU, centred; equal ones and seeds give equal places.

    t-SNE (van der Maaten and Hinton, 2008) of perplexity 30 over unit vectors, brought to 50 dimensions by principal
    components, which it begins with too (Kobak and Berens, 2019, arXiv:1902.09222); learning rate N / 12 (Belkina et
    al., 2019). It holds five arrays of N x N: up to a few thousand points. Raises ValueError for fewer than 8.
    """
    if len(features) < LEAST:
        raise ValueError(f"{len(features)} images are too few for a map; wanted {LEAST} or more")
    points = torch.nn.functional.normalize(features.float(), dim=1)
    points = points - points.mean(dim=0)
    components = min(NUM_COMPONENTS, *points.shape)
    with torch.random.fork_rng(devices=[points.device] if points.is_cuda else []):
        torch.manual_seed(seed)
        _, _, directions = torch.pca_lowrank(points, q=components, center=False, niter=4)
    points = points @ directions
    start = points[:, :2]
    if start.shape[1] < 2:
        start = torch.cat([start, torch.zeros_like(start)], dim=1)
    near = affinities(_square_distances(points), min(PERPLEXITY, (len(points) - 1) / 3))
    return _descend(near, 1e-4 * start / start[:, 0].std().clamp(min=1e-12)).cpu()


def affinities(square_distances: Tensor, perplexity: float) -> Tensor:
    """Return how near points are to each other, (N, N), symmetric, summing to 1.

    Of each point's gaussian the width is found by halving, so that 2 to its entropy in bits is `perplexity`.
    """
    num_points = len(square_distances)
    itself = torch.eye(num_points, dtype=torch.bool, device=square_distances.device)
    # Sharpness 1 has to be about right for a halving to be quick, whatever the scale of the features.
    scaled = square_distances / square_distances.mean().clamp(min=1e-12)
    scaled = scaled - scaled.masked_fill(itself, math.inf).amin(dim=1, keepdim=True)
    low, high = (torch.full((num_points, 1), value, device=scaled.device) for value in (1e-6, 1e9))
    for _ in range(64):
        sharpness = (low * high).sqrt()
        logits = (-sharpness * scaled).masked_fill(itself, -math.inf)
        log_shares = logits.log_softmax(dim=1)
        entropy = -(log_shares.exp() * log_shares.masked_fill(itself, 0)).sum(dim=1, keepdim=True)
        too_wide = entropy > math.log(perplexity)
        low, high = torch.where(too_wide, sharpness, low), torch.where(too_wide, high, sharpness)
    shares = (-(low * high).sqrt() * scaled).masked_fill(itself, -math.inf).softmax(dim=1)
    return (shares + shares.T) / (2 * num_points)


def _descend(near: Tensor, places: Tensor) -> Tensor:
    """Move places (N, 2) so that their own nearness, of heavy tails, comes to `near`."""
    speed, gains = torch.zeros_like(places), torch.ones_like(places)
    rate = max(len(places) / EXAGGERATION, 50.0)
    for step in range(NUM_STEPS):
        pulled = EXAGGERATION if step < EARLY_STEPS else 1.0
        slope = gradient(near, places, pulled)
        same_way = (slope > 0) == (speed > 0)
        gains = torch.where(same_way, 0.8 * gains, gains + 0.2).clamp(min=0.01)
        speed = (0.5 if step < EARLY_STEPS else 0.8) * speed - rate * gains * slope
        places = places + speed
        places = places - places.mean(dim=0)
    return places


def gradient(near: Tensor, places: Tensor, exaggeration: float = 1.0) -> Tensor:
    """Return the gradient (N, 2) of the divergence of `exaggeration` x near from the places' nearness."""
    kernel = _square_distances(places).add_(1).reciprocal_().fill_diagonal_(0)
    forces = (exaggeration * near - kernel / kernel.sum()).mul_(kernel)
    return 4 * (forces.sum(dim=1, keepdim=True) * places - forces @ places)


def _square_distances(points: Tensor) -> Tensor:
    squares = points.square().sum(dim=1)
    return (squares[:, None] + squares - 2 * points @ points.T).clamp_(min=0).fill_diagonal_(0)


def share_alike(points: Tensor, labels: Tensor) -> float:
    """Return which share of every point's 10 nearest others has its label: points (N, D), labels (N,)."""
    distances = _square_distances(points.float()).fill_diagonal_(math.inf)
    nearest = distances.topk(min(NUM_NEIGHBOURS, len(points) - 1), largest=False).indices
    return float((labels[nearest] == labels[:, None]).float().mean())
