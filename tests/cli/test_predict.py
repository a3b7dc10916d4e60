"""predict: judged by what it prints and the files it leaves."""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageChops

from in21k.models import create_model
from in21k.models.export import save_weights, timm_config
from in21k.preprocess.classes.wordnet import WordNet

from .conftest import run, run_json

Draw, Encode, TarOf = Callable[..., Image.Image], Callable[..., bytes], Callable[..., bytes]


@pytest.fixture
def photos(tmp_path: Path, draw: Draw, encode: Encode, tar_of: TarOf) -> Path:
    """A folder: images in folders and in tars, a broken one, a note."""
    folder = tmp_path / "photos"
    (folder / "b" / "deep").mkdir(parents=True)
    inner = tar_of({"x.jpg": encode(draw(seed=1)), "note.txt": b"a note"})
    files = {
        "b/deep/one.JPEG": encode(draw(seed=2)),
        "b/two.png": encode(draw(60, 30, seed=3), "PNG"),
        "b.jpg": encode(draw(seed=4)),
        "a.webp": encode(draw(seed=5).convert("RGBA"), "WEBP"),
        "c.tar": tar_of(
            [("z.gif", encode(draw(seed=6), "GIF")), ("inner.tar", inner), ("a.jpg", encode(draw(seed=7)))]
        ),
        "broken.jpg": encode(draw(seed=8))[:300],
        "note.txt": b"no image",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


ORDER = ["a.webp", "b.jpg", "b/deep/one.JPEG", "b/two.png", "broken.jpg", "c.tar/z.gif", "c.tar/inner.tar/x.jpg"]
ORDER += ["c.tar/a.jpg"]


@pytest.fixture(scope="module")
def known_to_timm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """Make a folder that timm opens, of a network with random weights and some label space's number of outputs."""

    def make(num_classes: int) -> str:
        folder = tmp_path_factory.mktemp("timm")
        model = create_model("resnet10t", num_classes=num_classes)
        config: dict[str, Any] = timm_config(
            model,
            architecture="resnet10t",
            model_args={},
            image_size=32,
            crop_pct=0.9,
            normalize="imagenet",
            wnids=[],
            names=[],
        )
        config["num_classes"] = config["pretrained_cfg"]["num_classes"] = num_classes
        del config["pretrained_cfg"]["label_names"], config["pretrained_cfg"]["label_descriptions"]
        save_weights(model, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        return f"local-dir:{folder}"

    return make


def test_predict_goes_from_general_to_particular_and_draws_it(trained: Path, tmp_path: Path) -> None:
    upright, sideways = tmp_path / "upright.png", tmp_path / "rgba.webp"
    Image.radial_gradient("L").resize((120, 80)).convert("RGB").save(upright)
    Image.new("RGBA", (30, 50), "red").save(sideways)
    predictions = run_json("predict", trained, upright, sideways, "--picture", tmp_path / "out.png")
    assert [Path(prediction["image"]) for prediction in predictions] == [upright, sideways]
    wordnet = WordNet.packaged()
    for prediction in predictions:
        assert set(prediction) == {"image", "levels", "chain", "top5"}
        levels = [answer["level"] for answer in prediction["levels"]]
        assert levels == sorted(levels)
        assert prediction["chain"] == prediction["levels"][: len(prediction["chain"])]
        assert len(prediction["top5"]) == 5
        for answer in prediction["levels"] + prediction["top5"]:
            assert answer["definition"] == wordnet.definition(answer["wnid"])
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.height > 500
    text = run("predict", trained, upright).stdout
    assert str(upright) in text
    assert predictions[0]["chain"][-1]["definition"] in text


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_folders_and_tars_come_in_byte_order_and_broken_images_are_skipped(
    trained: Path, photos: Path, batch_size: int
) -> None:
    result = run("predict", trained, photos, photos / "b.jpg", "--json", "--batch-size", batch_size, "--workers", 2)
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [row["image"] for row in rows] == [f"{photos}/{name}" for name in [*ORDER, "b.jpg"]]
    assert [row["image"] for row in rows if "error" in row] == [f"{photos}/broken.jpg"]
    (message,) = [line for line in result.stderr.splitlines() if "broken.jpg" in line]
    assert "undecodable" in message
    for one, other in zip(rows[1]["top5"], rows[-1]["top5"], strict=True):  # the same image, in another batch
        assert one["probability"] == pytest.approx(other["probability"], rel=1e-4)


def test_lines_table_and_document_say_the_same(trained: Path, photos: Path, tmp_path: Path) -> None:
    rows = run_json("predict", trained, photos)
    lines = run("predict", trained, photos, "--jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == rows
    done = run("predict", trained, photos, "--out", tmp_path / "out.parquet")
    assert done.stdout.strip().endswith("8 images, 1 of them unreadable")
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["image"] for row in table] == [row["image"] for row in rows]
    for stored, row in zip(table, rows, strict=True):
        assert stored["error"] == row.get("error")
        for name in ("levels", "chain", "top5"):
            for one, other in zip(stored[name] or [], row.get(name, []), strict=True):
                assert one == {**other, "probability": pytest.approx(other["probability"], rel=1e-6)}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.parquet"]


def test_a_table_is_whole_or_not_there_and_replaces_only_its_own(trained: Path, photos: Path, tmp_path: Path) -> None:
    out, words = tmp_path / "out.parquet", ("predict", trained, photos / "b.jpg", "--out", tmp_path / "out.parquet")
    failed = run("predict", trained, photos / "broken.jpg", photos / "note.txt", "--out", out)
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert "broken.jpg: undecodable" in failed.stderr
    assert "nor could the other 1" in failed.stderr
    assert not out.exists()
    assert run(*words).exit_code == 0
    assert "--overwrite" in run(*words).stderr
    assert run(*words, "--overwrite").exit_code == 0
    out.write_text("years of work")
    assert "not a Parquet table of in21k" in run(*words, "--overwrite").stderr
    assert out.read_text() == "years of work"
    assert "ends in .parquet" in run("predict", trained, photos / "b.jpg", "--out", tmp_path / "out.csv").stderr


def test_a_mirror_image_has_the_same_answer_with_tta(trained: Path, photos: Path, tmp_path: Path, draw: Draw) -> None:
    image = draw(64, 64, seed=9)
    image.save(tmp_path / "one.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "other.png")
    one, other = run_json("predict", trained, tmp_path / "one.png", tmp_path / "other.png", "--tta")
    for mine, its in zip(one["top5"], other["top5"], strict=True):
        assert mine["probability"] == pytest.approx(its["probability"], rel=1e-2)


def test_the_picture_of_a_folder_shows_the_first_few_dozen(
    trained: Path, tmp_path: Path, draw: Draw, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("in21k.cli.predict.MAX_PICTURES", 5)
    (tmp_path / "many").mkdir()
    for number in range(7):
        (tmp_path / "many" / f"{number}.jpg").write_bytes(encode(draw(seed=number)))
    assert run("predict", trained, tmp_path / "many", "--picture", tmp_path / "p.png").exit_code == 0
    assert run("predict", trained, tmp_path / "many" / "0.jpg", "--picture", tmp_path / "one.png").exit_code == 0
    with Image.open(tmp_path / "p.png") as many, Image.open(tmp_path / "one.png") as one:
        assert many.width == 3 * one.width  # the five in two rows
        assert one.height < many.height < 4 * one.height
    (tmp_path / "many" / "0.jpg").rename(tmp_path / "many" / "by another name.jpg")
    named = tmp_path / "many" / "by another name.jpg"
    assert run("predict", trained, named, "--picture", tmp_path / "named.png").exit_code == 0
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "named.png") as other:
        left, *_, right, bottom = ImageChops.difference(one, other).getbbox() or ()
        assert left > 32
        assert right < 32 + 480  # the name under the image, and nothing else
        assert bottom <= one.height


def test_a_timm_model_of_imagenet21k_gets_its_tree(known_to_timm: Callable[[int], str], photos: Path) -> None:
    (row,) = run_json("predict", known_to_timm(10_450), photos / "b.jpg")
    assert [answer["level"] for answer in row["levels"]] == list(range(11))
    assert row["top5"][0]["definition"]
    assert all(answer["wnid"].startswith("n") for answer in row["levels"] + row["top5"])


def test_a_timm_model_of_other_classes_gives_the_five_likeliest(
    known_to_timm: Callable[[int], str], photos: Path
) -> None:
    (row,) = run_json("predict", known_to_timm(1000), photos / "b.jpg")
    assert (row["levels"], row["chain"], len(row["top5"])) == ([], [], 5)
    assert all(answer["definition"] for answer in row["top5"])
    name = known_to_timm(10)
    (row,) = run_json("predict", name, photos / "b.jpg")
    assert {answer["wnid"] for answer in row["top5"]} == {None}
    assert "class " in run("predict", name, photos / "b.jpg").stdout


def test_a_link_in_a_tar_is_said_and_the_images_behind_it_are_answered(
    trained: Path, tmp_path: Path, tar_of: TarOf, draw: Draw, encode: Encode
) -> None:
    link = tarfile.TarInfo("b.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
    (tmp_path / "x.tar").write_bytes(tar_of({"a.jpg": encode(draw()), "b.jpg": link, "c.jpg": encode(draw())}))
    result = run("predict", trained, tmp_path / "x.tar", "--json")
    rows = json.loads(result.stdout)
    assert [Path(row["image"]).name for row in rows if "error" not in row] == ["a.jpg", "c.jpg"]
    assert "x.tar/b.jpg: not a regular file" in result.stderr


def test_files_of_other_kinds_are_counted_at_the_end(
    trained: Path, photos: Path, tmp_path: Path, encode: Encode, draw: Draw
) -> None:
    for name in ("scan.tif", "scan.TIF", "b/more.tiff", "b/list", "b/list.csv"):
        (photos / name).write_bytes(encode(draw(), "TIFF"))
    result = run("predict", trained, photos, "--jsonl")
    assert len(result.stdout.splitlines()) == 8
    last = "skipped, as their names are not those of images: 7 files (.tif 2, .txt 2, no suffix 1, ...)"
    assert result.stderr.splitlines()[-1] == last
    assert "skipped" not in run("predict", trained, photos / "b.jpg").stderr
    (tmp_path / "scans").mkdir()
    (photos / "scan.tif").rename(tmp_path / "scans" / "scan.tif")
    alone = run("predict", trained, tmp_path / "scans")
    assert alone.exit_code == 2
    assert "no image in the paths given, but 1 file (.tif 1); wanted JPEG, PNG, GIF" in alone.stderr


def test_a_name_with_a_line_break_stays_in_its_line(
    trained: Path, labels_run: Path, tmp_path: Path, encode: Encode, draw: Draw
) -> None:
    (tmp_path / "a\nswan\x1b[2J.jpg").write_bytes(encode(draw()))
    (tmp_path / "b\nbroken.jpg").write_bytes(b"junk")
    for model in (trained, labels_run):
        result = run("predict", model, tmp_path)
        assert result.stdout.startswith(f"{tmp_path}/a\\nswan\\x1b[2J.jpg: ")
        assert "swan" not in result.stdout.partition("\n")[2]
        assert result.stderr == f"{tmp_path}/b\\nbroken.jpg: not an image; wanted JPEG, PNG, GIF, BMP, WEBP; skipped\n"
    (row, _) = json.loads(run("predict", trained, tmp_path, "--json").stdout)
    assert row["image"] == f"{tmp_path}/a\nswan\x1b[2J.jpg"


def test_our_limit_on_pixels_decides_alone(trained: Path, tmp_path: Path, encode: Encode, draw: Draw) -> None:
    for side in (9_600, 10_200):  # of 92 and 104 million pixels: Pillow warns of both
        (tmp_path / f"{side}.png").write_bytes(encode(Image.new("1", (side, side)), "PNG"))
    (tmp_path / "small.jpg").write_bytes(encode(draw()))
    result = run("predict", trained, tmp_path, "--jsonl")  # a warning would be an error here
    errors = {Path(row["image"]).name: row.get("error") for row in map(json.loads, result.stdout.splitlines())}
    assert errors == {
        "9600.png": None,
        "10200.png": "too large: 10200x10200 pixels, over 100,000,000",
        "small.jpg": None,
    }
    assert "Warning" not in result.stderr


@pytest.fixture
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a line of progress written for every image."""
    monkeypatch.setattr("in21k.cli.progress.PLAIN_SECONDS", 0.0)


@pytest.mark.usefixtures("every_line")
def test_progress_shows_the_share_done_and_the_time_left(trained: Path, photos: Path) -> None:
    (photos / "c.tar").rename(photos.parent / "c.tar")
    lines = run("predict", trained, photos, photos / "note.txt", "--json").stderr.splitlines()
    shown = [line for line in lines if line.startswith("predict ")]
    assert [line.partition(",")[0] for line in shown] == [f"predict {share} %" for share in (17, 33, 50, 67, 83, 100)]
    assert all(line.endswith(" left") for line in shown)
    assert "MB/s" not in "".join(shown)
    lines = run("predict", trained, photos, photos.parent / "c.tar", "--json").stderr.splitlines()
    shown = [line for line in lines if line.startswith("predict, ")]
    assert [line.split(", ")[1] for line in shown] == [f"{number} images" for number in range(1, 9)]
    assert all(line.endswith(", of 5 and those in 1 tars") for line in shown)


def test_of_several_labels_those_that_are_present_are_named(labels_run: Path, tmp_path: Path) -> None:
    images = [labels_run.parent / "val" / f"{place}-0.png" for place in range(4)]
    rows = run_json("predict", labels_run, *images, "--picture", tmp_path / "p.png", "--out", tmp_path / "o.parquet")
    every = run_json("predict", labels_run, *images, "--threshold", 0)
    names = {"red", "warm", "green", "blue", "cold"}
    for row, whole in zip(rows, every, strict=True):
        assert set(row) == {"image", "labels", "top5"}
        assert {answer["name"] for answer in row["top5"]} == {answer["name"] for answer in whole["labels"]} == names
        assert row["labels"] == [answer for answer in whole["labels"] if answer["probability"] >= 0.5]
        assert row["top5"] == whole["top5"] == whole["labels"]
    assert sum(answer["probability"] for answer in every[0]["labels"]) != pytest.approx(1, abs=0.01)  # no softmax
    assert {answer["name"] for answer in rows[0]["top5"][:2]} == {"red", "warm"}
    assert rows[1]["top5"][0]["name"] == "green"
    lines = run("predict", labels_run, *images, "--jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == rows
    table = pq.read_table(tmp_path / "o.parquet")
    assert table.column_names == ["image", "labels", "top5", "error"]
    for stored, row in zip(table.to_pylist(), rows, strict=True):
        for name in ("labels", "top5"):
            assert [{**one, "probability": pytest.approx(one["probability"], rel=1e-6)} for one in row[name]] == stored[
                name
            ]
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.height > 500
    text = run("predict", labels_run, images[0], "--threshold", 1).stdout
    assert f"{images[0]}: no label is likely enough\n" in text
    assert "likeliest of all labels: " in text
    assert (
        f"{images[0]}: {rows[0]['top5'][0]['name']} " in run("predict", labels_run, images[0], "--threshold", 0).stdout
    )


def test_labels_of_a_flip_are_those_of_the_mirror_image(labels_run: Path, tmp_path: Path, draw: Draw) -> None:
    image = draw(32, 32, seed=9)
    image.save(tmp_path / "one.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "other.png")
    words = ("predict", labels_run, tmp_path / "one.png", tmp_path / "other.png", "--threshold", 0)
    one, other = run_json(*words, "--tta")
    plain, mirrored = run_json(*words)
    assert [label["name"] for label in one["labels"]] == [label["name"] for label in other["labels"]]
    logit = {}
    for row in (plain, mirrored, one):
        for label in row["labels"]:
            logit.setdefault(label["name"], []).append(math.log(label["probability"] / (1 - label["probability"])))
    for first, second, both in logit.values():
        assert both == pytest.approx((first + second) / 2, abs=1e-3)


def test_an_export_of_several_labels_answers_as_its_run(labels_run: Path, tmp_path: Path) -> None:
    run_json("export", labels_run, tmp_path / "export")
    image = labels_run.parent / "val" / "0-0.png"
    for model in (tmp_path / "export", labels_run / "checkpoints" / "last.pt"):
        assert run_json("predict", model, image) == run_json("predict", labels_run, image)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere.jpg",), "nowhere.jpg: does not exist"),
        ((".",), "no image in the paths given"),
        ((".", "--json", "--jsonl"), "give one of them"),
        ((".", "--picture", "out.jpg"), "ends in .png"),
        ((".", "--out", "no/out.parquet"), "the folder no does not exist"),
        ((".", "--weights", "ema"), "was trained without a moving average"),
        ((".", "--threshold", "0.3"), "the threshold 0.3 goes with networks for images of several labels"),
        ((".", "--threshold", "1.3"), "1.3 is not in the range 0<=x<=1"),
        ((".", "--batch-size", "99999999999999999999"), "is not in the range 1<=x<=65536"),
        ((".", "--batch-size", "0"), "0 is not in the range 1<=x<=65536"),
    ],
)
def test_words_that_do_not_fit_are_named(
    words: tuple[str, ...], message: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("predict", trained, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_weights_are_those_of_runs(known_to_timm: Callable[[int], str], photos: Path) -> None:
    result = run("predict", known_to_timm(10), photos, "--weights", "ema")
    assert result.exit_code == 2
    assert "--weights ema goes with runs" in result.stderr
