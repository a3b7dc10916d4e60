"""Teachers: where they come from, what they see, and the test that they pass before they teach."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from in21k.models import create_model, label_space_of
from in21k.models.export import save_weights, timm_config
from in21k.shards.tree import SemanticTree
from in21k.training import Teacher, TrainSettings, evaluate, load_teacher
from in21k.training.distill import SelfTest, self_test
from in21k.training.distributed import join_ranks
from in21k.training.metrics import commonest
from in21k.training.runs.checkpoint import save_checkpoint, tree_content
from in21k.training.runs.run_folder import run_config

CPU = torch.device("cpu")
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
VIT = {"depth": 1, "embed_dim": 8, "num_heads": 1}
WNIDS = ["n4", "n9", "n0", "n3", "n1", "n2", "n5"]  # of the run below: the tree's and one more, in another order


@pytest.fixture
def other_tree() -> SemanticTree:
    """The classes of a teacher that knows more than the data set has."""
    return SemanticTree.from_parents(WNIDS, [f"class {wnid}" for wnid in WNIDS], [2, -1, -1, 4, -1, 4, 5])


def write_run(folder: Path, tree: SemanticTree, **settings: Any) -> nn.Module:
    """Write what a finished run leaves (weights as they came), and return its network."""
    torch.manual_seed(3)
    chosen = TrainSettings(**{"model": "resnet10t", "image_size": 32, **settings})
    model = create_model(chosen.model, num_classes=len(tree), **chosen.model_args).eval()
    folder.mkdir()
    config = run_config(chosen, {}, world_size=1)
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (folder / "metrics.json").write_text("{}")
    tree.save(folder / "tree.json")
    save_weights(model, folder / "model.safetensors")
    exported = timm_config(
        model,
        architecture=chosen.model,
        model_args=chosen.model_args,
        image_size=32,
        normalize=chosen.normalize,
        wnids=tree.wnids,
        names=tree.names,
        crop_pct=None,
    )
    (folder / "config.json").write_text(json.dumps(exported))
    return model


def as_exported(folder: Path) -> Path:
    """Leave of a run's folder what timm opens."""
    for name in ("config.yaml", "metrics.json", "tree.json"):
        (folder / name).unlink()
    return folder


def settings_of(teacher: object, **others: Any) -> TrainSettings:
    return TrainSettings(**{"teacher": str(teacher), "image_size": 32, **others})


def test_a_run_teaches_the_classes_of_the_data_set_by_their_wnids(
    tmp_path: Path, tree: SemanticTree, other_tree: SemanticTree
) -> None:
    model = write_run(tmp_path / "run", other_tree)
    images = torch.rand(3, 3, 32, 32)
    teacher = load_teacher(settings_of(tmp_path / "run"), tree, CPU)
    outputs = [WNIDS.index(wnid) for wnid in tree.wnids]
    torch.testing.assert_close(teacher(images), model(images)[:, outputs])
    as_exported(tmp_path / "run")
    for name in (tmp_path / "run", f"local-dir:{tmp_path / 'run'}"):
        opened = load_teacher(settings_of(name), tree, CPU)
        assert torch.equal(opened(images), teacher(images))
        assert opened.fingerprint == teacher.fingerprint  # the same teacher, wherever it lies


def test_a_checkpoint_teaches_by_the_moving_average_of_its_weights_where_it_has_one(
    tmp_path: Path, tree: SemanticTree
) -> None:
    images = torch.rand(2, 3, 32, 32)
    last, averaged = (create_model("resnet10t", num_classes=6).eval() for _ in range(2))
    chosen = TrainSettings(model="resnet10t", image_size=32)
    for ema, expected in ((None, last), (0.9, averaged)):
        content = {
            "position": {"epoch": 1, "step": 1, "best": None, "best_epoch": None, "validation": None},
            "optimizer": {"state": {}, "param_groups": []},
            "scaler": {},
            "loader": None,
            "model": last.state_dict(),
            "ema": averaged.state_dict() if ema else None,
            "tree": tree_content(tree),
            "config": run_config(replace(chosen, ema=ema), {}, world_size=1),
        }
        save_checkpoint(tmp_path / "moved.pt", content)
        teacher = load_teacher(settings_of(tmp_path / "moved.pt"), tree, CPU)
        with torch.no_grad():
            torch.testing.assert_close(teacher(images), expected(images))


