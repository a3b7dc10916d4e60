"""What a network's logits say: the likeliest class of every hierarchy, and the likeliest classes of all."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses.levels import Levels

NUM_TOP = 5


class Answers(NamedTuple):
    """The answers for B images; of a network without a tree K is 0.

    top:                 int64 (B, 5), the likeliest classes with images, the likeliest first; fewer of fewer classes.
    top_probabilities:   float32 (B, 5), among these classes (plain softmax), or each by its sigmoid.
    levels:              int64 (B, K), in each hierarchy its likeliest class.
    level_probabilities: float32 (B, K), within that hierarchy (semantic softmax, or its share of the sigmoids' sum).
    """

    top: Tensor
    top_probabilities: Tensor
    levels: Tensor
    level_probabilities: Tensor


def probabilities_of(logits: Tensor, *, by_sigmoid: bool = False) -> Tensor:
    """Return the probability of each class, float32 (B, num_classes); see `OpenModel.by_sigmoid`."""
    return logits.float().sigmoid() if by_sigmoid else logits.float().softmax(dim=1)


def answers_of(logits: Tensor, levels: Levels | None, *, by_sigmoid: bool = False) -> Answers:
    """Read logits (B, num_classes); `levels` lie on their device; for by_sigmoid see `OpenModel.by_sigmoid`."""
    of_images = logits[:, : levels.num_image_classes] if levels else logits
    top = of_images.topk(min(NUM_TOP, of_images.shape[1]), dim=1).indices
    top_probabilities = probabilities_of(of_images, by_sigmoid=by_sigmoid).gather(1, top)
    if levels is None:
        nothing = top[:, :0]
        return Answers(top, top_probabilities, nothing, nothing.float())
    classes: list[Tensor] = []
    probabilities: list[Tensor] = []
    for members, part in zip(levels.classes, levels.split(logits), strict=True):
        best = part.argmax(dim=1)
        classes.append(members[best])
        # Of both kinds of network the probability given that it is one of the hierarchy's: p_c / (the sum of p).
        logs = F.logsigmoid(part.float()) if by_sigmoid else part.float()
        probabilities.append(logs.softmax(dim=1).gather(1, best[:, None])[:, 0])
    return Answers(top, top_probabilities, torch.stack(classes, dim=1), torch.stack(probabilities, dim=1))
