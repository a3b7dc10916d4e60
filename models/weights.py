"""Weights from files into a network, with a report of what fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor, nn

from .fit import architecture_of, convert, head_prefixes, measure_fit, model_that_fits
from .label_space import LabelSpace, label_space_of
from .weights_file import check_finite, read_part

Head = Literal["drop", "slice", "keep"]


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """What became of the tensors of a weights file."""

    path: Path
    part: str = ""
    """Where in the file they were: "", `state_dict`, `model_ema`, ..."""
    fitted: tuple[str, ...]
    """Names of the network's tensors that were filled."""
    converted: tuple[str, ...] = ()
    """The filled ones that the file holds under another name or in another shape, as timm converts the architecture's
    original weights."""
    missing: tuple[str, ...] = ()
    """Names of the network's tensors that the file does not hold; they keep their values."""
    dropped: tuple[str, ...] = ()
    """For each tensor of another shape, `name: (its shape) for (the network's)`; the network keeps its values."""
    unused: tuple[str, ...] = ()
    """Names in the file that the network does not have."""
    head: str = ""
    """What became of a head of another size, in words."""
    lacking: tuple[str, ...] = ()
    """Classes that a sliced head does not know; their rows keep their values."""

    @property
    def complete(self) -> bool:
        """Whether every tensor of the file fitted and every tensor of the network was filled."""
        return not (self.missing or self.dropped or self.unused or self.lacking)

    def __str__(self) -> str:
        lists = {
            "converted": self.converted,
            "missing": self.missing,
            "dropped (another shape)": self.dropped,
            "unused": self.unused,
            "classes lacking (their rows keep random weights)": self.lacking,
        }
        rest = [f"{len(names)} {what}: {_few(names)}" for what, names in lists.items() if names]
        parts = [f"{len(self.fitted)} tensors fitted", *([self.head] if self.head else []), *rest]
        return f"{self.path.name}{f' [{self.part}]' if self.part else ''}: {'; '.join(parts)}"


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    head: Head = "drop",
    wnids: Sequence[str] | None = None,
    file_wnids: Sequence[str] | None = None,
    average: bool = True,
    partial: bool = False,
) -> WeightsReport:
    """Copy the tensors of a file into `model` where name and shape agree, and say what did not.

    path:       `.safetensors`, or a PyTorch file (a plain state dict, or a checkpoint; see `read_part`). Weights as an
                architecture's authors published them are converted as timm converts them.
    head:       what becomes of a head of other classes. `drop`: the network's keeps its random weights; `keep`: the
                network gets the file's; `slice`: the network gets the rows of its own classes out of it.
    wnids:      the network's classes in the order of its outputs; `slice` needs them.
    file_wnids: the classes of the file's head. None: for `slice`, the known label space of that many classes; for
                `drop`, a head of as many classes is taken for one of the same.
    average:    of a checkpoint that holds averaged weights too, take those.
    partial:    take weights that hardly fit, too.

    Weights hardly fit (see `Fit`) where they fill under 90 % of the network, where it takes under 90 % of them, both in
    elements and without the heads, or where one of both alone has a bias of queries, keys and values.

    Raises ValueError where the file is missing, holds no weights, none that fits, some that are not finite, or no head
    to keep or to slice; and, unless `partial`, where its weights hardly fit: the message names the model that they
    would fit.
    """
    path = Path(path)
    part, tensors = read_part(path, average=average)
    return fit_weights(model, tensors, path, part=part, head=head, wnids=wnids, file_wnids=file_wnids, partial=partial)


