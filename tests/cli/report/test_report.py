"""`in21k report`: the page as a file; in a browser see test_report_browser.py."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from in21k.cli.report.prepared.sheet import data_uri
from in21k.cli.report.runs.look import coloured_branches
from in21k.cli.report.runs.render import named
from in21k.datapipe.rows import read_images
from in21k.shards import open_dataset
from in21k.shards.files.atomic import sealed, write_json
from in21k.shards.reader import SampleReader
from in21k.shards.tree import SemanticTree
from in21k.training.evaluation.predictions import load_predictions

from ..conftest import run, run_json

SECTIONS = ["Counts", "The long tail", "The tree", "Images", "Sizes", "Changes", "Rejects", "Settings"]
RUN_SECTIONS = ["Results", "Curves", "Levels", "Classes", "Mistakes", "Where it looks", "Features", "Settings"]
HOSTILE = "</script><script>window.owned = 1</script>"


@pytest.fixture(scope="module")
def page(prepared: Path) -> Path:
    """A report of the prepared data set."""
    out = prepared.parent / "report.html"
    run_json("report", prepared, out, "--images", 20)
    return out


def test_a_report_is_one_page_that_loads_nothing(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    result = run_json("report", prepared, out, "--images", 20)
    assert result == {"path": str(out), "bytes": out.stat().st_size, "sections": SECTIONS}
    page = out.read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:|#)[^\s\"')]+", page) == []
    assert "http:" not in page
    assert "https:" not in page
    assert str(tmp_path) not in page
    assert str(prepared.parent) not in page
    assert page.count('<img src="data:image/jpeg;base64,') == 20


def test_the_same_command_says_that_it_is_done_and_another_is_refused(prepared: Path, page: Path) -> None:
    before = page.read_bytes()
    again = run("report", prepared, page, "--images", 20)
    assert again.exit_code == 0, again.output
    other = run("report", prepared, page, "--images", 20, "--seed", 1)
    assert other.exit_code == 2
    assert "exists, made from other data or settings; give another name, or --overwrite" in other.stderr
    assert page.read_bytes() == before
    assert run("report", prepared, page, "--images", 20, "--seed", 1, "--overwrite").exit_code == 0
    assert page.read_bytes() != before


def test_another_page_is_refused_before_the_work(
    prepared: Path, trained: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, photo, grown = tmp_path / "out.html", tmp_path / "photo.png", tmp_path / "grown"
    Image.new("RGB", (30, 20), "red").save(photo)
    words = (prepared, trained, out, "--data", shards, "--look", photo, "--images", 2)
    assert run("report", *words).exit_code == 0
    shutil.copytree(trained, grown, ignore=shutil.ignore_patterns("tensorboard"))
    with (grown / "log.jsonl").open("a") as log:
        log.write("\n")

    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr("in21k.cli.report.prepared.render.render_prepared", work)
    monkeypatch.setattr("in21k.cli.report.runs.render.render_runs", work)
    assert isinstance(run("report", *words).exception, AssertionError)  # as nothing is known to be different
    for others in (
        [*words, "--seed", 1],
        [*words, "--weights", "best"],
        [*words[:-1], 3],
        [*words, "--look", photo],
        [*words[:3], *words[5:]],
        [trained, *words[2:]],
        [prepared, grown, *words[2:]],
    ):
        result = run("report", *others)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "exists, made from other data or settings; give another name, or --overwrite" in result.stderr
    Image.new("RGB", (30, 20), "blue").save(photo)
    assert "exists, made from other data or settings" in run("report", *words).stderr


def test_a_file_that_is_no_report_is_never_overwritten(prepared: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("my own page")
    for words in ([], ["--overwrite"]):
        result = run("report", prepared, mine, *words)
        assert (result.exit_code, mine.read_text()) == (2, "my own page")
        assert "exists and is not a report of in21k" in result.stderr


def test_several_folders_share_a_page_and_no_address(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.html"
    assert run_json("report", prepared, prepared, out, "--images", 0)["sections"] == SECTIONS * 2
    page = out.read_text(encoding="utf-8")
    addresses = re.findall(r'<section id="([^"]+)"', page)
    assert len(addresses) == len(set(addresses)) == 2 * len(SECTIONS)
    assert re.findall(r'href="#([^"]+)"', page) == addresses
    assert page.count("The tree map.") == 1


@pytest.fixture(scope="module")
def other_shards(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("others") / "shards"
    run_json("shard", prepared, path, "--seed", 1, "--workers", 1)
    return path


def test_a_shard_set_that_is_given_several_times_counts_once(shards: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(shards)
    pages = [tmp_path / f"{number}.html" for number in range(2)]
    once = run_json("report", trained, pages[0], "--data", shards, "--images", 0)
    twice = run_json("report", shards, trained, tmp_path / "link", pages[1], "--data", shards, "--images", 0)
    assert once["sections"] == twice["sections"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["PREPARED", "PREPARED/report.html"], "lies inside a folder that it is about"),
        (["PREPARED", "PREPARED/.."], "is a folder; wanted the name of a report"),
        (["PREPARED", "nowhere/report.html"], "the folder nowhere does not exist"),
        (["nowhere", "OUT"], "nowhere: does not exist; wanted a prepared data set (of `in21k preprocess`), a run (of"),
        (["RUN/checkpoints", "OUT"], "is none of those; wanted a prepared data set (of `in21k preprocess`), a run (of"),
        (["PREPARED", "OUT.txt"], "a report is a .html file; give it a name that ends in .html"),
        (["PREPARED", "OUT", "--seed", "99999999999999999999999"], "is not in the range 0<=x<=4294967295"),
        (
            ["RUN", "OUT", "--data", "nowhere"],
            "does not exist; wanted shards (`in21k shard`), or what `in21k finetune`",
        ),
        (["SHARDS", "OUT"], "is a shard set; a report shows the prepared data set that it was made from, and runs"),
        (["PREPARED", "OUT", "--data", "SHARDS"], "--data, --predictions and --look go with runs, and there is none"),
        (["RUN", "RUN/report.html"], "lies inside a folder that it is about"),
        (["RUN", "SHARDS", "OUT", "--data", "OTHERS"], "asked about one shard set, and 2 are given"),
        (["RUN", "OUT", "--images", "101"], "101 images to look at: wanted 0 to 100"),
        (
            ["RUN", "OUT", "--look", "n01503061_7"],
            "no such file; to choose validation images by key, give their shards",
        ),
        (["RUN", "OUT", "--data", "SHARDS", "--look", "n01503061_7777"], "its split val has no image n01503061_7777"),
        (["RUN", "RUN", "OUT", "--predictions", "X"], "1 files of predictions for 2 runs; wanted one for each"),
        (["RUN", "OUT", "--data", "PREPARED"], "wanted 'in21k-shards'"),
        (["PREPARED", "OUT", "--images", "401"], "401 images: wanted 0 to 400"),
        (["OUT"], "Missing argument 'PATH...'"),
    ],
)
def test_a_mistake_ends_in_one_line(
    words: list[str], says: str, prepared: Path, shards: Path, other_shards: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.html"
    names = {"PREPARED": str(prepared), "SHARDS": str(shards), "RUN": str(trained), "OUT": str(out)}
    names["OTHERS"] = str(other_shards)
    for name, path in names.items():
        words = [word.replace(name, path) for word in words]
    result = run("report", *words)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


VOID = {"img", "meta", "br", "input"}


class Page(HTMLParser):
    """A page's text by section, and how many of each tag it has; fails where a tag is not closed in its turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[str] = []
        self.section = ""
        self.sections: dict[str, str] = {}
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.sections[self.section] = self.sections.get(self.section, "") + data

    def rows(self, section: str) -> dict[str, list[str]]:
        """Return the cells of a section's table rows by the first."""
        part = self.text.partition(f'<section id="{section}"')[2].partition("</section>")[0]
        rows = [re.sub(r"<[^>]+>", "|", row) for row in re.findall(r"<tr>(.*?)</tr>", part)]
        cells = [[cell for cell in row.split("|") if cell] for row in rows]
        return {row[0]: row[1:] for row in reversed(cells) if row}  # of equal ones the first


