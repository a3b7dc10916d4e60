"""The first hour on a GPU in one command: `python -m benchmarks.gpu_session --part 1|2|3|all --out DIR`.

Part 1 (150 s) needs no DALI: the tests of losses, kernels and training steps, the cost of the semantic loss, and
training steps beside timm's loop. Part 2 (60 s): the opencv and torch loaders, which hand over to the GPU. Part 3
(240 s): dali_gpu's tests, its rates, and training from it beside training on one batch that stays on the GPU.

A part runs its checks first and measures after. Each step has a process of its own and a time cap, and writes one line
to DIR/session.jsonl when it ends; its output goes to DIR/session.log. A session that is cut short keeps the lines of
the steps that ended; a step that is cut short keeps the results that it had printed. `--pack FOLDER` first installs
what `make offline-pack` made. `python -m benchmarks.gpu_session_report DIR` makes the note.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from .offline_pack import install

ROOT = Path(__file__).parents[1]
PART_SECONDS = {1: 150, 2: 60, 3: 240}
GRACE_S = 3.0  # between SIGTERM and SIGKILL
LEAST_S = 2.0  # a step that has less than this does not start
TAIL_CHARACTERS = 1500  # of a failed step's output, kept in its line
TEST_COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?)")


@dataclass(frozen=True)
class Step:
    """One process of a session.

    command: what `python` runs.
    cap_s:   seconds after which it is ended.
    needs:   `gpu`, `dali`: what must be at hand, or the step is skipped.
    checks:  whether it checks, and runs before what measures; a check's failure skips nothing.
    """

    name: str
    part: int
    command: tuple[str, ...]
    cap_s: float
    needs: tuple[str, ...] = ()
    checks: bool = False


def session_steps(device: str, work: Path) -> list[Step]:
    """Return the steps of all parts, of each part the checks first."""

    def tests(name: str, part: int, cap_s: float, *arguments: str, needs: tuple[str, ...] = ("gpu",)) -> Step:
        command = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *arguments)
        return Step(name, part, command, cap_s, needs, checks=True)

    def own(
        name: str, part: int, cap_s: float, *arguments: str, needs: tuple[str, ...] = (), checks: bool = False
    ) -> Step:
        command = ("-m", "benchmarks.gpu_session_steps", *arguments, "--device", device, "--work", str(work))
        return Step(name, part, command, cap_s, needs, checks)

    with_dali = ("gpu", "dali") if device == "cuda" else ()
    return [
        own("doctor", 1, 15, "doctor", checks=True),
        tests("tests of losses and kernels", 1, 35, "tests/training/test_gpu.py"),
        tests("tests of training steps", 1, 35, "tests/training/test_gpu_steps.py"),
        own("semantic loss", 1, 15, "semantic-loss"),
        own("training step, resnet50", 1, 40, "train-step", "--model", "resnet50"),
        own("training step, vit_base_patch16_224", 1, 40, "train-step", "--model", "vit_base_patch16_224"),
        own("shards", 2, 25, "shards", checks=True),
        tests(
            "tests of opencv and torch loaders",
            2,
            20,
            "tests/datapipe/test_gpu.py",
            "-k",
            "(opencv or torch) and not fifty_epochs",
        ),
        own("rates of opencv and torch", 2, 35, "rates", "--backend", "opencv", "--backend", "torch"),
        own("shards for DALI", 3, 25, "shards", checks=True),
        tests("tests of dali_gpu", 3, 60, "tests/datapipe/test_gpu.py", "-k", "dali", needs=("gpu", "dali")),
        tests("conformance of dali_gpu", 3, 30, "tests/datapipe/test_conformance.py", needs=("gpu", "dali")),
        own("rates of dali_gpu", 3, 60, "rates", "--backend", "dali_gpu", needs=with_dali),
        own("training from dali_gpu", 3, 80, "train-fed", "--backend", "dali_gpu", needs=with_dali),
    ]


class Session:
    """A session's folder: it runs steps and writes their lines."""

    def __init__(self, out: Path, environment: Mapping[str, str]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.lines, self._log, self._environment = out / "session.jsonl", out / "session.log", environment

    def run(self, step: Step, limit_s: float) -> dict[str, Any]:
        """Run a step for at most that many seconds; return its line."""
        started = time.monotonic()
        with TemporaryFile() as output:
            process = subprocess.Popen(
                [sys.executable, *step.command],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status = "interrupted"
            try:
                status = "ok" if process.wait(limit_s) == 0 else "failed"
            except subprocess.TimeoutExpired:
                status = "timeout"
            finally:
                end_group(process)
                output.seek(0)
                text = output.read().decode(errors="replace")
                self._append(self._log, f"== {step.name}: {status}\n{text}\n")
                line = _step_line(step, status, text)
                self.write({**line, "seconds": round(time.monotonic() - started, 2), "limit_s": round(limit_s, 1)})
        return line

    def skip(self, step: Step, reason: str) -> None:
        """Write the line of a step that does not run."""
        self.write({"step": step.name, "part": step.part, "status": "skipped", "reason": reason})

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; it is on the disk when this returns."""
        self._append(self.lines, json.dumps(line) + "\n")
        print(f"{line['step']}: {line['status']} {line.get('reason', '')}".rstrip(), flush=True)

    @staticmethod
    def _append(path: Path, text: str) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started: SIGTERM, and SIGKILL for what is left after `GRACE_S`."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _step_line(step: Step, status: str, text: str) -> dict[str, Any]:
    """Return a step's line: what it printed as JSON, the counts of its tests, and the end of a failure's output."""
    line: dict[str, Any] = {"step": step.name, "part": step.part, "status": status, "results": json_lines(text)}
    if "pytest" in step.command:
        counts = {
            name.rstrip("s"): int(number) for number, name in TEST_COUNT.findall(text.strip().rpartition("\n")[2])
        }
        line["tests"] = counts
        if status == "ok" and not counts.get("passed"):  # a step whose tests all skip has checked nothing
            line |= {"status": "failed", "reason": "no test ran"}
    if line["status"] != "ok":
        line["tail"] = text[-TAIL_CHARACTERS:]
    return line


def json_lines(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects among the lines of an output."""
    objects = list[dict[str, Any]]()
    for line in text.splitlines():
        with suppress(ValueError):
            if line.startswith("{"):
                objects.append(json.loads(line))
    return objects


def run_part(session: Session, steps: Sequence[Step], missing: Mapping[str, str], seconds: float) -> None:
    """Run the steps of a part within its time, the checks first. missing: why a need is not met, by need."""
    deadline = time.monotonic() + seconds
    for step in sorted(steps, key=lambda step: not step.checks):
        reasons = [missing[need] for need in step.needs if need in missing]
        left_s = deadline - time.monotonic()
        if reasons:
            session.skip(step, reasons[0])
        elif left_s < LEAST_S:
            session.skip(step, f"the {seconds:.0f} s of part {step.part} are over")
        else:
            session.run(step, min(step.cap_s, left_s))


def find_missing(session: Session, device: str, work: Path) -> dict[str, str]:
    """Write the line of the machine; return why a GPU or DALI is not at hand, by need."""
    command = ("-m", "benchmarks.gpu_session_steps", "machine", "--device", device, "--work", str(work))
    facts: dict[str, Any] = {}
    for result in session.run(Step("machine", 0, command, 60), 60)["results"]:
        facts |= result
    missing = {} if facts.get("gpu") else {"gpu": "no GPU"}
    return missing if facts.get("dali") else missing | {"dali": "DALI is not installed"}


def environment_of(work: Path, site: Path) -> dict[str, str]:
    """Return the environment of steps: the checkout is the package `in21k`; what a pack installed comes after it."""
    checkout = work / "checkout"
    checkout.mkdir(parents=True, exist_ok=True)
    link = checkout / "in21k"
    if not link.is_symlink():
        link.symlink_to(ROOT)
    paths = [str(checkout), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def main(words: Sequence[str] | None = None) -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["1", "2", "3", "all"], default="all")
    parser.add_argument("--out", type=Path, required=True, help="where session.jsonl and session.log go")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-session", help="for shards and packages")
    parser.add_argument("--pack", type=Path, help="install this first: the folder that `make offline-pack` made")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: tiny steps, to try a session")
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step in progress is ended and gets its line
    work = options.work.resolve()
    site = work / "site"
    if options.pack:
        install(options.pack, site, work / "images.tar")
    session = Session(options.out.resolve(), environment_of(work, site))
    missing = find_missing(session, options.device, work)
    steps = session_steps(options.device, work)
    for part in PART_SECONDS if options.part == "all" else [int(options.part)]:
        run_part(session, [step for step in steps if step.part == part], missing, PART_SECONDS[part])


if __name__ == "__main__":
    main()
