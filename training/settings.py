"""The settings of a training run: what they mean, and what they may be."""

from __future__ import annotations

import ast
import difflib
import inspect
import keyword
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Union, cast, get_args, get_origin, get_type_hints

from ..datapipe.settings import LoaderSettings
from ..shards.normalize import mean_std, short_normalize
from .losses.registry import LOSSES
from .metric_names import MULTI_LABEL, SINGLE_LABEL

TRACKERS = ("tensorboard", "wandb", "mlflow")
BINARY_LOSSES = tuple(name for name, loss in LOSSES.items() if loss.binary)  # a yes or no for each class
_INFINITE = float("inf")
# Whole numbers from 1 on. Beyond these a number is a slip of the finger.
_MOST = {
    **dict.fromkeys(("accumulate", "epochs", "validate_every_epochs", "keep_last", "patience"), 1_000_000),
    **dict.fromkeys(("max_steps", "save_every_steps", "log_every_steps", "base_batch"), 10**12),
    "teacher_size": 8192,
}
# Of other settings: which, what holds for a value that is not None, and that in words.
_RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("lr", "clip_grad", "kd_temperature"), lambda value: 0 < value < _INFINITE, "more than 0"),
    (
        ("weight_decay", "kd_weight", "asl_gamma_positive", "asl_gamma_negative"),
        lambda value: 0 <= value < _INFINITE,
        "at least 0",
    ),
    (
        ("label_smoothing", "momentum", "asl_margin"),
        lambda value: 0 <= value < 1,
        "at least 0 and less than 1",
    ),
    (("ema",), lambda value: 0 < value < 1, "more than 0 and less than 1, or off"),
    (("layer_decay", "gamma"), lambda value: 0 < value <= 1, "more than 0 and at most 1"),
    (("mixup", "cutmix"), lambda value: 0 <= value <= 1, "0 to 1"),
    (("warmup",), lambda value: 0 <= value <= 1, "a share of the steps, 0 to 1"),
    (
        ("milestones",),
        lambda value: bool(value) and all(0 < share < 1 for share in value) and sorted(set(value)) == value,
        "shares of the steps between 0 and 1, in rising order",
    ),
    (
        ("trackers",),
        lambda value: set(value) <= set(TRACKERS) and len(set(value)) == len(value),
        f"a list of some of {', '.join(TRACKERS)}",
    ),
    (
        ("model_args",),
        lambda value: not value.keys() & {"num_classes", "in_chans"},
        "neither num_classes nor in_chans, which come from the data",
    ),
    (
        ("best_by",),
        lambda value: value in (*SINGLE_LABEL, *MULTI_LABEL),
        "one of " + ", ".join((*SINGLE_LABEL, *MULTI_LABEL)),
    ),
)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(LoaderSettings):
    """Everything that shapes a training run beside the data; raises ValueError for a value that makes no sense."""

    way_out: ClassVar[str] = " (--set {name}=...)"

    model: str = "resnet50"
    """A timm architecture, or one of ours (`in21k models`)."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """What else the architecture takes, as {drop_path_rate: 0.1}."""
    init: str | None = None
    """Weights to begin with: a run's or an export's folder, a checkpoint of a run, a file of weights (see
    `in21k.models.load_weights`), or a timm model with pretrained weights; None: random weights."""
    init_head: Literal["drop", "slice"] = "drop"
    """The head of `init`, where it has other classes: left out; or each class gets its own row of it, by wnid."""
    loss: str = "semantic"
    """Semantic softmax over the tree, one softmax over all classes, or a binary cross-entropy for each class; images of
    several labels take `bce` or `asymmetric`."""
    init_partial: bool = False
    """Take weights of `init` that hardly fit, too: that fill under 90 % of the network, or of which it takes under
    90 %, heads aside."""
    asl_gamma_positive: float = 0.0
    """Of `asymmetric`: the power that makes present labels count little where they are right already, 0 or more."""
    asl_gamma_negative: float = 4.0
    """Of `asymmetric`: the same of absent labels."""
    asl_margin: float = 0.05
    """Of `asymmetric`: absent labels of a lower probability do not count at all, 0 <= x < 1."""
    label_smoothing: float = 0.2
    """The share of the target that is spread evenly over the classes, 0 <= x < 1."""
    teacher: str | None = None
    """Who is distilled: a run's or an export's folder, a checkpoint of a run, or a timm model with pretrained weights;
    None: nobody."""
    teacher_size: int | None = None
    """Side in pixels of the images that the teacher sees, resized from the student's; None: those as they are."""
    kd_weight: float = 30.0
    """The weight of the distillation loss beside the loss of the labels; measured, see `benchmarks/distill.py`."""
    kd_reduction: Literal["mean", "sum"] = "mean"
    """Of the semantic distillation loss over the batch; the paper's code has the sum, which grows with the batch."""
    kd_temperature: float | None = None
    """None: semantic distillation over the tree. A number: plain distillation of all logits at this temperature."""
    mixup: float = 0.0
    """Alpha of mixup's Beta distribution, 0 (off) to 1."""
    cutmix: float = 0.0
    """Alpha of cutmix's; where both are on, each has every second batch, by chance."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    epochs: int = 80
    """How often every image is seen."""
    max_steps: int | None = None
    """Stop after this many steps, if that comes before `epochs`; the schedule then spans these."""
    optimizer: str = "adam"
    """`adam` has its weight decay in the gradient (L2), `adamw` apart from it; `sgd`; or another of timm's (`lamb`,
    `lion`, `lookahead_adam`, ...)."""
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    """What else the optimizer takes, as {betas: [0.9, 0.98]} or {nesterov: true}."""
    lr: float = 3e-4
    """The peak learning rate."""
    auto_scale_lr: bool = False
    """Multiply lr by (the real global batch) / base_batch."""
    base_batch: int | None = None
    """The global batch that lr is meant for."""
    momentum: float = 0.9
    """Momentum of `sgd` and its kin."""
    weight_decay: float = 0.0
    """Applies to tensors of more than one dimension only, less those that the model excepts (positions, as a rule)."""
    layer_decay: float | None = None
    """The learning rate of each layer is this share of that of the layer above it, 0 < x <= 1; None: all alike."""
    schedule: Literal["one-cycle", "cosine", "multi-step", "constant"] = "one-cycle"
    """`one-cycle`: from lr/20 up to lr and down to nearly 0, both along a cosine. The others climb from lr/10 in a
    straight line for `warmup`; then `cosine` falls to 0 along half a period, `multi-step` by `gamma` at each of
    `milestones`, and `constant` stays."""
    warmup: float = 0.1
    """The share of all steps on which the learning rate climbs, 0 <= x <= 1."""
    milestones: list[float] = field(default_factory=lambda: [0.3, 0.6, 0.9])
    """Of `multi-step`: shares of all steps, 0 < x < 1, in rising order."""
    gamma: float = 0.1
    """Of `multi-step`: what the learning rate is multiplied by at each milestone."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Mixed precision; `auto`: off on a CPU, bf16 on a GPU."""
    compile: bool = False
    """Compile network and teacher with torch.compile."""
    ema: float | None = None
    """The decay of an exponential moving average of the weights, 0 < x < 1. After step t (1..) the average is
    d * average + (1 - d) * weights with d = min(ema, 1 - t^(-2/3)), logged as `ema_decay`: it begins as the weights of
    step 1, and reaches 0.999 at step 31,623 and 0.9999 at step 1,000,000 (the warm-up of timm's ModelEmaV3). It is
    validated beside the weights, and `best` is its best; None: off."""
    clip_grad: float | None = None
    """The largest norm of the whole gradient; None: not clipped."""
    sync_bn: bool = False
    """Batch norm over the batches of all ranks."""
    grad_checkpointing: bool = False
    """Compute activations a second time in the backward pass instead of keeping them."""
    save_every_steps: int | None = None
    """Save `last` also after every so many steps; None: after each epoch, and at a signal. Shapes no result."""
    keep_last: int = 1
    """How many of the last checkpoints stay. Shapes no result."""
    log_every_steps: int | None = None
    """How many steps' losses are read from the device at once; None: 10 on a GPU, 1 on a CPU. Shapes no result."""
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Who is told beside log.jsonl: `tensorboard`, `wandb`, `mlflow`. Shapes no result."""
    validate_every_epochs: int = 1
    """Validate after every so many epochs, and after the last."""
    best_by: str | None = None
    """The metric of validation that chooses `best`: semantic_top1, top1, top5 or macro_top1; of several labels map, cp,
    cr, cf1, op, or, of1. None: semantic_top1, or map."""
    patience: int | None = None
    """End the run at the first validation that is so many epochs, or more, after that of the best; None: never. The
    schedule spans all epochs all the same."""
    deterministic: bool = False
    """Use only algorithms that give the same bits each time; slower on a GPU."""

    def __post_init__(self) -> None:
        try:  # one form of equal numbers, so that they are not different settings
            object.__setattr__(self, "normalize", short_normalize(mean_std(self.normalize)))
        except ValueError as error:
            raise ValueError(f"{error}{self.way_out.format(name='normalize')}") from error
        super().__post_init__()
        if self.loss not in LOSSES:
            raise self.refusal("loss", f"one of {', '.join(LOSSES)}")
        for name, hint in setting_kinds().items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise self.refusal(name, "one of " + ", ".join(get_args(hint)))
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise self.refusal(name, "1 or more" if value < 1 else f"at most {most:,}")
        for names, holds, words in _RULES:
            for name in names:
                if getattr(self, name) is not None and not holds(getattr(self, name)):
                    raise self.refusal(name, words)
        for name in ("model_args", "optimizer_args"):
            _check_arguments(name, getattr(self, name))
        _check_optimizer(self.optimizer)
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Raise ValueError where a setting lacks the one that it leans on."""
        streams = self.backend == "webdataset"
        if self.auto_scale_lr and self.base_batch is None:
            raise ValueError("auto_scale_lr needs the global batch that lr is meant for; give --set base_batch=...")
        if self.teacher_size is not None and self.teacher is None:
            raise ValueError(
                f"teacher_size is {self.teacher_size} and no teacher is set; give --teacher, or leave it out"
            )
        if streams and self.epoch_samples is None:
            raise ValueError(
                "backend webdataset cannot count its images; say what an epoch is, --set epoch_samples=..."
            )
        if not streams and self.epoch_samples is not None:
            raise ValueError(
                f"epoch_samples is {self.epoch_samples} and goes with backend webdataset alone; backend {self.backend} "
                "counts its images, so leave it out, or give --set max_steps=... for a shorter run"
            )