@pytest.fixture
def changed(trained: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make a copy of the run without some of what it holds, and with other lines in its log."""

    def change(name: str, *gone: str, lines: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = list) -> Path:
        path = tmp_path / name
        shutil.copytree(trained, path, ignore=shutil.ignore_patterns("tensorboard", *gone))
        if (path / "log.jsonl").exists():
            log = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
            (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(log)))
        return path

    return change


def test_a_run_is_shown_with_what_its_network_answers(trained: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.html"
    words = ("report", trained, out, "--data", shards, "--images", 3)
    assert run_json(*words)["sections"] == RUN_SECTIONS
    page = Page(out)
    metrics = json.loads((trained / "metrics.json").read_text())
    for name, title in (("semantic_top1", "semantic top-1"), ("top1", "top-1"), ("top5", "top-5")):
        assert page.rows("results")[title] == [f"{metrics[name]:.2f} %"]
        assert page.rows("classes")[title] == [f"{metrics[name]:.2f} %"]  # asked anew, the network answers alike
    assert page.text.count('<figure class="look ') == 6  # each image as it is, and where the network looks
    assert "Grad-CAM" in page.sections["looks"]
    num_images = open_dataset(shards).num_samples["val"]
    assert f"{num_images} validation images, laid out by t-SNE" in page.sections["features"]
    assert sum(path.count("h0") for path in re.findall(r'class="dots branch-[^>]+', page.text)) == num_images
    assert re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:|#)[^\s\"')]+", page.text) == []
    assert str(trained.parent) not in page.text
    assert "http:" not in page.text.replace("https:", "http:")
    assert run(*words).exit_code == 0  # equal data give equal bytes


def test_saved_predictions_stand_in_for_the_network(trained: Path, shards: Path, tmp_path: Path) -> None:
    saved, out = tmp_path / "answers.parquet", tmp_path / "out.html"
    measured = run_json("validate", trained, "--data", shards, "--save-predictions", saved)
    run_json("report", trained, out, "--predictions", saved)
    page = Page(out)
    assert page.rows("classes")["F1, mean over classes"] == [f"{measured['macro_f1']:.2f} %"]
    pairs = page.rows("mistakes")
    for confusion in measured["confusions"]:
        assert confusion["name"] in pairs
    assert "img" not in page.tags
    for section in ("looks", "features"):
        assert "--data SHARDS" in page.sections[section]
    run_json("report", trained, out, "--predictions", saved, "--data", shards, "--images", 0, "--overwrite")
    assert Page(out).rows("classes")["F1, mean over classes"] == [f"{measured['macro_f1']:.2f} %"]
    other = pq.read_table(saved)
    content = json.loads(other.schema.metadata[b"in21k"])
    content["tree"]["wnids"][0] = "n00000001"
    pq.write_table(other.replace_schema_metadata({b"in21k": json.dumps(content)}), saved)
    result = run("report", trained, tmp_path / "no.html", "--predictions", saved, "--data", shards)
    assert result.exit_code == 2
    assert "was not made from" in result.stderr


@pytest.fixture
def retrained(changed: Callable[..., Path]) -> Path:
    """A copy of the run whose weights are a little different."""
    path = changed("retrained")
    tensors = load_file(path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("bias"))
    save_file({**tensors, name: tensors[name] + 1e-3}, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.fixture
def reshuffled(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards that says of itself that it is another set."""
    path = tmp_path / "reshuffled"
    shutil.copytree(shards, path)
    content = json.loads((path / "dataset.json").read_text())
    write_json(path / "dataset.json", sealed({**content, "another": True}))
    return path


def test_predictions_of_other_weights_or_of_other_images_are_refused(
    trained: Path, retrained: Path, shards: Path, reshuffled: Path, labels_run: Path, tmp_path: Path
) -> None:
    own, strange, elsewhere, nameless = (tmp_path / f"{name}.parquet" for name in "abcd")
    run_json("validate", trained, "--data", shards, "--save-predictions", own)
    run_json("validate", retrained, "--data", shards, "--save-predictions", strange)
    run_json("validate", trained, "--data", reshuffled, "--save-predictions", elsewhere)
    table = pq.read_table(own)
    content = json.loads(table.schema.metadata[b"in21k"])
    del content["provenance"]["fingerprint"]
    pq.write_table(table.replace_schema_metadata({b"in21k": json.dumps(content)}), nameless)
    out = tmp_path / "out.html"
    for words, item in (
        ((trained, out, "--predictions", strange), "holds no answers of run with its weights 'last': it was made from"),
        ((trained, out, "--predictions", strange, "--data", shards), str(retrained)),
        ((trained, out, "--predictions", nameless), "(fingerprint None, wanted "),
        ((retrained, out, "--predictions", own), "give the run's own, and the --weights they are of"),
        ((trained, out, "--predictions", elsewhere, "--data", shards), f"was not made from {shards}"),
        (
            (trained, trained, out, "--predictions", own, "--predictions", elsewhere),
            f"is about other shards than {own}; give predictions for the same images",
        ),
        ((labels_run, out, "--predictions", own), "gives images several labels, and the report counts answers of one"),
        ((trained, labels_run, out, "--predictions", own, "--predictions", own), "leave --predictions out"),
    ):
        result = run("report", *words)
        assert (result.exit_code, result.stdout) == (2, ""), words
        assert item in result.stderr
        assert result.stderr.count("\n") == 1
        assert not out.exists()
    run_json("report", trained, retrained, out, "--predictions", own, "--predictions", strange)
    run_json("report", trained, tmp_path / "other.html", "--predictions", elsewhere, "--data", reshuffled)


def test_the_best_of_a_row_stands_out_where_runs_were_validated_on_the_same_data(
    trained: Path, changed: Callable[..., Path], tmp_path: Path
) -> None:
    def worse(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**line, "validation": {**line["validation"], "top1": line["validation"]["top1"] / 2}}
            if "validation" in line
            else line
            for line in lines
        ]

    other = changed("other", lines=worse)
    run_json("report", trained, other, tmp_path / "same.html")
    page = Page(tmp_path / "same.html")
    assert "<strong>" in page.text.partition("<section")[2].partition("</table>")[0]
    assert "The best of a row stands in bold." in page.sections["results"]
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["data"]["shards"] = "0123456789abcdef"
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    run_json("report", trained, other, tmp_path / "other.html")
    page = Page(tmp_path / "other.html")
    assert "<strong>" not in page.text.partition("<section")[2].partition("</table>")[0]
    assert "validated on different data, so none stands out as the best" in page.sections["results"]
    assert "bold" not in page.sections["results"]


