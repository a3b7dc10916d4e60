"""predict: judged by what it prints and the files it leaves."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from in21k.cli.image_sources import image_sources
from in21k.models import create_model, save_weights, timm_config
from in21k.preprocess.wordnet import WordNet
from in21k.training import UnreadableImageError

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
def test_folders_and_tars_come_in_byte_order_and_broken_images_are_passed_over(
    trained: Path, photos: Path, batch_size: int
) -> None:
    result = run("predict", trained, photos, photos / "b.jpg", "--json", "--batch-size", batch_size, "--workers", 2)
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [row["image"] for row in rows] == [f"{photos}/{name}" for name in [*ORDER, "b.jpg"]]
    assert [row["image"] for row in rows if "error" in row] == [f"{photos}/broken.jpg"]
    (said,) = [line for line in result.stderr.splitlines() if "broken.jpg" in line]
    assert "undecodable" in said
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
    assert "not written by in21k" in run(*words, "--overwrite").stderr
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


def test_a_damaged_tar_gives_what_comes_before_the_damage(
    tmp_path: Path, tar_of: TarOf, draw: Draw, encode: Encode
) -> None:
    whole = tar_of({f"{number}.jpg": encode(draw(seed=number)) for number in range(4)})
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 4])
    (tmp_path / "packed.tgz").write_bytes(gzip.compress(whole))
    (tmp_path / "text.tar").write_text("no tar")
    (tmp_path / "last.jpg").write_bytes(b"")
    names = ["cut.tar", "text.tar", "packed.tgz", "last.jpg"]
    found = list(image_sources(tmp_path / name for name in names))
    broken = [Path(each.name).name for each in found if isinstance(each.picture, UnreadableImageError)]
    assert broken == ["cut.tar", "text.tar"]
    assert found[0].name == str(tmp_path / "cut.tar/0.jpg")
    assert found[0].picture == encode(draw(seed=0))
    assert [each.name for each in found[-5:]] == [
        *(f"{tmp_path}/packed.tgz/{number}.jpg" for number in range(4)),
        f"{tmp_path}/last.jpg",
    ]


def test_a_link_that_leads_back_up_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "x.jpg").write_bytes(b"")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    names = [Path(source.name).relative_to(tmp_path) for source in image_sources([tmp_path])]
    assert list(map(str, names)) == ["a/x.jpg", "b/x.jpg", "\\xff.jpg"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere.jpg",), "nowhere.jpg: does not exist"),
        ((".",), "there is no image in what was named"),
        ((".", "--json", "--jsonl"), "give one of them"),
        ((".", "--picture", "out.jpg"), "ends in .png"),
        ((".", "--out", "no/out.parquet"), "there is no folder no"),
        ((".", "--weights", "ema"), "was trained without a moving average"),
    ],
)
def test_words_that_do_not_fit_are_named(
    words: tuple[str, ...], said: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("predict", trained, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_weights_are_those_of_runs(known_to_timm: Callable[[int], str], photos: Path) -> None:
    result = run("predict", known_to_timm(10), photos, "--weights", "ema")
    assert result.exit_code == 2
    assert "--weights ema goes with runs" in result.stderr
