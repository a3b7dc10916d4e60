"""Batch norms over the batches of all ranks: nothing else of a network changes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils._python_dispatch import TorchDispatchMode

from in21k.models import create_model, list_models
from in21k.models.zoo import input_size_of, synchronize_batch_norms
from in21k.training import TrainSettings
from in21k.training.distributed import Ranks
from in21k.training.loop import Trainer

# The smallest network with batch norms of each of timm's families that has one, and ours.
FAMILIES = """
    cs3darknet_focus_s cspnext_tiny cpubone_nano dla46x_c dpn48b efficientformer_l1 efficientformerv2_s0 efficientvim_m1
    efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 ghostnet_050 hardcorenas_b hgnetv2_b0
    hrnet_w18_small iformer_t inception_next_atto lcnetv2_small legacy_seresnet18 levit_128s lowformer_b0
    mobilenetv3_small_050 mobilevit_xxs ofa_flops_595m_s regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d
    resnetv2_18 rexnet_100 selecsls42 shvit_s1 skresnet18 starnet_s050 swiftformer_xs test_byobnet test_coatnet
    test_efficientnet test_resnet tiny_vit_5m_224 tresnet_m visformer_tiny volo_d1_224 xcit_nano_12_p8_224
"""
LARGE_FAMILIES = """
    convmixer_768_32 densenet121 halonet_h1 inception_resnet_v2 inception_v3 inception_v4 legacy_xception nasnetalarge
    nextvit_small pnasnet5large vgg11_bn vit_small_resnet50d_s16_224 xception41p
"""
ALL_FAMILIES = [
    *FAMILIES.split(),
    *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE_FAMILIES.split()),
]


class CountOperations(TorchDispatchMode):
    """Counts what is computed, by torch's names of its operations: activations, norms, convolutions and all others."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def randomise_norms(model: nn.Module) -> None:
    """Give weights and biases of norms, and running statistics, values that hide nothing (some begin at zero)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.ndim <= 1 and tensor.is_floating_point():
                if name.endswith(("weight", "running_var")):
                    tensor.uniform_(0.5, 1.5, generator=generator)
                else:
                    tensor.normal_(0, 0.1, generator=generator)


@torch.no_grad()
def answer(model: nn.Module, images: Tensor) -> tuple[Tensor, Counter[str]]:
    with CountOperations() as operations:
        logits: Tensor = model(images)
    return logits, operations.counts


@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_a_network_computes_the_same_with_synchronised_batch_norms(name: str) -> None:
    if name not in list_models():
        pytest.skip(f"this timm has no {name}")
    torch.manual_seed(0)
    model = create_model(name, num_classes=10).eval()
    randomise_norms(model)
    synchronised = synchronize_batch_norms(copy.deepcopy(model))
    norms = [module for module in synchronised.modules() if isinstance(module, _BatchNorm)]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    images = torch.randn(2, *input_size_of(name), generator=torch.Generator().manual_seed(1))
    (logits, counts), (wanted, wanted_counts) = answer(synchronised, images), answer(model, images)
    assert counts == wanted_counts
    assert torch.equal(logits, wanted)
    assert wanted.std() > 0.01  # or equal outputs would say little


def test_a_trainer_of_several_ranks_computes_every_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tensors without content stand for a GPU, as these norms train nowhere else; and there is no second rank here.
    monkeypatch.setattr("in21k.training.loop._network", lambda model, *_: (None, model))
    device = torch.device("meta")
    images = torch.zeros(2, 3, 64, 64, device=device)
    model = create_model("regnetx_002", num_classes=10)
    _, wanted = answer(copy.deepcopy(model).to(device).eval(), images)
    settings = TrainSettings(model="regnetx_002", sync_bn=True)
    trainer = Trainer(model, nn.CrossEntropyLoss(), settings, Ranks(0, 2, device))
    _, counts = answer(trainer.model.eval(), images)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in trainer.model.modules())
    assert counts["aten.relu_.default"] == wanted["aten.relu_.default"] > 0