def test_without_data_the_page_says_what_to_give(trained: Path, tmp_path: Path) -> None:
    run_json("report", trained, tmp_path / "out.html")
    page = Page(tmp_path / "out.html")
    for section in ("classes", "mistakes", "looks", "features"):
        assert "--data SHARDS" in page.sections[section]
    assert "top-1" in page.sections["results"]


def test_chosen_images_are_looked_at(trained: Path, shards: Path, tmp_path: Path) -> None:
    data = open_dataset(shards)
    split = data.split("val")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(SampleReader(split).image(0))
    stored = pq.read_table(data.manifest_path, columns=["key"], filters=[("split", "==", "val")])
    name = stored["key"][3].as_py()
    run_json("report", trained, tmp_path / "both.html", "--data", shards, "--look", photo, "--look", name)
    page = Page(tmp_path / "both.html")
    assert "photo.jpg" in page.sections["looks"]
    assert name in page.sections["looks"]
    assert page.text.count('<figure class="look ') == 4
    run_json("report", trained, tmp_path / "file.html", "--look", photo)  # a file needs no shards
    assert Page(tmp_path / "file.html").text.count('<figure class="look ') == 2
    (tmp_path / "text.jpg").write_text("no image")
    result = run("report", trained, tmp_path / "no.html", "--look", tmp_path / "text.jpg")
    assert result.exit_code == 2
    assert "not an image" in result.stderr


