"""An opened network as one function from pixels to the logits of chosen classes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ...shards.tree import SemanticTree
from ..losses.levels import InnerScores
from .open_model import OpenModel


class PixelModel(nn.Module):
    """Takes images uint8 (B, 3, H, W), gives logits (B, len(outputs)).

    outputs: int64, which outputs of the network, in which order; None: all, in theirs.
    tree:    of the classes that the outputs stand for. Where they are its image classes alone, logits for its inner
             classes are added (see `InnerScores`).
    flip:    average the logits of an image and of its mirror image.
    """

    outputs: Tensor | None

    def __init__(
        self,
        opened: OpenModel,
        outputs: Tensor | None = None,
        tree: SemanticTree | None = None,
        *,
        flip: bool = False,
    ) -> None:
        super().__init__()
        lacks_inner = tree is not None and outputs is not None and len(outputs) < len(tree)
        self._inner_scores = InnerScores(tree) if tree and lacks_inner else None
        self.network, self._normalize, self._flip = opened.model, opened.normalize, flip
        num_outputs = cast(int, opened.model.num_classes)
        if outputs is not None and torch.equal(outputs, torch.arange(num_outputs)):
            outputs = None
        self.register_buffer("outputs", outputs, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch."""
        pixels = self._normalize(images)
        logits: Tensor = self.network(pixels)
        if self._flip:
            logits = (logits.float() + self.network(pixels.flip(3)).float()) / 2
        logits = logits if self.outputs is None else logits.index_select(1, self.outputs)
        return self._inner_scores(logits) if self._inner_scores else logits
