"""The semantic loss and accuracy against a slow, obvious loop over samples and levels."""

from __future__ import annotations

import math
from importlib.resources import files

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from torch import Tensor

from in21k.preprocess import build_tree
from in21k.shards.tree import SemanticTree
from in21k.training import SemanticAccuracy, SemanticSoftmaxLoss
from in21k.training.losses import fused_backward as computed_ahead
from in21k.training.losses import semantic
from in21k.training.losses.levels import Levels
from in21k.training.metrics import TopAccuracy, commonest


def slow_levels(tree: SemanticTree) -> list[tuple[list[int], float]]:
    """Per hierarchy its classes and its weight, as the reference counts them."""
    depth = max(tree.levels) + 1
    sizes = [tree.levels.count(k) for k in range(depth)]
    return [
        ([i for i in range(len(tree)) if tree.levels[i] == k], min(sum(sizes) / sum(sizes[k:]), 20.0))
        for k in range(depth)
        if sizes[k] > 1
    ]


def slow_loss(tree: SemanticTree, logits: Tensor, labels: list[int], eps: float) -> Tensor:
    total = logits.new_zeros(())
    for classes, weight in slow_levels(tree):
        for row, label in enumerate(labels):
            answer = [node for node in tree.paths[label] if node in classes]
            if not answer:
                continue
            log_probabilities = torch.log_softmax(logits[row, classes], dim=0)
            for place, node in enumerate(classes):
                target = (1 - eps) * (node == answer[0]) + eps / len(classes)
                total = total - weight * target * log_probabilities[place] / len(labels)
    return total


def slow_accuracy(tree: SemanticTree, logits: Tensor, labels: list[int]) -> tuple[int, int]:
    correct = valid = 0
    for classes, _ in slow_levels(tree):
        for row, label in enumerate(labels):
            answer = [node for node in tree.paths[label] if node in classes]
            if answer:
                valid += 1
                correct += max(classes, key=lambda node: logits[row, node].item()) == answer[0]
    return correct, valid


@st.composite
def trees(draw: st.DrawFn) -> SemanticTree:
    """Trees of 2 to 12 classes in any order of indices, with at least one level of two."""
    size = draw(st.integers(2, 12))
    # The first two are tops, each other class hangs below one that came before it; then the indices are shuffled.
    parents = [-1, -1, *(draw(st.integers(-1, i - 1)) for i in range(2, size))]
    order = draw(st.permutations(range(size)))
    shuffled = [-1] * size
    for i, parent in enumerate(parents):
        shuffled[order[i]] = order[parent] if parent >= 0 else -1
    names = [f"class {i}" for i in range(size)]
    return SemanticTree.from_parents([f"n{i}" for i in range(size)], names, shuffled)


@effort(max_examples=60, deadline=None)
@given(
    trees(), st.integers(1, 6), st.sampled_from([0.0, 0.2, 0.5]), st.integers(0, 2**31), st.sampled_from([1.0, 300.0])
)
def test_loss_and_gradient_equal_the_loop_on_any_tree(
    tree: SemanticTree, batch: int, eps: float, seed: int, apart: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Levels may lie hundreds of logits apart.
    shift = apart * torch.randn(max(tree.levels) + 1, generator=generator)[list(tree.levels)]
    logits = torch.randn(batch, len(tree), generator=generator) + shift
    labels = torch.randint(len(tree), (batch,), generator=generator)
    fast, slow = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss, wanted = SemanticSoftmaxLoss(tree, eps)(fast, labels), slow_loss(tree, slow, labels.tolist(), eps)
    loss.backward()
    if wanted.requires_grad:
        wanted.backward()
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-4, atol=1e-4)
    gradient = slow.grad if slow.grad is not None else torch.zeros_like(slow)
    torch.testing.assert_close(fast.grad, gradient.float(), rtol=1e-4, atol=1e-5)


