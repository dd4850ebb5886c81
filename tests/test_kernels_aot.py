"""What the Triton kernels compile to for two generations of GPUs, without one: reads, writes, registers, offsets."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ebmhybrid.kernels import support

pytestmark = [
    pytest.mark.skipif(not support.HAS_TRITON, reason="Triton is not installed"),
    pytest.mark.skipif(support.INTERPRETED, reason="a process in which Triton interprets cannot compile"),
]

WIDTHS = (10, 100, 1000, 21841, 32768, 128256)
SIZES = {"fp32": 4, "bf16": 2}
FORWARD_OUTPUTS = ("lse_ptr", "pick_ptr", "sum_ptr", "sq_ptr")
BACKWARD_INPUTS = ("lse_ptr", "g_lse_ptr", "g_pick_ptr", "g_sum_ptr", "g_sq_ptr")
over_gpus = pytest.mark.parametrize("capability", [80, 90])
over_dtypes = pytest.mark.parametrize("dtype", SIZES)
over_widths = pytest.mark.parametrize("columns", WIDTHS)
over_kernels = pytest.mark.parametrize("kernel", ["forward", "backward"])


@pytest.fixture(scope="module", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is found in, or left in, the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def compile_for(
    function: Any,
    capability: int,
    pointers: dict[str, str],
    scalars: dict[str, str],
    constants: dict[str, Any],
    warps: int,
) -> Any:
    """A kernel compiled ahead of time, with pointers aligned to 16 bytes as torch's allocators give them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    assert {*pointers, *scalars, *constants} == set(names)
    source = ASTSource(
        function,
        signature={name: pointers.get(name) or scalars.get(name) or "constexpr" for name in names},
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in pointers},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


@cache
def row_kernel(kernel: str, capability: int, dtype: str, columns: int) -> Any:
    """A row kernel for contiguous logits of a width, with all that it can compute."""
    from ebmhybrid.kernels import fused

    rows, width, warps = fused.tile(columns)
    constants: dict[str, Any] = {"C": columns, "ROW": columns, "COLUMN": 1, "BR": rows, "BC": width}
    pointers = {"x_ptr": f"*{dtype}", "y_ptr": "*i64"}
    if kernel == "forward":
        function = fused._forward_kernel
        pointers |= dict.fromkeys(FORWARD_OUTPUTS, "*fp32")
        constants["HAS_Y"] = True
    else:
        function = fused._backward_kernel
        pointers |= {**dict.fromkeys(BACKWARD_INPUTS, "*fp32"), "gx_ptr": f"*{dtype}"}
        constants |= dict.fromkeys(("HAS_LSE", "HAS_PICK", "HAS_SUM", "HAS_SQ"), True)
    return compile_for(function, capability, pointers, {"n": "i32", "inverse_temperature": "fp32"}, constants, warps)


@cache
def linear_kernel(capability: int, dtype: str, tf32: bool) -> Any:
    from ebmhybrid.kernels import fused_linear as fused

    pointers = {**dict.fromkeys(("x_ptr", "w_ptr", "b_ptr"), f"*{dtype}"), "y_ptr": "*i64"}
    pointers |= dict.fromkeys(("lse_ptr", "pick_ptr"), "*fp32")
    depth = fused.depth(torch.float32 if dtype == "fp32" else torch.bfloat16, tf32)
    constants = {"D": 640, "HAS_BIAS": True, "HAS_Y": True, "PRECISION": "tf32" if tf32 else "ieee"}
    constants |= {"SHARE": fused.SHARE, "BM": fused.BM, "BN": fused.BN, "BK": depth}
    return compile_for(fused._kernel, capability, pointers, {"n": "i32", "classes": "i32"}, constants, 4)


