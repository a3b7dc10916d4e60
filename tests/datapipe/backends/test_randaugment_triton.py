"""RandAugment's Triton kernels without a GPU: they compile for one, and do what the reference backend does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="torch for CPUs brings no Triton")


def test_the_interpreted_kernels_agree_with_torchvision_on_every_operation() -> None:
    script = Path(__file__).with_name("interpreted_randaugment.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr


@pytest.mark.parametrize("kernel", ["_fill_tables", "_apply_ops"])
def test_the_kernels_compile_for_a_gpu(kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    from in21k.datapipe.backends import randaugment_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function: Any = getattr(randaugment_triton, kernel)
    types = {"images": "*u8", "results": "*u8", "tables": "*u8", "codes": "*i32", "parameters": "*fp32"}
    types |= {"num_pixels": "i32", "size": "i32", "block": "constexpr"}
    names: list[str] = function.arg_names
    source = compiler.ASTSource(
        function, {name: types[name] for name in names}, constexprs={(names.index("block"),): 1024}
    )
    compiled = compiler.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True})
    assert compiled.asm["cubin"]
