"""Which path the row statistics take: by device, size, what is asked for, argument and environment variable."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from importlib import metadata

import naive
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import ebmhybrid as eh
from ebmhybrid import kernels
from ebmhybrid.cli import main
from ebmhybrid.errors import UsageError
from ebmhybrid.kernels import NAMES, RowStats, operator, support

# Which path runs where


def fake_cuda(n: int, c: int, dtype: torch.dtype = torch.float32) -> Tensor:
    with FakeTensorMode():
        return torch.empty(n, c, device="cuda:0", dtype=dtype)


@pytest.fixture
def small_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "GPU_ENTRIES", 100)
    monkeypatch.setattr(kernels, "CPU_ENTRIES", 50)
    monkeypatch.setattr(support, "BACKEND", "auto")
    monkeypatch.setattr(support, "INTERPRETED", False)
    monkeypatch.setattr(support, "HAS_TRITON", True)


@pytest.mark.parametrize(
    ("shape", "dtype", "compiling", "path"),
    [
        ((10, 10), torch.float32, False, "operator"),
        ((9, 11), torch.float32, False, "composite"),
        ((10, 10), torch.bfloat16, False, "operator"),
        ((10, 10), torch.float16, False, "operator"),
        ((10, 10), torch.float64, False, "composite"),
        ((10, 10), torch.float32, True, "composite"),
        ((10, 1024), torch.float32, True, "composite"),
        ((10, 1025), torch.float32, True, "operator"),
        ((10, 1025), torch.float64, True, "composite"),
    ],
)
def test_choice_on_a_gpu(monkeypatch, small_thresholds, shape, dtype, compiling: bool, path: str) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    assert kernels.choose(fake_cuda(*shape, dtype)) == path
    assert kernels.choose(fake_cuda(*shape, dtype), ("lse",)) == path


def test_choice_on_a_gpu_without_triton_or_by_name(monkeypatch, small_thresholds) -> None:
    x = fake_cuda(10, 10)
    assert kernels.choose(x, backend="torch") == "composite"
    assert kernels.choose(fake_cuda(1, 1), backend="triton") == "operator"
    with pytest.raises(UsageError, match=r"'triton' cannot be used: its kernels do not take torch\.float64; auto and"):
        kernels.choose(x.double(), backend="triton")
    monkeypatch.setattr(support, "HAS_TRITON", False)
    assert kernels.choose(x) == "composite"
    with pytest.raises(UsageError, match="'triton' cannot be used: Triton is not installed"):
        kernels.choose(x, backend="triton")


@pytest.mark.parametrize(
    ("shape", "gradient", "want", "path"),
    [
        ((5, 10), True, NAMES, "operator"),
        ((5, 10), True, ("lse", "sq"), "operator"),
        ((7, 7), True, NAMES, "composite"),
        ((5, 10), False, NAMES, "composite"),
        ((5, 10), True, ("lse", "pick"), "operator"),
        ((5, 10), True, ("lse",), "composite"),
        ((5, 10), True, ("sq",), "composite"),
    ],
)
def test_choice_on_the_cpu(monkeypatch, small_thresholds, shape, gradient: bool, want, path: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.zeros(*shape, dtype=dtype, requires_grad=gradient)
        assert kernels.choose(x, want) == path
    assert kernels.choose(x, want, "torch") == "composite"
    assert kernels.choose(torch.zeros(*shape, device="meta", requires_grad=gradient), want) == "composite"
    monkeypatch.setattr(support, "INTERPRETED", True)  # a thousand times slower than torch
    assert kernels.choose(x, want) == "composite"
    monkeypatch.setattr(support, "INTERPRETED", False)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert kernels.choose(x, want) == "composite"


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_the_chosen_path_is_the_one_that_runs(monkeypatch, small_thresholds, backend: str) -> None:
    called = []
    monkeypatch.setattr(operator, "row_stats", lambda *args: called.append(args) or RowStats())
    x, y = torch.zeros(5, 10, requires_grad=True), torch.zeros(5, dtype=torch.int64)
    kernels.row_stats(x, y, 0.5, backend=backend)
    kernels.row_stats(x, y, 0.5, want=("lse",), backend=backend)
    assert called == ([(x, y, 0.5)] if backend == "auto" else [])


def test_triton_without_a_gpu_says_why(monkeypatch, small_thresholds) -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(UsageError, match="'triton' cannot be used: the tensor is on cpu; its kernels run on cuda, or"):
        kernels.row_stats(x, backend="triton")
    with pytest.raises(UsageError, match="'triton' cannot be used: the tensor is on cpu"):
        eh.linear_energy(x, x, backend="triton")
    assert kernels.row_stats(x, backend="torch").lse is not None


def test_triton_by_the_environment_is_followed_where_it_runs(monkeypatch, small_thresholds) -> None:
    """Evaluation sums in float64, which the kernels do not take: no reason to refuse it."""
    monkeypatch.setattr(support, "BACKEND", "triton")
    assert kernels.choose(fake_cuda(1, 1)) == "operator"
    assert kernels.choose(fake_cuda(1, 1, torch.float64)) == "composite"
    x = naive.random_logits(3, 4, seed=1)
    torch.testing.assert_close(eh.log_density(x), naive.log_density(x))
    assert eh.linear_energy(x, x).lse.shape == (3,)


def in_a_process(backend: str, code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "EBMHYBRID_BACKEND": backend}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)


def test_environment_variable_sets_the_default() -> None:
    code = "import torch; from ebmhybrid import kernels; kernels.CPU_ENTRIES = 0; "
    code += "x = torch.zeros(2, 3, requires_grad=True); print(kernels.choose(x), kernels.choose(x, backend='auto')); "
    code += "print(kernels.describe())"
    done = in_a_process("torch", code)
    assert done.stderr == ""
    choices, described = done.stdout.splitlines()
    assert choices == "composite operator"
    assert described == "torch (EBMHYBRID_BACKEND): plain torch for everything"


def test_environment_variable_that_is_no_backend_is_named() -> None:
    code = "import ebmhybrid, torch; ebmhybrid.energy(torch.zeros(1, 2))"
    done = in_a_process("tritn", code)
    message = "EBMHYBRID_BACKEND must be auto, torch or triton, got 'tritn'; did you mean 'triton'?"
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ebmhybrid.errors.UsageError: {message}"


def test_a_wrong_backend_is_one_line_and_leaves_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(support, "BACKEND", "tritn")
    for words in (["train", "--recipe", "smoke", "--out", str(tmp_path / "run")], ["doctor"]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1].startswith("Error: EBMHYBRID_BACKEND must be auto, torch or triton, got")
    assert not list(tmp_path.iterdir())


def test_an_empty_variable_is_none() -> None:
    done = in_a_process("", "import ebmhybrid.kernels.support as s; print(s.BACKEND)")
    assert done.stdout == "auto\n"


CPU = "plain torch on the CPU; Triton 3.8.0"
NONE = "plain torch, because Triton is not installed"
ASKED = "triton (EBMHYBRID_BACKEND):"


@pytest.mark.parametrize(
    ("backend", "cuda", "version", "interpreted", "line"),
    [
        ("auto", True, "3.8.0", False, "auto: Triton 3.8.0 from 1,048,576 logits on"),
        ("auto", True, None, False, f"auto: {NONE}"),
        ("auto", False, "3.8.0", True, f"auto: {CPU} is interpreted, where it is asked for by name"),
        ("auto", False, "3.8.0", False, f"auto: {CPU} waits for a GPU"),
        ("auto", False, None, True, f"auto: {NONE}"),
        ("torch", True, "3.8.0", False, "torch (EBMHYBRID_BACKEND): plain torch for everything"),
        ("triton", True, "3.8.0", False, f"{ASKED} Triton 3.8.0"),
        ("triton", False, "3.8.0", True, f"{ASKED} {CPU} is interpreted, for everything"),
        ("triton", False, "3.8.0", False, f"{ASKED} {CPU} waits for a GPU"),
        ("triton", True, None, False, f"{ASKED} {NONE}"),
    ],
)
def test_describe(monkeypatch, backend: str, cuda: bool, version, interpreted: bool, line: str) -> None:
    monkeypatch.setattr(support, "BACKEND", backend)
    monkeypatch.setattr(support, "INTERPRETED", interpreted)
    monkeypatch.setattr(support, "triton_version", lambda: version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert kernels.describe() == line


def test_a_triton_of_unknown_origin_has_no_version(monkeypatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(support, "HAS_TRITON", True)
    monkeypatch.setattr(support.metadata, "version", missing)
    assert support.triton_version.__wrapped__() == "of unknown version"


# Wrong input

WRONG = [
    ((torch.zeros(3),), {}, r"x must be floating point \(N, C\) with C >= 1, got torch\.float32 \(3,\)"),
    ((torch.zeros(2, 3, 4),), {}, r"got torch\.float32 \(2, 3, 4\)"),
    ((torch.zeros(2, 0),), {}, r"C >= 1, got torch\.float32 \(2, 0\)"),
    ((torch.zeros(2, 3, dtype=torch.int64),), {}, r"x must be floating point .* got torch\.int64"),
    ((torch.zeros(2, 3, dtype=torch.complex64),), {}, r"x must be floating point .* got torch\.complex64"),
    ((torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)), {}, r"y must be int64 \(2,\), got torch\.int64 \(3,\)"),
    ((torch.zeros(2, 3), torch.zeros(2, dtype=torch.int32)), {}, r"y must be int64 \(2,\), got torch\.int32"),
    ((torch.zeros(2, 3), torch.zeros(2, 3)), {}, r"y must be int64 \(2,\), got torch\.float32 \(2, 3\)"),
    ((torch.zeros(2, 3), None, 0.0), {}, "temperature must be a positive number, got 0"),
    ((torch.zeros(2, 3), None, -1.0), {}, "temperature must be a positive number, got -1"),
    ((torch.zeros(2, 3), None, math.inf), {}, "temperature must be a positive number, got inf"),
    ((torch.zeros(2, 3), None, math.nan), {}, "temperature must be a positive number, got nan"),
    ((torch.zeros(2, 3),), {"want": ("lse", "pik")}, "want: unknown statistic 'pik'; did you mean 'pick'"),
    ((torch.zeros(2, 3),), {"want": ("pick",)}, "want: 'pick' needs y"),
    (
        (torch.zeros(2, 3),),
        {"backend": "cuda"},
        "backend must be auto, torch or triton, got 'cuda'; valid: auto, torch",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "message"), WRONG)
def test_wrong_input_is_named(arguments, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.row_stats(*arguments, **options)


def test_only_what_is_wanted_is_computed_by_the_composite() -> None:
    for name in NAMES:
        values = kernels.row_stats(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), want=(name,), backend="torch")
        assert [value is not None for value in values] == [name == other for other in NAMES]
