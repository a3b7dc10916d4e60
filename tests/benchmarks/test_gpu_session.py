"""A session runs each step in a process of its own, ends what is late, and keeps a line of every step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_session_steps
from benchmarks.gpu_session import ROOT, Session, Step, find_missing, run_part, session_steps
from benchmarks.gpu_session_report import note, read_lines

HANGS = "import time; print('{\"rate\": 1}', flush=True); time.sleep(600)"


def step(name: str, code: str, cap_s: float = 60, **words: Any) -> Step:
    return Step(name, 1, ("-c", code), cap_s, **words)


def session_in(folder: Path) -> Session:
    return Session(folder, {**os.environ, "PYTHONUNBUFFERED": "1"})


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "session.jsonl").read_text().splitlines()]


def test_checks_run_first_and_every_step_gets_its_line(tmp_path: Path) -> None:
    steps = [
        step("measures", "print('text'); print('{\"rate\": 2}')"),
        step("needs a GPU", "", needs=("gpu",)),
        step("fails", "raise SystemExit('out of luck')", checks=True),
    ]
    run_part(session_in(tmp_path), steps, {"gpu": "no GPU"}, 60)
    fails, measures, skipped = lines_of(tmp_path)
    assert (fails["step"], fails["status"]) == ("fails", "failed")
    assert "out of luck" in fails["tail"]
    assert (measures["status"], measures["results"]) == ("ok", [{"rate": 2}])
    assert skipped == {"step": "needs a GPU", "part": 1, "status": "skipped", "reason": "no GPU"}


def test_a_step_past_its_cap_is_ended_with_its_children_and_keeps_its_results(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}, {str(pid_file)!r}])\n{HANGS}"
    run_part(session_in(tmp_path), [step("hangs", code, cap_s=4), step("next", "")], {}, 60)
    hangs, following = lines_of(tmp_path)
    assert (hangs["status"], hangs["results"], following["status"]) == ("timeout", [{"rate": 1}], "ok")
    assert not_running(int(pid_file.read_text()))


def not_running(pid: int) -> bool:
    """Tell whether a process has ended; the one that adopts it may not have noticed yet."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_a_part_whose_time_is_over_skips_what_is_left(tmp_path: Path) -> None:
    run_part(session_in(tmp_path), [step("hangs", HANGS), step("late", "")], {}, 3)
    hangs, late = lines_of(tmp_path)
    assert (hangs["status"], late["status"], late["reason"]) == ("timeout", "skipped", "the 3 s of part 1 are over")


def test_tests_that_all_skip_count_as_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "test_skips.py"
    file.write_text("import pytest\n\n@pytest.mark.skip\ndef test_nothing(): ...\n")
    command = ("-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", "/dev/null", str(file))
    run_part(session_in(tmp_path), [Step("tests", 1, command, 60)], {}, 60)
    (line,) = lines_of(tmp_path)
    assert (line["status"], line["reason"], line["tests"]) == ("failed", "no test ran", {"skipped": 1})


def test_a_session_that_is_stopped_leaves_the_line_of_the_step_in_progress(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.gpu_session", "--device", "cpu", "--out", str(out)]
    process = subprocess.Popen([*command, "--work", str(tmp_path / "work")], cwd=ROOT, stdout=subprocess.DEVNULL)
    while not (tmp_path / "work" / "checkout" / "in21k").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert [(line["step"], line["status"]) for line in lines_of(out)] == [("machine", "interrupted")]


def test_without_a_gpu_the_machine_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    missing = find_missing(Session(tmp_path, environment), "cuda", tmp_path)
    assert missing["gpu"] == "no GPU"
    assert lines_of(tmp_path)[0]["results"][0]["gpu"] is None


def test_every_test_file_of_a_session_exists_and_every_step_is_known() -> None:
    steps = session_steps("cuda", Path())
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        if "pytest" in step.command:
            assert all((ROOT / word).is_file() for word in step.command if word.endswith(".py"))
        else:
            assert step.command[2] in gpu_session_steps.STEPS


def results(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    gpu_session_steps.main([*words, "--device", "cpu"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def test_the_measured_steps_run_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = ("--work", str(tmp_path))
    assert "semantic" in [line["way"] for line in results(capsys, "semantic-loss", *work)]
    lines = results(capsys, "train-step", *work, "--model", "resnet50")
    assert [line["channels_last"] for line in lines] == [False, True]
    assert all(line["operators_per_step"] > 100 for line in lines)
    assert results(capsys, "doctor", *work)[0]
    assert results(capsys, "shards", *work) == results(capsys, "shards", *work)
    rates = results(capsys, "rates", *work, "--backend", "opencv", "--backend", "dali_gpu")
    assert all(line["images_per_s"] > 0 for line in rates[:-1])
    assert "no GPU" in rates[-1]["left_out"]
    (fed,) = results(capsys, "train-fed", *work, "--backend", "dali_gpu")
    assert fed["ratio"] > 0


def test_gaps_are_what_no_kernel_covers() -> None:
    assert gpu_session_steps.gap_share([(0, 2), (1, 4), (1, 2), (6, 8)]) == 0.25
    assert gpu_session_steps.gap_share([]) == 0


def test_the_note_holds_every_step_and_judges_the_aims(tmp_path: Path) -> None:
    lines = [
        {"step": "machine", "part": 0, "status": "ok", "results": [{"gpu": "GPU 1", "date": "2026-01-02"}]},
        {"step": "semantic loss", "part": 1, "status": "timeout", "results": []},
        {
            "step": "semantic loss",
            "part": 1,
            "status": "timeout",
            "results": [{"dtype": "float32", "way": "semantic", "median_ms": 0.25, "ratio": 1.3}],
        },
        {"step": "training from dali_gpu", "part": 3, "status": "skipped", "reason": "no GPU"},
    ]
    (tmp_path / "session.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = note(read_lines(tmp_path))
    assert text.startswith("# GPU 1, 2026-01-02\n")
    assert "| semantic loss | float32 semantic | at most 1.2 | 1.3 | missed |" in text
    assert "| training from dali_gpu | ratio | at least 0.98 | – | not measured |" in text
    assert "| 3 | training from dali_gpu | skipped |  |  | no GPU |" in text
    assert "| 1 | semantic loss | timeout |" in text
    assert "| float32 | semantic | 0.25 | 1.3 |" in text
    assert all(step.name in text for step in session_steps("cuda", Path()))