def test_a_timm_teacher_of_a_known_label_space_answers_by_wnid(tmp_path: Path) -> None:
    """Where its configuration names no classes, their number tells."""
    folder = tmp_path / "timm"
    space = label_space_of(11_221)
    chosen = [7, 11_000, 42]
    wnids = [space.wnids[index] for index in chosen]
    tree = SemanticTree.from_parents(wnids, wnids, [-1, -1, -1])
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=11_221, img_size=32, **VIT).eval()
    config = {"num_classes": 11_221, "input_size": [3, 32, 32], "mean": UNIT[0], "std": UNIT[1], "classifier": "head"}
    folder.mkdir()
    save_weights(model, folder / "model.safetensors")
    architecture = {"architecture": "vit_tiny_patch16_224", "model_args": {**VIT, "img_size": 32}}
    (folder / "config.json").write_text(json.dumps({**architecture, "pretrained_cfg": config}))
    images = torch.rand(2, 3, 32, 32)
    teacher = load_teacher(settings_of(folder), tree, CPU)
    torch.testing.assert_close(teacher(images), model(images)[:, chosen])


def test_a_teacher_that_lacks_classes_is_refused_with_their_number(
    tmp_path: Path, tree: SemanticTree, other_tree: SemanticTree
) -> None:
    write_run(tmp_path / "run", tree)
    larger = SemanticTree.from_parents([*tree.wnids, "n7", "n8"], [*tree.names, "x", "y"], [*tree.parents, -1, -1])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"teacher .*run: .*\(6 classes\) lacks 2 of the data set's 8 \(n7, n8\)"):
            load_teacher(settings_of(tmp_path / "run"), larger, CPU)
        if (tmp_path / "run" / "config.yaml").exists():
            as_exported(tmp_path / "run")


def test_published_weights_of_other_classes_are_refused_before_they_travel(
    monkeypatch: pytest.MonkeyPatch, tree: SemanticTree
) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("the weights were asked for"))
    with pytest.raises(
        ValueError,
        match=r"in1k \(1,000 classes\) lacks 6 of .*; of its architecture these .*: vit_tiny_patch16_224\.aug",
    ):
        load_teacher(settings_of("vit_tiny_patch16_224.augreg_in21k_ft_in1k"), tree, CPU)
    with pytest.raises(ValueError, match=r"no label space of 115,217 classes is known"):
        load_teacher(settings_of("vit_base_patch16_224.bamboo"), tree, CPU)
    with pytest.raises(ValueError, match=r"no label space of 0 classes is known"):
        load_teacher(settings_of("vit_small_patch14_dinov2.lvd142m"), tree, CPU)


def test_weights_that_cannot_be_fetched_are_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tree: SemanticTree
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    published = label_space_of(11_221).wnids[:2]
    small = SemanticTree.from_parents(published, published, [-1, -1])
    for name in ("mobilenetv3_large_100.miil_in21k", "hf-hub:nobody/nothing"):
        with pytest.raises(ValueError, match=rf"teacher {name}: timm cannot open it \(.*[Hh]ub") as refusal:
            load_teacher(settings_of(name), small, CPU)
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"timm cannot open it .*tag"):
        load_teacher(settings_of("vit_tiny_patch16_224.nonsense"), tree, CPU)


def test_what_is_no_teacher_is_refused_with_what_was_looked_for(tmp_path: Path, tree: SemanticTree) -> None:
    with pytest.raises(ValueError, match=r"teacher resnet51: .*wanted a run's folder.*of timm; nearest: .*resnet50"):
        load_teacher(settings_of("resnet51"), tree, CPU)
    with pytest.raises(ValueError, match=r"teacher /.*: no run .*no config\.yaml.*no config\.json"):
        load_teacher(settings_of(tmp_path), tree, CPU)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=r"teacher /.*foreign\.pth: its keys fit none of the zoo"):
        load_teacher(settings_of(tmp_path / "foreign.pth"), tree, CPU)
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(ValueError, match=r"teacher /.*weights\.safetensors: not readable as weights"):
        load_teacher(settings_of(tmp_path / "weights.safetensors"), tree, CPU)