def test_several_runs_are_shown_over_one_another_beside_their_data(
    trained: Path, prepared: Path, shards: Path, changed: Callable[..., Path], tmp_path: Path
) -> None:
    other = changed("other")
    config = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**config, "lr": 0.5, "batch_size": 8}))
    out = tmp_path / "all.html"
    words = ("report", shards, trained, prepared, other, out, "--images", 2)  # the shards are what --data names
    assert run_json(*words)["sections"] == [*RUN_SECTIONS, *SECTIONS]
    page = Page(out)
    addresses = re.findall(r'<section id="([^"]+)"', page.text)
    assert len(addresses) == len(set(addresses)) == len(RUN_SECTIONS) + len(SECTIONS)
    assert page.text.count("/* Charts, bars, tiles and thumbnails.") == 1
    assert "images seen" in page.sections["curves"]  # steps of other sizes have no axis of their own
    settings = page.rows("run-settings")
    assert settings["lr"][:2] == [f"{config['lr']:g}", "0.5"]
    assert page.text.count('class="line run-0"') == page.text.count('class="line run-1"') > 5


def test_two_runs_of_equal_steps_are_shown_over_steps(
    trained: Path, changed: Callable[..., Path], tmp_path: Path
) -> None:
    run_json("report", trained, changed("other"), tmp_path / "out.html")
    page = Page(tmp_path / "out.html")
    assert "images seen" not in page.sections["curves"]
    assert "The runs have equal settings." in page.sections["run-settings"]


