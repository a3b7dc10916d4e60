"""Semantic softmax: one softmax per level of the tree, so that an image trains its class and all ancestors of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...shards.tree import SemanticTree
from .cross_entropy import check_smoothing
from .fused_backward import Blocks, attach_gradient, gradient_unit, gradient_wanted, has_kernels, not_compiled
from .levels import Levels


class SemanticSoftmaxLoss(nn.Module):
    """The semantic softmax loss of "ImageNet-21K Pretraining for the Masses" (Ridnik et al., 2021, section 3.2).

        L   = sum_k w_k L_k
        L_k = (1/B) sum over samples with a target at level k of CE(log_softmax(logits[:, H_k]), q_k)
        q_k = (1-eps) onehot(y_k) + eps/N_k

    with H_k, N_k, y_k and w_k as `Levels` has them. B counts the whole batch, also the samples that a level leaves out.

    label_smoothing: eps, 0 <= eps < 1.

    Logits (B, num_classes) of any float type and labels int64 (B,) on one device; the loss is float32, a scalar on that
    device, computed in float32 without waiting for it; the gradient has the logits' type. Each level has its own
    softmax with its own maximum, so that levels may lie any number of logits apart. Move the module there with
    `.to(device)`. An empty batch has loss 0.

    The gradient is made along with the loss and is the only large tensor that is kept: on a GPU by one kernel
    (`semantic_triton`), elsewhere in blocks of rows. It can be differentiated once.

    >>> tree = SemanticTree.from_paths("abc", ["animal", "plant", "bird"], [[0], [1], [2, 0]])
    >>> loss = SemanticSoftmaxLoss(tree, label_smoothing=0)
    >>> round(loss(torch.zeros(1, 3), torch.tensor([2])).item(), 4)  # a bird is an animal: log 2; one class at level 1
    0.6931
    """

    weights: Tensor

    def __init__(self, tree: SemanticTree, label_smoothing: float = 0.2) -> None:
        super().__init__()
        self.label_smoothing = check_smoothing(label_smoothing)
        self.levels = Levels(tree)
        self.register_buffer("weights", torch.tensor(self.levels.weights), persistent=False)

    @not_compiled
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch, a float32 scalar."""
        self.levels.check(logits)
        if labels.shape != logits.shape[:1]:
            raise ValueError(
                f"labels have the shape {tuple(labels.shape)}; wanted ({len(logits)},), one per logits row"
            )
        wanted, unit = gradient_wanted(logits), gradient_unit(logits)
        ancestors = self.levels.ancestors_of(labels)
        with torch.no_grad():
            if has_kernels(logits):
                from .semantic_triton import semantic_softmax

                addends, gradient = semantic_softmax(
                    logits, ancestors, self.levels, self.weights, self.label_smoothing, unit, with_gradient=wanted
                )
            else:
                addends, gradient = self._by_blocks(logits, ancestors, unit, with_gradient=wanted)
        return attach_gradient(logits, addends, gradient, unit)

    def _by_blocks(
        self, logits: Tensor, ancestors: Tensor, unit: float, *, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return what adds up to the loss, and `unit` times its gradient; ancestors: int64 (B, K), -1 for none."""
        rows, counts = _deepest_first(ancestors)
        ancestors = ancestors[rows]
        shares = (ancestors >= 0) * (self.weights / max(len(logits), 1))
        blocks = Blocks(logits, len(self.levels.sizes), with_gradient=with_gradient)
        addends = [shares.new_zeros(1)]
        for begin in range(0, len(logits), blocks.num_rows):
            here = slice(begin, begin + blocks.num_rows)
            block, slopes = blocks.take(rows[here])
            counts_here = [count - begin for count in counts]
            addends.append(self._block(block, ancestors[here], shares[here], counts_here, slopes, unit))
            blocks.give(rows[here])
        return torch.cat(addends), blocks.gradient

    def _block(
        self,
        logits: Tensor,
        ancestors: Tensor,
        shares: Tensor,
        counts: list[int],
        slopes: Tensor | None,
        unit: float,
    ) -> Tensor:
        """Return the losses (R,) of float32 logits (R, C), and add `unit` times their gradient to slopes (R, C).

        ancestors: (R, K). shares: (R, K) w_k / B, 0 where the row has no target at the level.
        counts: per level how many of the rows, the first ones, may have a target there; it never grows.
        """
        eps = self.label_smoothing
        # Where a row does not reach a level, these make a log-sum-exp of 0; its share is 0 too.
        maxima, sums, likeliest = (logits.new_full((len(counts), len(logits)), value) for value in (0.0, 0.0, 1.0))
        for k, (classes, count) in enumerate(zip(self.levels.classes, counts, strict=True)):
            if count <= 0:
                break
            columns = classes.expand(min(count, len(logits)), -1)
            scores = logits[:count].gather(1, columns)
            probabilities = scores.softmax(dim=1)
            torch.amax(scores, 1, out=maxima[k, :count])
            torch.sum(scores, 1, out=sums[k, :count])
            torch.amax(probabilities, 1, out=likeliest[k, :count])
            if slopes is not None:
                share = shares[:count, k : k + 1] * unit
                slopes[:count].scatter_(1, columns, probabilities.mul_(share).sub_(share * (eps / len(classes))))
        right, on_right = ancestors.clamp(min=0), (1 - eps) * shares
        if slopes is not None:
            slopes.scatter_add_(1, right, on_right * -unit)
        # The likeliest class gives the level's log-sum-exp: log p = score - logsumexp, and its p is at least 1/N_k.
        # Logits are compared with their maximum before anything else, so that a common shift costs no digits.
        to_right = maxima.T - logits.gather(1, right)
        to_mean = (maxima - sums / self.levels.begins.diff()[:, None]).T
        return (shares * (eps * to_mean - likeliest.log().T) + on_right * to_right).sum(dim=1)


def _deepest_first(ancestors: Tensor) -> tuple[Tensor, list[int]]:
    """Return an order of the rows of ancestors (B, K), and per level how many of the first may have a target there.

    On a CPU the deepest come first, so that a level takes the first rows and skips the others: on average two fifths of
    the work. Elsewhere nothing may wait for the counts, and every level takes every row.
    """
    num_rows, num_levels = ancestors.shape
    if ancestors.device.type != "cpu":
        return torch.arange(num_rows, device=ancestors.device), [num_rows] * num_levels
    has_target = ancestors >= 0
    return has_target.sum(dim=1).argsort(descending=True, stable=True), has_target.sum(dim=0).tolist()
