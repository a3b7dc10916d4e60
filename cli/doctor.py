"""`in21k doctor`: what is installed, what is accelerated, what to install."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import click

from .options import emit, json_option

PACKAGES = {
    "torch": "",
    "torchvision": "",
    "timm": "",
    "click": "",
    "huggingface_hub": "",
    "numpy": "",
    "pyarrow": "",
    "pyyaml": "",
    "nltk": "",
    "rapidgzip": "",
    "safetensors": "",
    "scikit-learn": "",
    "pillow": "",
    "pillow-simd": "",
    "simplejpeg": "",
    "cykooz-resizer": "preprocessing then resizes with Pillow's own code: pip install cykooz-resizer",
    "opencv-python-headless": "`--resizer opencv`: pip install 'in21k[opencv]'",
    "torchmetrics": "",
    "tensorboard": "",
    "fsspec": "shards at URLs: pip install 'in21k[remote]'",
    "aiohttp": "shards at https://…: pip install 'in21k[remote]'",
    "s3fs": "shards at s3://…: pip install 'in21k[remote]'",
    "onnx": "`in21k export --onnx`: pip install 'in21k[onnx]'",
    "onnxruntime": "`in21k export --onnx`: pip install 'in21k[onnx]'",
    "onnxscript": "`in21k export --onnx`: pip install 'in21k[onnx]'",
    "ray": "`preprocess --engine ray`: pip install 'in21k[ray]'",
    "wandb": "`--set trackers=[wandb]`: pip install 'in21k[wandb]'",
    "mlflow": "`--set trackers=[mlflow]`: pip install 'in21k[mlflow]'",
    "webdataset": "the webdataset backend, for streams of URLs: pip install 'in21k[webdataset]'",
    "nvidia-dali-cuda130": "the DALI backends, CUDA 13: pip install 'in21k[dali-cuda130]'",
    "nvidia-dali-cuda120": "the DALI backends, CUDA 12: pip install 'in21k[dali-cuda120]'",
    "nvidia-dali-cuda110": "the DALI backends, CUDA 11: pip install 'in21k[dali-cuda110]'",
}

BATCH_BYTES = 256 * 3 * 224 * 224  # of images as uint8, which is how workers hand them over

SIMD_ADVICE = (
    "pillow: plain; `make simd` puts pillow-simd in its place, whose resizing is 4 times as fast "
    "(no gain for preprocessing where cykooz-resizer is installed)"
)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_pillow_simd() -> bool:
    """Return whether `import PIL` gives pillow-simd; the metadata may name both distributions."""
    import PIL

    return ".post" in PIL.__version__


def _advice_on_machine(shared: tuple[int, int] | None, load: dict[str, float]) -> list[str]:
    """Return advice on small shared memory, and on more threads than a busy machine has cores for."""
    from ..datapipe.machine import describe_load, describe_shared_memory

    advice = []
    needed = int(2 * load["cores"] * BATCH_BYTES)
    if shared is None or shared[0] < needed:
        advice.append(
            f"{describe_shared_memory()}; backends torch and webdataset need {needed / 1e6:,.0f} MB for batches of 256 "
            "images of 224 pixels, two for each worker: `docker run --shm-size=8g`, or take another backend"
        )
    busy = describe_load(**load)
    return advice + ([busy] if "OMP_NUM_THREADS" in busy else [])


def _advice(versions: dict[str, str | None], pillow_simd: bool) -> list[str]:
    has_dali = any(version for name, version in versions.items() if name.startswith("nvidia-dali"))
    advice = [
        f"{name}: not installed; {why}"
        for name, why in PACKAGES.items()
        if why and not versions[name] and not (has_dali and name.startswith("nvidia-dali"))
    ]
    if not pillow_simd:
        advice += [SIMD_ADVICE]
    elif versions["pillow"]:
        advice += [
            "pillow and pillow-simd are both installed, on the same files: `make simd SIMD=off`, then `make simd`"
        ]
    return advice


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show what is installed, what is accelerated, and what to install."""
    import torch
    from PIL import features

    from ..datapipe import available_backends, machine

    versions = {package: _version(package) for package in PACKAGES}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    load, shared = machine.load(), machine.shared_memory()
    result: dict[str, Any] = {
        "in21k": _version("in21k"),
        "python": platform.python_version(),
        **load,
        "shared_memory_bytes": shared[0] if shared else 0,
        "gpus": gpus,
        "packages": versions,
        "pillow_is_pillow_simd": _is_pillow_simd(),
        "pillow_uses_libjpeg_turbo": features.check_feature("libjpeg_turbo"),
        "pillow_reads_webp": features.check_module("webp"),
        "backends": available_backends(),
    }
    advice = [*_advice(versions, result["pillow_is_pillow_simd"]), *_advice_on_machine(shared, load)]
    rows = [["in21k", result["in21k"] or "?"], ["python", result["python"]], ["cores", str(result["cores"])]]
    rows += [["OpenMP threads of torch", str(result["threads"])], ["load of the last minute", f"{result['load']:.1f}"]]
    rows += [
        ["shared memory (/dev/shm)", f"{shared[0] / 1e6:,.0f} MB, {shared[1] / 1e6:,.0f} free" if shared else "none"]
    ]
    rows += [[name, version] for name, version in versions.items() if version]
    rows += [["GPU", ", ".join(gpus) or "none"]]
    rows += [
        [question, "yes" if result[key] else "no"]
        for question, key in (
            ("Pillow is pillow-simd", "pillow_is_pillow_simd"),
            ("Pillow uses libjpeg-turbo", "pillow_uses_libjpeg_turbo"),
            ("Pillow reads WebP", "pillow_reads_webp"),
        )
    ]
    rows += [[f"backend {name}", why or "ready"] for name, why in result["backends"].items()]
    text = "\n".join([*(f"{name:28} {value}" for name, value in rows), *(["", *advice] if advice else [])])
    emit({**result, "advice": advice}, text, as_json=as_json)