def setting_kinds(settings: type[LoaderSettings] = TrainSettings) -> dict[str, Any]:
    """Return the kind of every setting as a type hint, in the order in which they are declared."""
    hints = get_type_hints(settings)
    return {declared.name: hints[declared.name] for declared in fields(settings)}


def setting_meanings() -> dict[str, str]:
    """Return what every setting of a training means, on one line: the text below its declaration."""
    return _meanings_in(LoaderSettings) | _meanings_in(TrainSettings)


def _meanings_in(settings: type) -> dict[str, str]:
    (declared,) = ast.parse(inspect.getsource(settings)).body
    assert isinstance(declared, ast.ClassDef)
    names = {field.name for field in fields(settings)}
    meanings: dict[str, str] = {}
    for statement, below in zip(declared.body, declared.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if statement.target.id not in names:
                continue  # of the class
            assert isinstance(below, ast.Expr)
            assert isinstance(below.value, ast.Constant)
            meanings[statement.target.id] = " ".join(str(below.value.value).split())
    return meanings


def known_settings(
    values: Mapping[str, object],
    where: str,
    also: Sequence[str] = (),
    *,
    declared: type[LoaderSettings] = TrainSettings,
) -> dict[str, Any]:
    """Return settings as given in YAML, each of its own kind; ValueError for an unknown one and for another kind.

    also:     other names that are allowed there, and that an unknown name may mean.
    declared: the class that declares them.
    """
    kinds = setting_kinds(declared)
    for name in values:
        if name not in kinds:
            raise ValueError(f"{where}: unknown setting {name!r}{nearest(name, [*kinds, *also])}")
    return {name: _convert(name, value, kinds[name]) for name, value in values.items()}


def _convert(name: str, value: object, hint: Any) -> Any:
    """Make of a YAML value one of the setting's kind (None where it may be); raises ValueError where it is none."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kind = get_origin(kinds[0]) or kinds[0]
    if any(get_origin(other) is Sequence for other in kinds[1:]):
        return value  # `normalize`, a name or numbers, which the settings check
    if kind is Literal:
        # YAML 1.1 reads a bare `off` as False.
        return "off" if value is False and "off" in get_args(kinds[0]) else value
    if type(None) in kinds and (value is None or value is False):
        return None
    if kind is list and value is False:
        return []
    if kind is str and value == "":  # as from a shell's variable that is not set
        raise ValueError(_bad(name, value, f"{_WORDS[str]} that is not empty{', or off' * (type(None) in kinds)}"))
    try:
        if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            return float(value)  # YAML reads 3e-4, which has no point, as text
        if kind is int and isinstance(value, (float, str)) and float(value).is_integer():
            return int(float(value))
    except ValueError:
        pass
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(_bad(name, value, _WORDS[kind]))
    if isinstance(value, list):
        (item_kind,) = get_args(kinds[0])
        return [_convert(name, item, item_kind) for item in value]
    return value


_WORDS = {
    **{int: "a whole number", float: "a number", bool: "true or false", str: "text"},
    **{dict: "{name: value}", list: "a list, [one, another]"},
}


def _check_arguments(setting: str, arguments: Mapping[object, object]) -> None:
    """Raise ValueError for what cannot be an argument's name, and for one without a value, as YAML reads {name:0.1}."""
    _check_values(setting, arguments)
    for name in arguments:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(
                f"{setting} holds {name!r}, which no argument can be called; wanted {_WORDS[dict]} with names of "
                f"arguments (--set {setting}=...)"
            )


def _check_values(setting: str, value: object) -> None:
    if isinstance(value, Mapping):
        for name, below in cast(Mapping[object, object], value).items():
            if below is None:
                raise ValueError(
                    f"{setting} holds {name!r} without a value; wanted {_WORDS[dict]}, with a space after the colon "
                    f"(--set {setting}=...)"
                )
            _check_values(setting, below)
    elif isinstance(value, list):
        for below in cast(list[object], value):
            _check_values(setting, below)


def _check_optimizer(name: str) -> None:
    """Raise ValueError where timm has no such optimizer, or one that the loop cannot serve."""
    from timm import optim as timms

    known = [str(optimizer) for optimizer in timms.list_optimizers()]  # pyright: ignore[reportPrivateImportUsage]
    known.remove("adahessian")  # wants the graph of the gradient
    if name.removeprefix("lookahead_") not in known:
        raise ValueError(_bad("optimizer", name, f"adam, adamw, sgd, or another of timm's{nearest(name, known)}"))


def nearest(name: str, known: Sequence[str]) -> str:
    """Return the end of a message: the known names that are like a wrong one, or all where none is."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"; nearest: {', '.join(near)}" if near else f"; known: {', '.join(known)}"


def _bad(name: str, value: object, wanted: str) -> str:
    return f"{name} is {value!r}; wanted {wanted} (--set {name}=...)"
