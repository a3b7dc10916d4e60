"""ImageNet-1K by a head that learnt ImageNet-21K."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from in21k.models import label_space_of
from in21k.training.evaluation.imagenet1k import evaluate_imagenet1k, shared_with_imagenet1k


class Echo(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images


@pytest.mark.parametrize(("num_classes", "num_shared"), [(11_221, 991), (10_450, 991), (11_821, 993), (1_000, 1_000)])
def test_published_label_spaces_share_nearly_all_of_imagenet1k(num_classes: int, num_shared: int) -> None:
    wnids = label_space_of(num_classes).wnids
    shared = shared_with_imagenet1k(wnids)
    assert (len(shared.wnids), len(shared.lacking)) == (num_shared, 1_000 - num_shared)
    assert tuple(wnids[output] for output in shared.outputs.tolist()) == shared.wnids
    assert {*shared.wnids, *shared.lacking} == {*label_space_of(1_000).wnids}


def test_the_answer_is_the_likeliest_shared_class_and_other_images_are_left_out() -> None:
    wnids = ["n00015388", "n01443537", "n01440764", "n01484850"]  # animal, goldfish, tench, great white shark
    shared = shared_with_imagenet1k(wnids)
    assert shared.wnids == ("n01440764", "n01443537", "n01484850")
    assert shared.outputs.tolist() == [2, 1, 3]
    labels = shared.labels_of(["n01443537", "n01440764", "n09999999", "n01484850"])
    assert labels.tolist() == [1, 0, -1, 2]
    logits = torch.tensor([[9.0, 2, 1, 0], [9, 2, 1, 0], [9, 0, 0, 5], [9, 0, 1, 2]])[:, shared.outputs]
    result = evaluate_imagenet1k(Echo(), [(logits[:1], labels[:1]), (logits[1:], labels[1:])], shared)
    assert result["top1"] == pytest.approx(200 / 3)
    assert (result["top5"], result["num_samples"], result["num_left_out"]) == (100, 3, 1)
    assert (result["num_classes"], result["num_imagenet1k_classes"], len(result["lacking"])) == (3, 1000, 997)


def test_nothing_to_share_is_refused() -> None:
    with pytest.raises(ValueError, match="1 classes and ImageNet-1K's share none"):
        shared_with_imagenet1k(["n00015388"])
    shared = shared_with_imagenet1k(["n01440764"])
    with pytest.raises(ValueError, match="no image is of a class"):
        evaluate_imagenet1k(Echo(), [(torch.zeros(2, 1), torch.tensor([-1, -1]))], shared)