@effort(max_examples=60, deadline=None)
@given(trees(), st.integers(1, 6), st.integers(0, 2**31))
def test_accuracy_equals_the_loop_on_any_tree_and_adds_over_batches(tree: SemanticTree, batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    accuracy, correct, valid = SemanticAccuracy(tree), 0, 0
    for _ in range(2):
        logits = torch.randn(batch, len(tree), generator=generator)
        labels = torch.randint(len(tree), (batch,), generator=generator)
        accuracy.update(logits, labels)
        more_correct, more_valid = slow_accuracy(tree, logits, labels.tolist())
        correct, valid = correct + more_correct, valid + more_valid
    assert accuracy.sums.sum(dim=1).tolist() == [correct, valid]
    if valid:
        assert accuracy.compute() == correct / valid
    accuracy.reset()
    with pytest.raises(ValueError, match="no image"):
        accuracy.compute()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_a_float32_loss_and_a_gradient_of_their_own_kind(
    tree: SemanticTree, dtype: torch.dtype
) -> None:
    logits = torch.randn(8, len(tree), generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(8) % len(tree)
    half, full = logits.clone().requires_grad_(), logits.float().requires_grad_()
    loss, wanted = SemanticSoftmaxLoss(tree)(half, labels), SemanticSoftmaxLoss(tree)(full, labels)
    loss.backward()
    wanted.backward()
    assert loss.dtype == torch.float32
    assert half.grad is not None
    assert half.grad.dtype == dtype
    assert loss.item() == wanted.item()
    torch.testing.assert_close(half.grad, full.grad, check_dtype=False, rtol=1e-2, atol=1e-2)


def test_one_level_is_plain_cross_entropy() -> None:
    tree = SemanticTree.from_parents(list("abcd"), list("abcd"), [-1] * 4)
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    wanted = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(SemanticSoftmaxLoss(tree)(logits, labels), wanted)


def test_a_level_of_one_class_is_no_hierarchy_and_its_class_trains_its_ancestors(tree: SemanticTree) -> None:
    levels = Levels(tree)
    assert levels.numbers == (0, 1)  # level 2 holds the swan alone
    assert levels.sizes == (2, 3)
    assert levels.weights == (1.0, 6 / 4)  # the sums count the swan too
    assert levels.ancestors_of(torch.tensor([tree.find("swan")])).tolist() == [[3, 1]]


def test_a_tree_without_a_level_of_two_classes_is_refused_with_the_reason() -> None:
    chain = SemanticTree.from_parents(list("abc"), list("abc"), [-1, 0, 1])
    with pytest.raises(ValueError, match="no level of two"):
        SemanticSoftmaxLoss(chain)


def test_logits_of_another_number_of_classes_are_refused(tree: SemanticTree) -> None:
    with pytest.raises(ValueError, match=r"\(2, 5\).*\(batch, 6\)"):
        SemanticSoftmaxLoss(tree)(torch.zeros(2, 5), torch.tensor([0, 1]))


def test_labels_of_another_number_are_refused(tree: SemanticTree) -> None:
    with pytest.raises(ValueError, match=r"\(3,\); wanted \(2,\)"):
        SemanticSoftmaxLoss(tree)(torch.zeros(2, 6), torch.tensor([0, 1, 2]))


def test_an_empty_batch_has_loss_zero(tree: SemanticTree) -> None:
    logits = torch.zeros(0, 6, requires_grad=True)
    loss = SemanticSoftmaxLoss(tree)(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.shape == (0, 6)


def batch(tree: SemanticTree, size: int = 5) -> tuple[Tensor, Tensor]:
    """Logits that want a gradient, and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, len(tree), generator=generator, requires_grad=True)
    return logits, torch.randint(len(tree), (size,), generator=generator)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_follows_what_comes_after_the_loss(tree: SemanticTree, dtype: torch.dtype) -> None:
    logits, labels = batch(tree)
    logits, loss = logits.detach().to(dtype).requires_grad_(), SemanticSoftmaxLoss(tree)
    plain = gradient(loss(logits, labels), logits)
    torch.testing.assert_close(gradient(loss(logits, labels) * 4, logits), plain * 4)
    once = loss(logits, labels)
    torch.testing.assert_close(gradient(once + once, logits), plain * 2)
    kept = loss(logits, labels)
    kept.backward(retain_graph=True)
    kept.backward()
    torch.testing.assert_close(logits.grad, plain * 2)


def test_without_need_no_gradient_is_made(tree: SemanticTree) -> None:
    logits, labels = batch(tree)
    loss = SemanticSoftmaxLoss(tree)
    wanted = loss(logits, labels)
    with torch.inference_mode():
        assert torch.equal(loss(logits, labels), wanted.detach())
    with torch.no_grad():
        assert not loss(logits, labels).requires_grad
    assert not loss(logits.detach(), labels).requires_grad


def test_a_second_derivative_is_refused(tree: SemanticTree) -> None:
    logits, labels = batch(tree)
    (slope,) = torch.autograd.grad(SemanticSoftmaxLoss(tree)(logits, labels) ** 2, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_autocast_changes_nothing(tree: SemanticTree) -> None:
    logits, labels = batch(tree)
    loss = SemanticSoftmaxLoss(tree)
    wanted = loss(logits, labels)
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss(logits, labels)
    assert torch.equal(actual, wanted)
    assert torch.equal(gradient(actual, logits), gradient(wanted, logits))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler's own look at what lies between its graphs
def test_a_compiled_step_leaves_the_loss_as_it_is(tree: SemanticTree) -> None:
    logits, labels = batch(tree)
    loss = SemanticSoftmaxLoss(tree)
    actual = torch.compile(lambda logits: loss(logits * 2, labels) + 1, backend="eager")(logits)
    wanted = loss(logits * 2, labels) + 1
    assert torch.equal(actual, wanted)
    assert torch.equal(gradient(actual, logits), gradient(wanted, logits))


def test_logits_of_any_strides(tree: SemanticTree) -> None:
    logits, labels = batch(tree)
    loss = SemanticSoftmaxLoss(tree)
    turned = logits.detach().T.contiguous().T.requires_grad_()
    assert torch.equal(loss(turned, labels), loss(logits, labels))
    assert torch.equal(gradient(loss(turned, labels), turned), gradient(loss(logits, labels), logits))


def test_rows_taken_one_by_one_or_all_at_once_give_the_same(
    tree: SemanticTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, labels = batch(tree, 40)
    loss = SemanticSoftmaxLoss(tree)
    at_once = loss(logits, labels)
    monkeypatch.setattr(computed_ahead, "_BLOCK_ELEMENTS", 1)  # then a block has as many rows as there are levels
    in_blocks = loss(logits, labels)
    # What other devices do, where nothing may wait for the labels: every row at every level.
    everything = (torch.arange(40), [40, 40])
    monkeypatch.setattr(semantic, "_deepest_first", lambda _: everything)
    masked = loss(logits, labels)
    for other in (in_blocks, masked):
        torch.testing.assert_close(other, at_once)
        torch.testing.assert_close(gradient(other, logits), gradient(at_once, logits), rtol=1e-5, atol=1e-8)
        at_once = loss(logits, labels)


def test_a_thousand_levels() -> None:
    # Two chains of 1,000 classes, and three classes that hang off them.
    size = 2003
    parents = [-1, -1, *range(1998), 5, 700, 1998]
    tree = SemanticTree.from_parents([f"n{i}" for i in range(size)], [""] * size, parents)
    assert len(Levels(tree).sizes) == 1000
    labels = [1999, 2002, 901]
    logits = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    fast, slow = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss, wanted = SemanticSoftmaxLoss(tree)(fast, torch.tensor(labels)), slow_loss(tree, slow, labels, 0.2)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient(loss, fast), gradient(wanted, slow).float(), rtol=1e-4, atol=1e-6)


def test_the_modules_hold_nothing_to_save(tree: SemanticTree) -> None:
    assert not SemanticSoftmaxLoss(tree).state_dict()


def test_the_21k_tree_has_eleven_hierarchies_with_the_reference_weights() -> None:
    listed = files("timm") / "data" / "_info" / "imagenet21k_miil_synsets.txt"
    levels = Levels(build_tree(listed.read_text().split()))
    sizes = (302, 1378, 2100, 2605, 2204, 1371, 716, 290, 146, 82, 26)
    assert levels.numbers == tuple(range(11))
    assert levels.sizes == sizes
    from_level_on = [sum((*sizes, 1)[k:]) for k in range(11)]
    assert levels.weights == tuple(min(11221 / rest, 20.0) for rest in from_level_on)
    assert [round(weight, 2) for weight in levels.weights] == [1, 1.03, 1.18, 1.51, 2.32, 4.26, 8.9, 20, 20, 20, 20]
    loss = SemanticSoftmaxLoss(build_tree(listed.read_text().split()), label_smoothing=0.0)
    # With equal logits every level answers at chance: class 10 lies on level 4.
    wanted = sum(w * math.log(n) for w, n in zip(levels.weights[:5], sizes[:5], strict=True))
    assert loss(torch.zeros(1, 11221), torch.tensor([10])).item() == pytest.approx(wanted, rel=1e-5)


def test_per_level_accuracy_names_levels_and_counts(tree: SemanticTree) -> None:
    accuracy = SemanticAccuracy(tree)
    logits = torch.full((2, 6), -1.0)
    logits[:, [3, 1]] = 1.0  # always "animal", always "bird"
    accuracy.update(logits, torch.tensor([tree.find("swan"), tree.find("plant")]))
    assert accuracy.per_level() == [
        {"level": 0, "num_classes": 2, "num_samples": 2, "top1": 50.0},
        {"level": 1, "num_classes": 3, "num_samples": 1, "top1": 100.0},
    ]
    assert accuracy.compute() == 2 / 3


@effort(max_examples=40, deadline=None)
@given(trees(), st.data())
def test_commonest_is_the_accuracy_of_the_best_constant_answer(tree: SemanticTree, data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, len(tree) - 1), min_size=1, max_size=20))
    right = valid = 0
    for classes, _ in slow_levels(tree):
        answers = [node for label in labels for node in tree.paths[label] if node in classes]
        right, valid = right + max(answers.count(node) for node in classes), valid + len(answers)
    counts = torch.bincount(torch.tensor(labels), minlength=len(tree))
    if valid:
        assert commonest(tree, counts) == right / valid


def test_top_accuracy_counts_first_and_first_five() -> None:
    top = TopAccuracy(7)
    logits = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1]]).repeat(4, 1)
    top.update(logits, torch.tensor([0, 4, 5, 1]))
    assert top.compute() == {"top1": 25.0, "top5": 75.0, "macro_top1": 25.0, "num_samples": 4}
    assert top.class_counts.tolist() == [1, 1, 0, 0, 1, 1, 0]
    top.update(logits, torch.tensor([0, 0, 0, 4]))
    assert top.class_hits.tolist() == [4, 0, 0, 0, 0, 0, 0]
    assert top.compute() == {"top1": 50.0, "top5": 87.5, "macro_top1": 25.0, "num_samples": 8}
