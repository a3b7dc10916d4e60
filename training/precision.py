"""Mixed precision: which kind a device takes, and its two tools."""

from __future__ import annotations

from dataclasses import replace

import torch

from .settings import TrainSettings

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_amp(settings: TrainSettings, device: torch.device) -> TrainSettings:
    """Replace `amp: auto` by what the device takes: bf16 on a GPU, off elsewhere."""
    if settings.amp != "auto":
        return settings
    return replace(settings, amp="bf16" if device.type == "cuda" else "off")


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Return the context in which the network computes: `off`, `bf16` or `fp16`."""
    return torch.autocast(device.type, dtype=_DTYPES.get(amp), enabled=amp in _DTYPES)


def create_scaler(device: torch.device, amp: str) -> torch.amp.GradScaler:
    """Return the loss scaler that fp16's narrow range needs; for the others it passes everything through."""
    return torch.amp.GradScaler(device.type, enabled=amp == "fp16")