def fit_weights(
    model: nn.Module,
    raw: dict[str, Tensor],
    path: Path,
    *,
    part: str = "",
    head: Head = "drop",
    wnids: Sequence[str] | None = None,
    file_wnids: Sequence[str] | None = None,
    partial: bool = False,
    architecture: str | None = None,
) -> WeightsReport:
    """Do as `load_weights` with tensors by name, which are the `part` of `path`, as messages and the report say.

    architecture: of the network that they belong to; None if unknown.
    """
    if head not in get_args(Head):
        raise ValueError(f"head is {head!r}; wanted one of {', '.join(get_args(Head))}")
    if head == "slice" and wnids is None:
        raise ValueError("head='slice' goes by the network's wnids; give them")
    check_finite(path, raw)
    tensors = convert(model, raw, path)
    if not partial:
        _check_fit(model, raw, tensors, path, architecture)
    converted = {name for name, tensor in tensors.items() if name not in raw or raw[name].shape != tensor.shape}
    remark, lacking = "", ()
    if head == "keep":
        remark = _keep_head(model, tensors, path)
    elif head == "slice" and wnids is not None:
        tensors, remark, lacking = _slice_head(model, tensors, wnids, file_wnids, path)
    elif wnids is not None and file_wnids is not None and tuple(wnids) != tuple(file_wnids):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(head_prefixes(model))}
        remark = "its head left out, which is of other classes"
    own = model.state_dict()
    known = own.keys() & tensors.keys()
    fitting = {name: tensors[name] for name in own if name in known and tensors[name].shape == own[name].shape}
    if not fitting:
        raise ValueError(
            f"{path}: none of its {len(tensors)} tensors fits the model "
            f"({_few(tuple(tensors))} against {_few(tuple(own))}); give weights of this architecture"
        )
    model.load_state_dict(fitting, strict=False)
    return WeightsReport(
        path=path,
        part=part,
        fitted=tuple(fitting),
        converted=tuple(name for name in fitting if name in converted),
        # torch has counted batch norm's batches since 1.0, and reads the count nowhere.
        missing=tuple(name for name in own if name not in known and not name.endswith("num_batches_tracked")),
        dropped=tuple(
            f"{name}: {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in known and name not in fitting
        ),
        unused=tuple(name for name in tensors if name not in known),
        head=remark,
        lacking=lacking,
    )


def _check_fit(
    model: nn.Module, raw: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path, architecture: str | None
) -> None:
    """Raise ValueError where weights hardly fit a network."""
    fit = measure_fit(model, tensors)
    if fit.problem:
        network, other = architecture_of(model), architecture or model_that_fits(model, raw, path)
        if other is None:
            way_out = "give weights of this architecture"
        elif other == network:
            way_out = f"these are weights of {other} with other arguments (--set model_args=...)"
        else:
            way_out = f"these are weights of {other} (--set model={other})"
        raise ValueError(
            f"{path}: hardly fits {network or type(model).__name__}: {fit.problem} ({fit.counts}); {way_out}, "
            "or take what fits (--set init_partial=true)"
        )


def _keep_head(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> str:
    num_classes = head_rows(model, tensors, path)[1]
    if num_classes != model.num_classes:
        model.reset_classifier(num_classes)  # pyright: ignore[reportCallIssue] - a method of all timm models
    return f"the file's head of {num_classes:,} classes"


def _slice_head(
    model: nn.Module,
    tensors: dict[str, Tensor],
    wnids: Sequence[str],
    file_wnids: Sequence[str] | None,
    path: Path,
) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Return the tensors with the head's rows in the order of `wnids`, what to say of it, and the unknown classes."""
    names, num_classes = head_rows(model, tensors, path)
    space = label_space_of(num_classes) if file_wnids is None else LabelSpace("the given classes", tuple(file_wnids))
    if len(space) != num_classes or model.num_classes != len(wnids):
        raise ValueError(
            f"{path}: its head has {num_classes:,} classes and the network {model.num_classes:,}; got the names of "
            f"{len(space):,} and {len(wnids):,}; wanted as many"
        )
    source = space.indices(wnids)
    (target,) = (source >= 0).nonzero(as_tuple=True)
    if not len(target):
        raise ValueError(f"{path}: its head ({space.name}) knows none of the {len(wnids):,} classes; take head='drop'")
    own = model.state_dict()
    sliced = {name: own[name].detach().cpu().clone() for name in names}
    for name, rows in sliced.items():
        rows[target] = tensors[name][source[target]].to(rows.dtype)
    lacking = tuple(wnid for wnid, index in zip(wnids, source.tolist(), strict=True) if index < 0)
    return tensors | sliced, f"its head sliced for {len(target):,} of {len(wnids):,} classes ({space.name})", lacking


def head_rows(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> tuple[list[str], int]:
    """Return the names of the tensors that have a row for each class, and how many the file's have."""
    names = [name for name in model.state_dict() if name in tensors and name.startswith(head_prefixes(model))]
    sizes = {tensors[name].shape[0] for name in names if tensors[name].ndim > 1}
    if len(sizes) != 1:
        raise ValueError(f"{path}: holds no head of this network; wanted {_few(head_prefixes(model)) or 'one'}")
    (num_classes,) = sizes
    return [name for name in names if tensors[name].shape[:1] == (num_classes,)], num_classes


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
