"""Make the dated note of a GPU session: `python -m benchmarks.gpu_session_report DIR [--note FILE]`.

Reads DIR/session.jsonl; of a step that ran several times the last line counts. Without --note the note goes to
`benchmarks/DATE-GPU.md`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .gpu_session import session_steps

Line = Mapping[str, Any]
AIMS = (
    ("semantic loss", {"dtype": "float32", "way": "semantic"}, "ratio", 1.2, "at most"),
    ("semantic loss", {"dtype": "bfloat16", "way": "semantic"}, "ratio", 1.2, "at most"),
    ("training from dali_gpu", {}, "ratio", 0.98, "at least"),
)


def read_lines(folder: Path) -> dict[str, Line]:
    """Return the last line of each step, by the step's name; raises ValueError where there is no session."""
    path = folder / "session.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder}: has no session.jsonl; run `make gpu OUT={folder}` first")
    lines = (json.loads(text) for text in path.read_text(encoding="utf-8").splitlines())
    return {line["step"]: line for line in lines}


def note(lines: Mapping[str, Line]) -> str:
    """Return the note as Markdown."""
    return "\n".join([*_head(lines), *_aims(lines), *_overview(lines), *_results(lines)]) + "\n"


def _facts(lines: Mapping[str, Line]) -> dict[str, Any]:
    return (lines.get("machine", {}).get("results") or [{}])[0]


def _head(lines: Mapping[str, Line]) -> Iterator[str]:
    facts = _facts(lines)
    yield f"# {facts.get('gpu') or 'No GPU'}, {facts.get('date', 'no date')}"
    yield from ("", "Made by `make gpu` and `make gpu-report`.", "")
    yield from (f"- {name}: {value}" for name, value in facts.items() if value is not None)


def _aims(lines: Mapping[str, Line]) -> Iterator[str]:
    yield from ("", "## Aims", "", "| step | of | aim | measured | |", "|---|---|---|---|---|")
    for step, wanted, measure, aim, bound in AIMS:
        values = [
            result[measure]
            for result in lines.get(step, {}).get("results", [])
            if measure in result and all(result.get(name) == value for name, value in wanted.items())
        ]
        met = [value <= aim if bound == "at most" else value >= aim for value in values]
        verdict = ("met" if all(met) else "missed") if values and _facts(lines).get("gpu") else "not measured"
        measured = ", ".join(map(str, values)) if verdict != "not measured" else "–"
        yield f"| {step} | {' '.join(wanted.values()) or measure} | {bound} {aim} | {measured} | {verdict} |"


def _overview(lines: Mapping[str, Line]) -> Iterator[str]:
    yield from ("", "## Steps", "", "| part | step | status | seconds | tests | |", "|---|---|---|---|---|---|")
    for step in session_steps("cuda", Path()):
        line = lines.get(step.name, {"status": "not run"})
        tests = ", ".join(f"{number} {name}" for name, number in line.get("tests", {}).items())
        cells = (step.part, step.name, line["status"], line.get("seconds", ""), tests, line.get("reason", ""))
        yield f"| {' | '.join(map(str, cells))} |"


def _results(lines: Mapping[str, Line]) -> Iterator[str]:
    for name, line in lines.items():
        results = line.get("results") or []
        if name == "machine" or not results:
            continue
        yield from ("", f"## {name}", "")
        if line["status"] != "ok":
            yield from (f"The step ended as `{line['status']}`; these are the results it had by then.", "")
        columns = list(dict.fromkeys(column for result in results for column in result))
        yield f"| {' | '.join(columns)} |"
        yield "|" + "---|" * len(columns)
        yield from (f"| {' | '.join(_cell(result.get(column)) for column in columns)} |" for result in results)


def _cell(value: object) -> str:
    return "–" if value is None else f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value}"


def main(words: Sequence[str] | None = None) -> None:
    """Write the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--note", type=Path)
    options = parser.parse_args(words)
    lines = read_lines(options.folder)
    facts = _facts(lines)
    slug = re.sub(r"[^a-z0-9]+", "-", str(facts.get("gpu") or "no-gpu").lower())
    path = options.note or Path(__file__).parent / f"{facts.get('date', 'undated')}-{slug}.md"
    path.write_text(note(lines), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