def used(kernel: Any, folder: Path) -> dict[str, int]:
    """Bytes of stack and local memory of a kernel (where registers are spilled to), and its registers."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.is_file():
        pytest.skip("this Triton comes without cuobjdump")
    (folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    command = [tool, "--dump-resource-usage", folder / "kernel.cubin"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def check_resources(kernel: Any, folder: Path) -> None:
    resources = used(kernel, folder)
    assert 0 < resources["REG"] <= 255
    assert (resources["STACK"], resources["LOCAL"]) == (0, 0)
    assert not re.search(r"\b(atom|red|ld\.local|st\.local)\.", kernel.asm["ptx"])


@over_gpus
@over_dtypes
@over_widths
@over_kernels
def test_no_spills_no_atomics(kernel: str, columns: int, dtype: str, capability: int, tmp_path: Path) -> None:
    check_resources(row_kernel(kernel, capability, dtype, columns), tmp_path)


@over_gpus
@over_dtypes
@over_widths
def test_global_memory_is_moved_128_bits_at_a_time(columns: int, dtype: str, capability: int) -> None:
    """Where each row begins at a multiple of 16 bytes every thread's share of the tile is so read, and so written."""
    from ebmhybrid.kernels import fused

    rows, width, warps = fused.tile(columns)
    aligned = columns * SIZES[dtype] % 16 == 0
    assert aligned == (columns not in {"fp32": (10, 21841), "bf16": (10, 100, 21841)}[dtype])
    accesses = rows * width * SIZES[dtype] // (32 * warps) // 16 if aligned else 0
    forward, backward = (
        row_kernel(kernel, capability, dtype, columns).asm["ptx"] for kernel in ("forward", "backward")
    )
    assert len(re.findall(r"\bld\.global\S*\.v4\.b32", forward)) == accesses
    assert len(re.findall(r"\bld\.global\S*\.v4\.b32", backward)) == accesses
    assert len(re.findall(r"\bst\.global\S*\.v4\.b32", backward)) == accesses


def accesses(kernel: Any) -> tuple[list[int], list[int]]:
    """The dimensions of what is loaded and stored, by program order: 2 of a tile of logits, 1 of a number per row."""
    found = []
    for name in ("load", "store"):
        types = re.findall(rf"tt\.{name} .*: tensor<(.+)x!tt\.ptr<", kernel.asm["ttir"])
        assert len(types) == kernel.asm["ttir"].count(f"tt.{name} ")
        found.append([text.count("x") + 1 for text in types])
    return found[0], found[1]


@over_dtypes
@over_widths
def test_each_logit_is_read_once_and_each_gradient_written_once(columns: int, dtype: str) -> None:
    """Bytes moved: N C reads forward, N C reads and N C writes backward, and a few numbers per row."""
    forward, backward = (row_kernel(kernel, 90, dtype, columns) for kernel in ("forward", "backward"))
    loads, stores = accesses(forward)
    assert sorted(loads) == [1, 1, 2]  # the label, the logit at it, the tile
    assert stores == [1, 1, 1, 1]
    assert forward.asm["ttir"].count("scf.for ") <= 1  # one walk over the columns
    loads, stores = accesses(backward)
    assert sorted(loads) == [1] * 6 + [2]  # lse, the label, four incoming gradients, the tile
    assert stores == [2]
    assert "scf.for " not in backward.asm["ttir"]


@over_gpus
def test_gradient_is_rounded_to_the_nearest(capability: int) -> None:
    """The interpreter cuts bfloat16 off, so that its tests cannot see this."""
    ptx = row_kernel("backward", capability, "bf16", 1000).asm["ptx"]
    assert re.search(r"\bcvt\.rn\.bf16", ptx)
    assert not re.search(r"\bcvt\.r[zmp]\.bf16", ptx)


def offsets(kernel: Any) -> list[str]:
    """The types by which pointers are moved. Of vectors no product is taken in 32 bits before they are widened."""
    ttir = kernel.asm["ttir"]
    assert not re.search(r"arith\.muli .*: tensor<.*xi32>", ttir)
    found = re.findall(r"tt\.addptr .*, (?:tensor<(?:\d+x)+)?(i\d+)>?", ttir)
    assert len(found) == ttir.count("tt.addptr ") > 0
    return found


@over_kernels
@over_widths
def test_offsets_are_64_bits_wide(kernel: str, columns: int) -> None:
    assert set(offsets(row_kernel(kernel, 90, "fp32", columns))) == {"i64"}


@over_gpus
@pytest.mark.parametrize(("dtype", "tf32"), [("fp32", True), ("fp32", False), ("bf16", False)])
def test_linear_kernel(dtype: str, tf32: bool, capability: int, tmp_path: Path) -> None:
    kernel = linear_kernel(capability, dtype, tf32)
    check_resources(kernel, tmp_path)
    assert sorted(offsets(kernel))[:3] == ["i32", "i32", "i64"]  # 32 bits for the place within one row of each factor
    loads, stores = accesses(kernel)
    assert sorted(loads) == [1, 1, 2, 2]  # the label, the bias, tiles of features and weights
    assert stores == [1, 1]  # the logits never reach memory
    matrix_units = re.search(r"\b(mma\.sync|wgmma\.mma_async)", kernel.asm["ptx"])
    assert bool(matrix_units) == (tf32 or dtype == "bf16")
