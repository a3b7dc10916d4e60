"""export and average: folders that timm, onnxruntime, the hub and in21k itself open."""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import yaml
from PIL import Image

from in21k.training import load_run
from in21k.training.runs.checkpoint import load_checkpoint

from .conftest import run, run_json

torch.set_num_threads(1)  # the networks are small, and the tests' processes share the cores

HOLDS = {
    *("README.md", "SHA256SUMS", "config.json", "config.yaml", "export.json", "metrics.json"),
    *("model.safetensors", "tree.json"),
}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder as another process does that writes to it."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def logits_of(model: torch.nn.Module, num_images: int = 3) -> torch.Tensor:
    images = torch.rand(num_images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model.eval()(images)


@pytest.fixture(scope="module")
def short_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a network for a step or a few, with other settings as `--set` takes them; each once."""
    made: dict[tuple[str, ...], Path] = {}

    def short_run(*sets: str) -> Path:
        if sets not in made:
            out = tmp_path_factory.mktemp("run") / "run"
            always = ("backend=torch", "workers=1", "batch_size=16", "trackers=[]")
            words = [word for item in (*always, *sets) for word in ("--set", item)]
            run_json("train", "--data", shards, "--out", out, "--device", "cpu", *words)
            made[sets] = out
        return made[sets]

    return short_run


@pytest.fixture(scope="module")
def averaged_run(short_run: Callable[..., Path]) -> Path:
    """A run of several epochs with a moving average, whose checkpoints stay."""
    return short_run("model=resnet10t", "epochs=3", "ema=0.5", "keep_last=3")


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    run_json("export", trained, out)
    return out


@pytest.mark.parametrize(
    "sets",
    [
        ("model=resnet10t", "max_steps=1"),
        ("model=vit_tiny_patch16_224", "model_args={img_size: 32, depth: 2}", "max_steps=1"),
        ("model=ofa_flops_595m_s", "max_steps=1"),
    ],
    ids=["convolutions", "attention", "ours"],
)
def test_timm_onnxruntime_and_load_run_give_the_runs_logits(
    sets: tuple[str, ...], short_run: Callable[..., Path], tmp_path: Path
) -> None:
    import onnxruntime

    source, out = short_run(*sets), tmp_path / "out"
    result = run_json("export", source, out, "--onnx")
    wanted = logits_of(load_run(source).model)
    assert torch.equal(logits_of(timm.create_model(f"local-dir:{out}", pretrained=True)), wanted)
    assert torch.equal(logits_of(load_run(out).model), wanted)
    assert names_in(out) == HOLDS | {"model.onnx"}
    check = result["onnx_check"]
    assert 0 < check["largest_difference"] <= 1e-4 * check["largest_logit"]
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    for num_images in (1, 5):  # any batch
        images = torch.rand(num_images, 3, 32, 32)
        (given,) = session.run(["logits"], {"images": images.numpy()})
        with torch.inference_mode():
            assert torch.allclose(torch.from_numpy(given), load_run(source).model(images), atol=1e-4)
    # What torch knows of this machine's source files stays here.
    assert str(Path(torch.__file__).parent).encode() not in (out / "model.onnx").read_bytes()


def test_an_export_holds_what_it_says_and_no_optimizer(trained: Path, exported: Path) -> None:
    assert names_in(exported) == HOLDS
    assert names_in(exported.parent) == {"out"}
    lines = (exported / "SHA256SUMS").read_text().splitlines()
    sums = dict(reversed(line.split("  ")) for line in lines)
    assert set(sums) == HOLDS - {"SHA256SUMS"}
    for name, checksum in sums.items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == checksum
    tensors = safetensors.torch.load_file(exported / "model.safetensors")
    assert set(tensors) == set(load_run(trained).model.state_dict())
    config = json.loads((exported / "config.json").read_text())
    assert config["pretrained_cfg"]["label_names"] == list(load_run(trained).tree.wnids)
    assert load_run(exported).tree == load_run(trained).tree


def test_in21k_validates_and_predicts_with_an_export(
    trained: Path, exported: Path, shards: Path, tmp_path: Path
) -> None:
    output = run_json("validate", exported, "--data", shards, "--backend", "torch")
    assert output["semantic_top1"] == json.loads((trained / "metrics.json").read_text())["semantic_top1"]
    Image.effect_noise((50, 40), 80).save(tmp_path / "photo.png")
    of_run, of_export = (
        run_json("predict", item, tmp_path / "photo.png", "--device", "cpu") for item in (trained, exported)
    )
    assert of_export == of_run
    assert len(of_run[0]["top5"]) == 5


def test_the_card_tells_of_this_network_and_its_code_runs(
    exported: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (exported / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "timm"
    assert yaml.safe_load(head)["license"] == "other"
    metrics = json.loads((trained / "metrics.json").read_text())
    assert f"| semantic top-1 | {metrics['semantic_top1']:.1f} % |" in body
    assert "terms of access" in body
    assert "distilled" not in body
    code = re.search(r"```python\n(.*?)```", body, re.DOTALL)
    assert code
    Image.new("RGB", (50, 40), "green").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        exec(code[1].replace("hf-hub:USER/NAME", f"local-dir:{exported}"), {})
    assert stream.getvalue().split()[0] in load_run(trained).tree.wnids


def test_an_export_teaches_and_begins_a_training_as_its_run_does(
    averaged_run: Path, shards: Path, short_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("in21k.training.distill.AT_CHANCE", -1.0)  # seconds of training make no good teacher
    export = tmp_path / "export"
    run_json("export", averaged_run, export, "--weights", "ema")
    taught = [short_run("model=resnet10t", "max_steps=1", f"teacher={item}") for item in (averaged_run, export)]
    of_run, of_export = (yaml.safe_load((item / "config.yaml").read_text())["data"] for item in taught)
    assert of_run["teacher_weights"]  # and its classes and normalisation
    assert of_export == of_run
    words = ("--backend", "torch", "--device", "cpu", "--set", "max_steps=1", "--set", "lr=1e-9", "--set", "workers=1")
    run_json("finetune", "--init", export, "--data", shards, "--out", tmp_path / "begun", *words)
    begun, kept = (load_run(item).model.get_parameter("fc.weight") for item in (export, tmp_path / "begun"))
    torch.testing.assert_close(kept, begun, rtol=1e-4, atol=1e-6)


def test_a_runs_file_of_weights_is_the_run(trained: Path, shards: Path) -> None:
    words = ("--data", shards, "--device", "cpu", "--backend", "torch", "--workers", 1)
    by_file, by_folder = (run_json("validate", model, *words) for model in (trained / "model.safetensors", trained))
    assert by_file == by_folder


def test_paths_of_this_machine_stay_here_and_a_teacher_is_told_of(
    trained: Path, short_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("in21k.training.distill.AT_CHANCE", -1.0)  # seconds of training make no good teacher
    init, teacher = f"init={trained / 'model.safetensors'}", f"teacher={trained}"
    source, out = short_run("model=resnet10t", "max_steps=1", init, teacher), tmp_path / "out"
    run_json("export", source, out)
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["init"], config["teacher"]) == ("model.safetensors", "run")
    card = (out / "README.md").read_text()
    assert "distilled from the teacher `run`" in card
    assert "seen the images of this validation split" in " ".join(card.split())
    for name in HOLDS - {"model.safetensors"}:
        assert str(trained.parent) not in (out / name).read_text()
        assert str(source.parent) not in (out / name).read_text()


@pytest.mark.parametrize("weights", ["last", "best", "ema"])
def test_each_kind_of_weights_comes_with_its_own_metrics(
    weights: str, averaged_run: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_json("export", averaged_run, out, "--weights", weights)
    assert torch.equal(logits_of(load_run(out).model), logits_of(load_run(averaged_run, weights).model))  # pyright: ignore
    metrics = json.loads((out / "metrics.json").read_text())
    measured = run_json("validate", averaged_run, "--weights", weights, "--data", shards, "--backend", "torch")
    assert metrics["semantic_top1"] == pytest.approx(measured["semantic_top1"])
    assert not {"ema", "best_semantic_top1"} & set(metrics)
    best = load_checkpoint(averaged_run / "checkpoints" / "best.pt")["position"]["epoch"]
    assert metrics["num_epochs"] == (best if weights == "best" else 3)
    assert yaml.safe_load((out / "config.yaml").read_text())["ema"] is None


def test_a_checkpoint_that_was_not_validated_has_no_metrics(shards: Path, averaged_run: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(averaged_run / "checkpoints" / "last.pt", tmp_path / "alone.pt"))
    run_json("export", alone, tmp_path / "out")
    assert set(json.loads((tmp_path / "out" / "metrics.json").read_text())) == {"num_epochs", "num_steps"}
    assert "Nothing was measured" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_of_weights_from_amid_a_training_says_so(trained: Path, averaged_run: Path, tmp_path: Path) -> None:
    steps = sorted((averaged_run / "checkpoints").glob("step-*.pt"))
    for number, checkpoint in enumerate(steps, start=1):
        out = tmp_path / str(number)
        run_json("export", checkpoint, out)
        assert (f"{number} of 3 epochs were done" in (out / "README.md").read_text()) is (number < 3)


def test_an_export_of_several_labels_says_so_and_answers_as_its_run_does(
    labels_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, image = tmp_path / "out", labels_run.parent / "val" / "0-0.png"
    run_json("export", labels_run, out)
    card = (out / "README.md").read_text()
    assert "# resnet10t, 5 labels" in card
    assert "| mAP |" in card
    assert "semantic tree" not in card
    assert "WordNet 3.0's" not in card
    request = ("--threshold", 0, "--device", "cpu")
    (of_run,), (of_folder,), (of_timm,) = (
        run_json("predict", model, image, *request) for model in (labels_run, out, f"local-dir:{out}")
    )
    assert of_folder == of_run
    for label, wanted in zip(of_timm["labels"], of_run["labels"], strict=True):
        assert (label["name"], label["probability"]) == (wanted["name"], pytest.approx(wanted["probability"], abs=1e-5))
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code
    Image.open(image).convert("RGB").save(tmp_path / "photo.jpg", quality=100, subsampling=0)
    monkeypatch.chdir(tmp_path)
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        exec(code[1].replace("hf-hub:USER/NAME", f"local-dir:{out}").replace(">= 0.5", ">= 0"), {})
    assert {line.split()[0] for line in stream.getvalue().splitlines()} == {row["name"] for row in of_run["labels"]}


def test_a_file_that_was_changed_is_named(exported: Path, trained: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(exported, tmp_path / "out"))
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    refused = run("export", trained, out)
    assert refused.exit_code == 2
    assert "model.safetensors is not what was exported" in refused.stderr
    run_json("export", trained, out, "--overwrite")
    run_json("export", trained, out)


def test_the_same_again_says_so_and_anything_else_is_refused(
    trained: Path,
    exported: Path,
    tmp_path: Path,
    files_of: Callable[[Path], dict[str, bytes]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = Path(shutil.copytree(exported, tmp_path / "out"))
    before = files_of(out)
    with caplog.at_level(logging.INFO):
        again = run_json("export", trained, out)
    assert "finished already" in caplog.text
    assert files_of(out) == before
    assert again["fingerprint"] == json.loads(before["export.json"])["fingerprint"]
    refused = run("export", trained, out, "--license", "apache-2.0")
    assert refused.exit_code == 2
    assert "license 'other' -> 'apache-2.0'" in refused.stderr
    assert files_of(out) == before
    assert run("export", trained, out, "--license", "apache-2.0", "--overwrite").exit_code == 0
    assert "license: apache-2.0" in (out / "README.md").read_text()
    assert names_in(tmp_path) == {"out"}


def test_an_export_that_fails_leaves_nothing_and_the_older_one(
    trained: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(exported, tmp_path / "out"))
    monkeypatch.setattr("in21k.models.onnx_file.TOLERANCE", 0.0)  # no two ways of computing agree to the bit
    for folder in (out, tmp_path / "new"):
        refused = run("export", trained, folder, "--onnx", "--overwrite")
        assert refused.exit_code == 2
        assert "from the network's" in refused.stderr
    assert names_in(tmp_path) == {"out"}
    assert names_in(out) == HOLDS


def test_what_a_killed_export_left_is_cleared_and_two_at_once_are_refused(trained: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.in21k-new"
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"half")
    with locked(left):
        assert "another in21k is writing there" in run("export", trained, tmp_path / "out").stderr
    assert run("export", trained, tmp_path / "out").exit_code == 0
    assert names_in(tmp_path / "out") == HOLDS
    assert names_in(tmp_path) == {"out"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("NOWHERE", "OUT"), "does not exist"),
        (("RUN", "NOWHERE/OUT"), "does not exist; create it first"),
        (("RUN", "NOTES"), "holds other files"),
        (("RUN", "NOTES", "--overwrite"), "holds other files"),
        (("RUN", "OUT", "--weights", "ema"), "without a moving average"),
        (("RUN", "OUT", "--public"), "--push"),
        (("RUN", "OUT", "--license", "my own"), "wanted a licence as the hub names it"),
        (("RUN", "OUT", "--push", "me"), "wanted USER/NAME"),
        (("RUN", "OUT", "--push", "me/-net"), "wanted USER/NAME"),
        (("RUN", "OUT", "--push", "me/net"), "HF_TOKEN"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    words: tuple[str, ...], message: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    notes = tmp_path / "NOTES"
    notes.mkdir()
    (notes / "note.txt").write_text("years of work")
    refused = run("export", *(trained if word == "RUN" else word for word in words))
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert refused.stderr.startswith("in21k: ")
    assert names_in(tmp_path) == {"NOTES"}
    assert names_in(notes) == {"note.txt"}


class Hub:
    """A server that answers as the Hugging Face hub does to those who upload, and keeps what it is sent."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hub.tokens.add(self.headers["Authorization"])
                status, answer = hub.answer(self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str, body: bytes) -> tuple[int, object]:
        if self.refuses:
            return 403, {"error": "this token cannot write"}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return 200, {"url": f"{self.url}/me/net"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/models/me/net/preupload/main":
            request = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False}  # all within the commit, also what is large
            return 200, {"files": [{"path": item["path"], **plain} for item in request]}
        if path == "/api/models/me/net/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitUrl": f"{self.url}/me/net/commit/1", "commitOid": "1", "hookOutput": ""}
        return 404, {"error": path}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, which huggingface_hub takes for the hub, and a token for it."""
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    thread = threading.Thread(target=hub.server.serve_forever)
    thread.start()
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


@pytest.mark.parametrize("public", [False, True])
def test_a_push_sends_every_file_of_the_folder(
    public: bool, hub: Hub, trained: Path, tmp_path: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    out = tmp_path / "out"
    result = run_json("export", trained, out, "--push", "me/net", *(["--public"] if public else []))
    assert hub.files == files_of(out)
    assert hub.tokens == {"Bearer hf_secret"}
    (made,) = hub.created
    assert (made["organization"], made["name"]) == ("me", "net")
    assert made["visibility"] == ("public" if public else "private")
    assert result["pushed_to"] == f"{hub.url}/me/net"


def test_what_the_hub_refuses_is_said_and_the_folder_stays(hub: Hub, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hub.refuses = True
    refused = run("export", trained, out, "--push", "me/net")
    assert refused.exit_code == 2
    assert "this token cannot write" in refused.stderr
    assert "hf_secret" not in refused.stderr
    assert names_in(out) == HOLDS
    hub.refuses = False
    assert run("export", trained, out, "--push", "me/net").exit_code == 0
    assert set(hub.files) == HOLDS


def test_an_average_is_the_mean_of_the_weights_and_opens_as_an_export(
    averaged_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps, out = sorted((averaged_run / "checkpoints").glob("step-*.pt")), tmp_path / "out"
    assert len(steps) == 3
    result = run_json("average", *steps, out)
    assert result["num_averaged"] == 3
    states = [load_run(path).model.state_dict() for path in steps]
    mean = load_run(out).model.state_dict()
    for name, tensor in mean.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, torch.stack([state[name] for state in states]).mean(0), atol=1e-6)
        else:
            assert torch.equal(tensor, states[-1][name])
    opened = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert torch.equal(logits_of(opened), logits_of(load_run(out).model))
    card = (out / "README.md").read_text()
    assert "mean of those of 3 checkpoints" in card
    assert "update_bn" in card
    assert names_in(out) == HOLDS
    with caplog.at_level(logging.INFO):
        assert run_json("average", *steps, out) == result
    assert "finished already" in caplog.text


def test_what_is_not_of_one_kind_is_not_averaged(
    trained: Path, short_run: Callable[..., Path], raw: Path, tmp_path: Path
) -> None:
    other = short_run("model=vit_tiny_patch16_224", "model_args={img_size: 32, depth: 2}", "max_steps=1")
    refused = run("average", trained, other, tmp_path / "out")
    assert refused.exit_code == 2
    assert "model 'resnet10t' -> 'vit_tiny_patch16_224'" in refused.stderr
    renamed = Path(shutil.copytree(trained, tmp_path / "renamed"))
    tree = (renamed / "tree.json").read_text()
    (renamed / "tree.json").write_text(tree.replace(load_run(trained).tree.wnids[0], "n00000001"))
    assert "classes" in run("average", trained, renamed, tmp_path / "out").stderr
    assert "two networks or more" in run("average", trained, tmp_path / "out").stderr
    assert names_in(tmp_path) == {"renamed"}


@pytest.mark.parametrize("name", ["model.safetensors", "SHA256SUMS"])
def test_a_disk_that_takes_no_more_is_one_line_that_names_the_file(
    trained: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Path.write_bytes if name == "model.safetensors" else Path.write_text

    def full(self: Path, *words: Any, **options: Any) -> int:
        if self.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")  # as write(2) says it: without a name
        return written(self, *words, **options)

    monkeypatch.setattr(Path, written.__name__, full)
    refused = run("export", trained, tmp_path / "out")
    assert refused.exit_code == 2
    lines = [line for line in refused.stderr.splitlines() if line.startswith("in21k: ")]
    assert len(lines) == 1
    assert f"{name}: No space left on device; make room" in lines[0]
    assert list(tmp_path.iterdir()) == []
