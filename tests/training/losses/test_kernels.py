"""The Triton kernels without a GPU: they compile for one, and compute what the plain path does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="torch for CPUs brings no Triton")

TYPES = {"column_stride": "i32", "num_classes": "i32", "num_elements": "i32", "num_levels": "i32", "row_stride": "i32"}
TYPES |= {"batch_size": "fp32", "eps": "fp32", "unit": "fp32"}
TYPES |= {"ancestors": "*i64", "begins": "*i64", "order": "*i64"}
TYPES |= {"addends": "*fp32", "incoming": "*fp32", "weights": "*fp32"}


def test_the_interpreted_kernels_equal_the_plain_path() -> None:
    script = Path(__file__).with_name("interpreted_kernels.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr


@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("special", [{}, {"column_stride": 1}, {"column_stride": 1, "num_levels": 1}])
def test_the_kernels_compile_for_a_gpu(
    kind: str, special: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are launched: Triton makes a constant of every 1 among the numbers. What compiles need not run here."""
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    from in21k.training.losses import semantic_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel in (semantic_triton._semantic_softmax, semantic_triton._scale):
        names: list[str] = kernel.arg_names
        constants: dict[str, Any] = {"with_gradient": True, "block": 1024, **special}
        types = {"logits": f"*{kind}", "gradient": f"*{kind}", "scaled": f"*{kind}", **TYPES}
        signature = {name: "constexpr" if name in constants else types[name] for name in names}
        places = {(names.index(name),): value for name, value in constants.items() if name in names}
        source = compiler.ASTSource(kernel, signature, constexprs=places)
        made = compiler.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True})
        assert made.asm["cubin"]
