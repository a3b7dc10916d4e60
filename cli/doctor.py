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
    "pyarrow": "",
    "nltk": "",
    "pillow": "",
    "pillow-simd": "faster resizing; replaces Pillow's files",
    "opencv-python-headless": "`--resizer opencv`: pip install 'in21k[opencv]'",
    "simplejpeg": "pip install 'in21k[opencv]'",
    "nvidia-dali-cuda130": "the DALI backends, CUDA 13: pip install 'in21k[dali-cuda130]'",
    "nvidia-dali-cuda120": "the DALI backends, CUDA 12: pip install 'in21k[dali-cuda120]'",
    "nvidia-dali-cuda110": "the DALI backends, CUDA 11: pip install 'in21k[dali-cuda110]'",
}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Tell what is installed, what is accelerated, and what to install."""
    import torch
    from PIL import features

    from ..datapipe import available_backends
    from ..shards.parallel import default_workers

    versions = {package: _version(package) for package in PACKAGES}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    result: dict[str, Any] = {
        "in21k": _version("in21k"),
        "python": platform.python_version(),
        "cores": default_workers(),
        "gpus": gpus,
        "packages": versions,
        "pillow_uses_libjpeg_turbo": features.check_feature("libjpeg_turbo"),
        "backends": available_backends(),
    }
    advice = [f"{name}: not installed; {why}" for name, why in PACKAGES.items() if not versions[name] and why]
    if any(version for name, version in versions.items() if name.startswith("nvidia-dali")):
        advice = [line for line in advice if not line.startswith("nvidia-dali")]
    rows = [["in21k", result["in21k"] or "?"], ["python", result["python"]], ["cores", str(result["cores"])]]
    rows += [[name, version] for name, version in versions.items() if version]
    rows += [["GPU", ", ".join(gpus) or "none"]]
    rows += [["Pillow uses libjpeg-turbo", "yes" if result["pillow_uses_libjpeg_turbo"] else "no"]]
    rows += [[f"backend {name}", why or "ready"] for name, why in result["backends"].items()]
    text = "\n".join([*(f"{name:28} {value}" for name, value in rows), *(["", *advice] if advice else [])])
    emit({**result, "advice": advice}, text, as_json=as_json)