def test_unfinished_runs_are_shown_as_far_as_they_came(
    changed: Callable[..., Path], shards: Path, tmp_path: Path
) -> None:
    unvalidated = changed("unvalidated", "metrics.json", lines=lambda log: [line for line in log if "loss" in line][:7])
    begun = changed("begun", "metrics.json", "log.jsonl", "checkpoints", "*.safetensors")
    lost = changed("lost", "metrics.json", lines=lambda log: log[:5])
    ranks = [{"rank": 0, "loss": "nan", "samples": [HOSTILE, *(f"image_{n}" for n in range(20))]}]
    (lost / "nonfinite.json").write_text(json.dumps({"step": 6, "epoch": 0, "lr": 1.0, "place": None, "ranks": ranks}))
    averaged = changed(
        "averaged",
        lines=lambda log: [
            {**line, "validation": {**line["validation"], "ema": {**line["validation"], "semantic_top1": 12.25}}}
            if "validation" in line
            else line
            for line in log
        ],
    )
    out = tmp_path / "out.html"
    result = run("report", unvalidated, begun, lost, averaged, out, "--data", shards, "--images", 1)
    assert result.exit_code == 0, result.output
    page = Page(out)
    results = page.sections["results"]
    assert "unvalidated is not finished: step 7 in epoch 1" in results
    assert "begun is not finished: not begun" in results
    assert "lost: the loss of step 6 was not finite" in results
    assert "and 9 more" in results
    assert "averaged, moving average" in page.sections["curves"]
    rows = page.rows("results")
    assert rows["best of all epochs"][3] == "–"
    assert rows["best of all epochs, moving average"] == ["–", "–", "–", "12.25 % (epoch 0)"]
    assert "has no last checkpoint (yet)" in page.sections["classes"]
    assert HOSTILE not in page.text
    assert str(tmp_path) not in page.text
    for path in (unvalidated, begun, lost, averaged):
        run_json("report", path, tmp_path / f"{path.name}.html")
        Page(tmp_path / f"{path.name}.html")
    assert "best of the moving average 12.25 % (epoch 0)" in Page(tmp_path / "averaged.html").sections["results"]


def without_validation(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if "validation" not in line]


def first_epoch(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["epoch"] == 0]


