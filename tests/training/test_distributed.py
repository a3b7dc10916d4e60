"""Ranks: alone in this process, and two as real processes that talk through gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from in21k.shards.tree import SemanticTree
from in21k.training import TrainSettings, train_model
from in21k.training.distributed import Ranks, join_ranks

NOT_KILLED = -1
NOT_KILLED_WITH_DROPOUT = -2


def torchrun(
    num_ranks: int, *arguments: object, restarts: int = 0, script: str = "two_ranks.py", **variables: str
) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    launch += [f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, *launch, str(Path(__file__).parent / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_two_ranks_of_half_the_batch_give_the_loss_curve_of_one(
    tmp_path: Path, tree: SemanticTree, make_model: Callable[..., nn.Module], make_loader: Any
) -> None:
    result = torchrun(2, tmp_path / "two", 16, 0, NOT_KILLED)
    assert result.returncode == 0, result.stderr
    settings = TrainSettings(model="resnet18", image_size=16, batch_size=32, epochs=2, lr=0.02, ema=0.9, trackers=[])
    loader = make_loader(batch_size=32)
    validation = make_loader(batch_size=31)
    validation.images, validation.labels = validation.images[:31], validation.labels[:31]
    train_model(
        model=make_model(dropout=0),
        loader=loader,
        val_loader=validation,
        tree=tree,
        settings=settings,
        folder=tmp_path / "one",
    )
    one, two = lines_of(tmp_path / "one"), lines_of(tmp_path / "two")
    assert [line["step"] for line in two] == [1, 2, 3, 3, 4, 5, 6, 6]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    # Validation counts are added over the ranks: all 31 samples, though the second rank holds none of them.
    assert two[-1]["validation"] == one[-1]["validation"]
    assert two[-1]["validation"]["num_samples"] == 31


def test_each_rank_has_its_own_buffers_in_steps_and_rank_0s_where_they_are_used(tmp_path: Path) -> None:
    result = torchrun(2, tmp_path / "apart.json", script="two_ranks_buffers.py")
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "apart.json").read_text())
    stepped, shared = written["stages"]
    assert stepped["model.buffers"] > 0
    assert stepped["ema.buffers"] > 0
    assert stepped["model.parameters"] == stepped["ema.parameters"] == 0
    assert set(shared.values()) == {0}
    assert written["first_kept_its_own"]


def test_ranks_lose_their_patience_together(tmp_path: Path) -> None:
    result = torchrun(2, tmp_path, 16, 0, NOT_KILLED, PATIENCE="2")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["num_epochs"], metrics["num_steps"], metrics["best_epoch"]) == (3, 9, 0)


def test_ranks_that_train_something_else_stop_and_say_what(tmp_path: Path) -> None:
    result = torchrun(2, tmp_path / "run", 16, 7, NOT_KILLED)
    assert result.returncode != 0
    assert "rank 0 stops: rank 1 trains something else than rank 0 (seed 0 -> 7)" in result.stderr
    assert "rank 1 stops: rank 1 trains something else than rank 0 (seed 0 -> 7)" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_rank_that_is_killed_twice_comes_back_and_the_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """The ranks share no disk: rank 0's holds the run, and it hands the others their checkpoint."""
    whole, killed = tmp_path / "whole", tmp_path / "disk0" / "run"
    assert torchrun(2, whole, 16, 0, NOT_KILLED_WITH_DROPOUT).returncode == 0
    result = torchrun(2, tmp_path, 16, 0, 1, restarts=2, OWN_DISKS="yes")  # at batches 1 and 2 of 6
    assert result.returncode == 0, result.stderr
    assert "exitcode: -9" in result.stderr
    for name in ("model.safetensors", "model_ema.safetensors", "metrics.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    told = [[(line["step"], line.get("loss")) for line in lines_of(folder)] for folder in (whole, killed)]
    assert told[0] == told[1]
    assert not (tmp_path / "disk1" / "run").exists()


def test_a_run_that_lies_with_another_rank_than_the_first_is_not_begun_anew(tmp_path: Path) -> None:
    checkpoint = tmp_path / "disk1" / "run" / "checkpoints" / "last.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    result = torchrun(2, tmp_path, 16, 0, NOT_KILLED, OWN_DISKS="yes")
    assert result.returncode != 0
    assert "rank 1 has a run there, and rank 0 has none; start its node as rank 0" in result.stderr


def test_without_torchrun_there_is_one_rank_and_no_process_group() -> None:
    with join_ranks("cpu") as ranks:
        assert ranks == Ranks(0, 1, torch.device("cpu"))
        assert ranks.is_first
        assert not torch.distributed.is_initialized()
        assert ranks.sum(torch.tensor([3])).tolist() == [3]
        assert ranks.gather_json({"a": "ä"}) == [{"a": "ä"}]
        rows, none = ranks.gather_rows(torch.tensor([[3], [4]]), torch.empty(0, 5))
        assert (rows.tolist(), none.shape) == ([[3], [4]], (0, 5))
        ranks.check_alike({"a": 1})


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="a GPU was asked for"), join_ranks("cuda"):
        pass
    with pytest.raises(ValueError, match="wanted cuda or cpu"), join_ranks("tpu"):
        pass
    with join_ranks() as ranks:
        assert ranks.device.type == "cpu"


def test_what_rank_0_computes_or_refuses_reaches_every_rank(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "from in21k.training.distributed import join_ranks\n"
        "def refuse(): raise OSError(28, 'No space left on device', 'x')\n"
        "with join_ranks('cpu') as ranks:\n"
        "    calls = []\n"
        "    value = ranks.from_first(lambda: calls.append(1) or [ranks.rank, 'a'])\n"
        "    try:\n"
        "        ranks.from_first(refuse)\n"
        "    except ValueError as error:\n"
        "        Path(sys.argv[1], f'{ranks.rank}.json').write_text(json.dumps([value, len(calls), str(error)]))\n"
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--monitor-interval=0.1"]
    subprocess.run([sys.executable, *launch, str(tmp_path / "ranks.py"), str(tmp_path)], check=True)
    facts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [fact[0] for fact in facts] == [[0, "a"]] * 2
    assert [fact[1] for fact in facts] == [1, 0]
    assert all("No space left on device" in fact[2] for fact in facts)
