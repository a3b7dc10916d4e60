"""One thread: the networks are small, and the tests' processes share the cores."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