@pytest.mark.parametrize("its", ["unit", "imagenet", "halves"])
@pytest.mark.parametrize("students", ["unit", "imagenet", "halves"])
def test_the_teacher_sees_the_pixels_of_the_student_in_its_own_normalisation(
    tmp_path: Path, tree: SemanticTree, its: str, students: str
) -> None:
    of = {"unit": UNIT, "imagenet": IMAGENET, "halves": ((0.5,) * 3, (0.5,) * 3)}
    model = write_run(tmp_path / "run", tree, normalize=[0.5, 0.5] if its == "halves" else its)
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(item).view(1, 3, 1, 1) for item in of[students])
    seen = (pixels - mean) / std
    mean, std = (torch.tensor(item).view(1, 3, 1, 1) for item in of[its])
    expected = model((pixels - mean) / std)
    chosen = [0.5, 0.5] if students == "halves" else students
    as_run = load_teacher(settings_of(tmp_path / "run", normalize=chosen), tree, CPU)
    as_timm = load_teacher(settings_of(as_exported(tmp_path / "run"), normalize=chosen), tree, CPU)
    for teacher in (as_run, as_timm):
        torch.testing.assert_close(teacher(seen), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(teacher(seen.double()), expected, rtol=1e-4, atol=1e-5)
        laid_out = seen.to(memory_format=torch.channels_last)
        torch.testing.assert_close(teacher(laid_out), expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_has_its_own_image_size_where_asked(tmp_path: Path, tree: SemanticTree) -> None:
    model = write_run(tmp_path / "run", tree)
    images = torch.rand(2, 3, 32, 32)
    for size in (48, 20):
        teacher = load_teacher(settings_of(tmp_path / "run", teacher_size=size, channels_last=True), tree, CPU)
        resized = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        torch.testing.assert_close(teacher(images), model(resized), rtol=1e-4, atol=1e-5)


def test_a_teacher_of_one_size_refuses_others_with_the_way_out(tmp_path: Path, tree: SemanticTree) -> None:
    write_run(tmp_path / "run", tree, model="vit_tiny_patch16_224", model_args={**VIT, "img_size": 32})
    settings = settings_of(tmp_path / "run", image_size=48)
    with pytest.raises(
        ValueError, match=r"takes no images of 48 x 48 pixels \(.*\); .* 32 x 32 \(--set teacher_size=32"
    ):
        load_teacher(settings, tree, CPU)
    teacher = load_teacher(replace(settings, teacher_size=32), tree, CPU)
    assert teacher(torch.rand(2, 3, 48, 48)).shape == (2, 6)


def test_a_teacher_never_trains_and_its_logits_go_into_a_graph(tmp_path: Path, tree: SemanticTree) -> None:
    write_run(tmp_path / "run", tree)
    before = torch.get_rng_state()
    teacher = load_teacher(settings_of(tmp_path / "run"), tree, CPU)
    assert torch.equal(before, torch.get_rng_state())  # the student's weights do not depend on its teacher
    weights = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        rough = teacher(images)
    taught = teacher(images)
    for logits in (rough, taught):
        assert (logits.dtype, logits.requires_grad, logits.is_inference()) == (torch.float32, False, False)
    assert not torch.equal(rough, taught)  # it computes in the caller's precision
    torch.testing.assert_close(rough, taught, rtol=0.1, atol=0.1)
    student = torch.randn(2, 6, requires_grad=True)
    (student.softmax(1) - taught.softmax(1)).square().sum().backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert all(torch.equal(tensor, weights[name]) for name, tensor in teacher.state_dict().items())


def test_a_compiled_teacher_gives_the_same_logits(
    tmp_path: Path, tree: SemanticTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", tree)
    backends: list[Any] = []
    compile_module = nn.Module.compile

    def compile_quickly(module: nn.Module, **others: Any) -> None:
        backends.append(module)
        compile_module(module, backend="eager", **others)  # graphs without the C++ compiler, which takes a minute

    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    images = torch.rand(2, 3, 32, 32)
    plain = load_teacher(settings_of(tmp_path / "run"), tree, CPU)
    compiled = load_teacher(settings_of(tmp_path / "run", compile=True), tree, CPU)
    assert backends == [compiled.network]
    torch.testing.assert_close(compiled(images), plain(images))
    assert not compiled(images).is_inference()
    assert compiled.fingerprint == plain.fingerprint


def test_the_fingerprint_tells_teachers_apart(tmp_path: Path, tree: SemanticTree, other_tree: SemanticTree) -> None:
    write_run(tmp_path / "a", tree)
    prints = {load_teacher(settings_of(tmp_path / "a"), tree, CPU).fingerprint}
    write_run(tmp_path / "other normalisation", tree, normalize="imagenet")
    write_run(tmp_path / "other classes", other_tree)
    content = create_model("resnet10t", num_classes=6)
    with torch.no_grad():
        content.get_parameter("conv1.0.weight")[0, 0, 0, 0] += 1e-6
    as_exported(Path(tmp_path / "a"))
    save_weights(content, tmp_path / "a" / "model.safetensors")
    for name in ("a", "other normalisation", "other classes"):
        prints.add(load_teacher(settings_of(tmp_path / name), tree, CPU).fingerprint)
    assert len(prints) == 4
    assert all(len(bytes.fromhex(item)) == 8 for item in prints)


class Oracle(nn.Module):
    """Answers for the class that the images' first pixel names; `wrong` says what it takes for what."""

    def __init__(self, tree: SemanticTree, wrong: dict[int, int] | None = None) -> None:
        super().__init__()
        rows = torch.zeros(len(tree), len(tree))
        for index, path in enumerate(tree.paths):
            rows[index, list(path)] = 1
        self.register_buffer("rows", rows[[(wrong or {}).get(index, index) for index in range(len(tree))]])

    def forward(self, images: Tensor) -> Tensor:
        seen = (images[:, 0, 0, 0] * 10).round().clamp(0, len(self.rows) - 1)
        return self.rows[seen.long()]


def teacher_of(network: nn.Module, **others: Any) -> Teacher:
    given = {"name": "oracle", "outputs": torch.arange(6), "mean_std": UNIT, "student_mean_std": UNIT, **others}
    return Teacher(network, **given)


class LabelledLoader:
    """Images that show what `batches` say, labelled so, and the place that real loaders have."""

    def __init__(self, *batches: list[int]) -> None:
        self.batches, self.labels, self.consumed = batches, batches, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self.consumed < len(self.batches):
            shown, labels = (torch.tensor(item[self.consumed]).long() for item in (self.batches, self.labels))
            self.consumed += 1
            yield (shown / 10).view(-1, 1, 1, 1).expand(-1, 3, 4, 4), labels
        self.consumed = 0

    def state_dict(self) -> dict[str, int]:
        return {"samples": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.consumed = state["samples"]


class Stream(LabelledLoader):
    """A loader without a place, which begins anew each time."""

    def state_dict(self) -> dict[str, int]:
        raise ValueError("a stream has no place")


def many_labels(count: int, seed: int = 0) -> list[int]:
    return torch.randint(6, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_the_self_test_counts_what_validation_counts(tree: SemanticTree) -> None:
    labels = many_labels(90)
    loader = LabelledLoader(labels[:40], [], labels[40:41], labels[41:])
    teacher = teacher_of(Oracle(tree, wrong={0: 4, 2: 5, 5: 3}))
    result = self_test(teacher, loader, tree, split="training")
    loader.consumed = 0
    whole = evaluate(teacher, loader, tree)
    assert result.num_images == 90
    assert result.semantic_top1 == pytest.approx(whole["semantic_top1"])
    assert result.commonest == pytest.approx(whole["semantic_top1_commonest"])
    assert str(result) == (
        f"teacher oracle: semantic top-1 {whole['semantic_top1']:.1f} % on 90 training images "
        f"(always the commonest answer: {100 * commonest(tree, torch.bincount(torch.tensor(labels))):.1f} %)"
    )
    assert result.kappa == pytest.approx(slow_kappa(tree, teacher, labels))


def slow_kappa(tree: SemanticTree, teacher: Teacher, labels: list[int]) -> float:
    """(p_o - p_e) / (1 - p_e), the frequencies pooled over levels, each level with its own chance."""
    pairs: dict[int, list[tuple[int, int]]] = {}
    for label in labels:
        logits = teacher(torch.full((1, 3, 4, 4), label / 10))[0].tolist()
        for level, classes in enumerate(tree.classes_by_level):
            path = tree.paths[label]
            if len(classes) > 1 and len(path) > level:
                answer = max(classes, key=lambda index: logits[index])
                pairs.setdefault(level, []).append((answer, path[len(path) - 1 - level]))
    total = sum(len(pair) for pair in pairs.values())
    observed = sum(answer == target for pair in pairs.values() for answer, target in pair) / total
    expected = 0.0
    for pair in pairs.values():
        answers, targets = zip(*pair, strict=True)
        shares = [answers.count(index) / len(pair) * targets.count(index) / len(pair) for index in set(targets)]
        expected += sum(shares) * len(pair) / total
    return (observed - expected) / (1 - expected)


def test_the_self_test_takes_as_many_images_as_asked_and_leaves_the_loader_where_it_was(tree: SemanticTree) -> None:
    loader = LabelledLoader(*[many_labels(100, seed) for seed in range(8)])
    loader.consumed = 1
    assert self_test(teacher_of(Oracle(tree)), loader, tree).num_images == 512
    assert loader.consumed == 1
    stream = Stream(many_labels(7))
    assert self_test(teacher_of(Oracle(tree)), stream, tree, num_images=5).num_images == 5


@pytest.mark.parametrize(
    "teacher",
    [
        pytest.param(lambda tree: teacher_of(Oracle(tree), outputs=torch.arange(6).roll(1)), id="classes shifted"),
        pytest.param(lambda tree: teacher_of(Oracle(tree), mean_std=IMAGENET), id="normalisation"),
        pytest.param(lambda tree: teacher_of(Oracle(tree, wrong=dict.fromkeys(range(6), 3))), id="always the same"),
    ],
)
def test_a_teacher_at_chance_is_refused_with_what_to_check(
    tree: SemanticTree, teacher: Callable[[SemanticTree], Teacher]
) -> None:
    loader = LabelledLoader(many_labels(512))
    with pytest.raises(
        ValueError,
        match=r"oracle: semantic top-1 .* on 512 validation images .*at chance \(kappa -?0\.\d\d.*label space",
    ):
        self_test(teacher(tree), loader, tree)
    assert loader.consumed == 0


def test_a_teacher_that_knows_rare_classes_is_above_chance_also_below_always_the_commonest(tree: SemanticTree) -> None:
    loader = LabelledLoader([0] * 440 + [2] * 72)
    loader.labels = ([0] * 480 + [2] * 32,)  # it finds all 32 trees, and takes 40 swans for trees
    result = self_test(teacher_of(Oracle(tree)), loader, tree)
    assert result.semantic_top1 < result.commonest
    assert result.kappa > 0.5
    one_class = self_test(teacher_of(Oracle(tree)), LabelledLoader([0] * 9), tree)
    assert (one_class.semantic_top1, one_class.commonest, one_class.kappa) == (100, 100, 1)


def test_a_self_test_without_images_is_refused(tree: SemanticTree) -> None:
    with pytest.raises(ValueError, match="no validation image"):
        self_test(teacher_of(Oracle(tree)), LabelledLoader([]), tree)


def run_rank(rank: int, port: int, tree: SemanticTree, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    labels = many_labels(90)
    mine = [labels[:30], labels[30:60]] if rank == 0 else [labels[60:], []]
    with join_ranks("cpu") as ranks:
        result = self_test(
            teacher_of(Oracle(tree, wrong={0: 4})),
            LabelledLoader(*mine),
            tree,
            ranks=ranks,
            num_images=91,
        )
    (folder / f"{rank}.json").write_text(json.dumps(asdict(result)))


def test_two_ranks_get_the_result_of_their_images_together(tree: SemanticTree, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = multiprocessing.get_context("fork")
    ranks = [started.Process(target=run_rank, args=(rank, port, tree, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    labels = many_labels(90)
    # The first rank takes 45 of its 60, the other all 30 that it has of its 46.
    together = LabelledLoader(labels[:45] + labels[60:])
    expected = self_test(teacher_of(Oracle(tree, wrong={0: 4})), together, tree)
    assert expected.num_images == 75
    for rank in range(2):
        assert SelfTest(**json.loads((tmp_path / f"{rank}.json").read_text())) == expected