def first_step(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return lines[:1]


def every_number(value: float | None) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Give all that is measured, in steps and validations, one value; None stands in steps alone."""

    def change(line: dict[str, Any]) -> dict[str, Any]:
        if "validation" not in line:
            return {name: held if name in ("step", "epoch") else value for name, held in line.items()}
        if value is None:
            return line
        numbers = {name: value if isinstance(held, float) else held for name, held in line["validation"].items()}
        return {**line, "validation": numbers}

    return lambda lines: [change(line) for line in lines]


@pytest.mark.parametrize(
    "lines",
    [
        *(without_validation, first_epoch, first_step, lambda _: []),
        *(every_number(value) for value in (0.0, 1e-30, 33.0, 100.0, -4.0, None)),
        *(lambda lines, value=value: every_number(value)(first_epoch(lines)) for value in (0.0, 100.0)),
        lambda lines: every_number(0.0)(first_step(lines)),
    ],
)
def test_a_run_is_drawn_whatever_its_log_holds(
    lines: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], changed: Callable[..., Path], tmp_path: Path
) -> None:
    strange, unfinished = changed("strange", lines=lines), changed("unfinished", "metrics.json", lines=lines)
    for number, runs in enumerate(([strange], [unfinished], [strange, unfinished, changed("usual")])):
        out = tmp_path / f"{number}.html"
        result = run("report", *runs, out)
        assert result.exit_code == 0, result.output
        page = Page(out)
        assert "nan" not in page.text.lower().replace("nanmean", "")
        for section in ("curves", "levels", "results"):
            assert page.sections[section]


def test_a_run_of_five_classes_is_drawn_with_its_top_5_of_100_percent(
    raw: Path, prepared: Path, tmp_path: Path
) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(SemanticTree.load(prepared / "tree.json").wnids[:5]))
    words = ("--classes", classes, "--val-per-class", 2, "--size", 32, "--max-reject-rate", 0.1, "--workers", 1)
    run_json("preprocess", "raw-tar", raw, tmp_path / "prepared", *words)
    shards, trained = tmp_path / "shards", tmp_path / "run"
    run_json("shard", tmp_path / "prepared", shards, "--workers", 1)
    words = ("--backend", "torch", "--set", "workers=1", "--set", "epochs=2", "--set", "batch_size=16")
    metrics = run_json("train", "--data", shards, "--out", trained, "--model", "resnet10t", *words)
    assert metrics["top5"] == 100
    run_json("report", trained, tmp_path / "out.html", "--data", shards, "--images", 1)
    page = Page(tmp_path / "out.html")
    assert page.rows("results")["top-5"] == ["100.00 %"]
    assert "100" in page.text.partition('aria-label="Top-5 over step"')[2].partition("</figure>")[0]


def test_a_run_of_other_classes_is_refused_alone_and_noted_beside_others(
    trained: Path, shards: Path, changed: Callable[..., Path], tmp_path: Path
) -> None:
    other = changed("other")
    tree = SemanticTree.load(other / "tree.json")
    SemanticTree(("n00000001", *tree.wnids[1:]), tree.names, tree.paths).save(other / "tree.json")
    alone = run("report", other, tmp_path / "out.html", "--data", shards)
    assert alone.exit_code == 2
    assert "does not know them all; give by --data the shards it was trained on" in alone.stderr
    assert run("report", trained, other, tmp_path / "out.html", "--data", shards, "--images", 0).exit_code == 0
    page = Page(tmp_path / "out.html")
    assert "does not know them all" in page.sections["classes"]
    assert "Best classes, run" in page.sections["classes"]


def test_a_run_of_several_labels_is_shown_by_its_mean_average_precision(
    changed: Callable[..., Path], shards: Path, tmp_path: Path
) -> None:
    path = changed(
        "labels",
        lines=lambda log: [{**line, "validation": {"map": 41.25}} if "validation" in line else line for line in log],
    )
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["data"]["label_sets"] = 5
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    run_json("report", path, tmp_path / "out.html")
    page = Page(tmp_path / "out.html")
    assert page.rows("results")["mAP"] == ["41.25 %"]
    assert "semantic" not in page.sections["results"]
    assert "None: images have several labels." in page.sections["levels"]
    for section in ("classes", "mistakes", "features"):
        assert "gives images several labels" in page.sections[section]
        assert "--data SHARDS" not in page.sections[section]
    result = run("report", path, tmp_path / "no.html", "--data", shards)
    assert "gives images several labels" in result.stderr


def test_a_run_of_several_labels_has_no_classes_to_confuse(
    labels_run: Path, trained: Path, shards: Path, tmp_path: Path
) -> None:
    data, image = labels_run.parent / "run-data", labels_run.parent / "val" / "0-0.png"
    for where in (data, data / "shards", shards):
        refused = run("report", labels_run, tmp_path / "no.html", "--data", where)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "gives images several labels" in refused.stderr
    assert list(tmp_path.iterdir()) == []
    run_json("report", labels_run, tmp_path / "one.html", "--look", image)
    (answer,) = run_json("predict", labels_run, image)
    likeliest = answer["top5"][0]
    message = f"{likeliest['name']} {100 * likeliest['probability']:.0f} %"
    assert message in Page(tmp_path / "one.html").sections["looks"]
    assert run("report", trained, labels_run, tmp_path / "both.html", "--data", shards, "--images", 2).exit_code == 0
    page = Page(tmp_path / "both.html")
    for section in ("classes", "features"):
        assert "gives images several labels" in page.sections[section]
    assert page.text.count('<ul class="pairs">') == 1
    assert page.text.count('<figure class="look ') == 2 * 3
    verdicts = re.findall(r'<figure class="look (\w*)"', page.text)
    assert [verdicts[place] for place in (2, 5)] == ["", ""]  # whose labels are none of the classes
    assert {verdicts[place] for place in (1, 4)} <= {"right", "wrong"}


def test_example_images_of_a_pair_are_those_that_were_so_confused(trained: Path, shards: Path, tmp_path: Path) -> None:
    saved, out = tmp_path / "answers.parquet", tmp_path / "out.html"
    measured = run_json("validate", trained, "--data", shards, "--save-predictions", saved)
    run_json("report", trained, out, "--data", shards, "--images", 0)
    predictions, tree, *_ = load_predictions(saved)
    data = open_dataset(shards)
    levels = [level for level, classes in enumerate(tree.classes_by_level) if len(classes) > 1]

    def answers(index: int, label: int, answer: int) -> bool:
        place = levels.index(tree.levels[label])
        return predictions.labels[index] == label and predictions.answers.levels[index, place] == answer

    part = out.read_text(encoding="utf-8").partition('<ul class="pairs">')[2].partition("</section>")[0]
    items = re.findall(r"<li><h4>(.*?)</h4>(.*?)</div></li>", part)
    assert len(items) == min(8, len(measured["confusions"])) > 0
    keys = pq.read_table(saved)["key"].to_pylist()
    for (title, shown), pair in zip(items, measured["confusions"], strict=False):
        label, answer = tree.find(pair["wnid"]), tree.find(pair["answer_wnid"])
        of_class = int((predictions.labels == label).sum())
        assert f"{pair['count']} of {of_class} image" in title
        wrong = [key for index, key in enumerate(keys) if answers(index, label, answer)]
        right = [key for index, key in enumerate(keys) if answers(index, answer, answer)]
        assert len(wrong) == pair["count"]
        pixels = read_images(data, data.split("val"), [*wrong[:4], *right[:3]])
        uris = [data_uri(Image.fromarray(pixel)) for pixel in pixels if pixel is not None]
        assert re.findall(r'src="(data:[^"]+)"', shown) == uris


def test_runs_of_one_name_are_told_apart() -> None:
    names = [name for name, _ in named([Path("/a/b/run"), Path("/a/c/run"), Path("/x"), Path("/a/b/run")])]
    assert names == ["run (1)", "c/run", "x", "run (4)"]


def test_the_largest_branches_are_coloured_and_opened_while_there_are_colours() -> None:
    # 0 holds 3 and 4, 3 holds 5 to 14.
    tree = SemanticTree.from_parents([f"n{i}" for i in range(15)], ["x"] * 15, [-1, -1, -1, 0, 0, *[3] * 10])
    assert coloured_branches(tree, [1] * 15) == [3, 1, 2, 4]
    assert coloured_branches(tree, [0, 9, 0, 0, 0, *[1] * 10]) == [3, 1]
