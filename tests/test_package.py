"""The package as an installation: what is packaged, what an import loads, which way imports point."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

import ebmhybrid

ROOT = Path(__file__).parent.parent
HEAVY = ("netcal", "torchattacks", "sklearn", "matplotlib", "triton", "torchvision")


def test_every_folder_with_code_is_in_the_package_list() -> None:
    """A package forgotten in setup.cfg passes every editable test and is missing from the wheel."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    folders = {p.parent for top in ("ebmhybrid", "evaluate", "recipes") for p in (ROOT / top).rglob("__init__.py")}
    names = set()
    for folder in folders:
        if "__pycache__" in folder.parts or any(p.is_symlink() for p in [folder, *folder.parents]):
            continue
        parts = folder.relative_to(ROOT).parts
        names.add(".".join(parts if parts[0] == "ebmhybrid" else ("ebmhybrid", *parts)))
    assert listed == names


@pytest.mark.parametrize("statement", ["import ebmhybrid", "import ebmhybrid, ebmhybrid.evaluate; ebmhybrid.HDGELoss"])
def test_import_is_light_quiet_and_touches_no_global_state(statement: str) -> None:
    code = (
        "import sys, torch\n"
        "before = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()\n"
        f"{statement}\n"
        "after = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()\n"
        "assert torch.equal(before[0], after[0]) and before[1:] == after[1:]\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr == ""


def test_import_alone_does_not_load_torch() -> None:
    code = "import sys, ebmhybrid; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_root_names_resolve_and_wrong_ones_do_not() -> None:
    for name in ebmhybrid.__all__:
        assert getattr(ebmhybrid, name) is not None
    assert callable(ebmhybrid.energy)
    assert set(ebmhybrid.__all__) <= set(dir(ebmhybrid))
    with pytest.raises(AttributeError, match="no attribute 'enrgy'"):
        ebmhybrid.enrgy  # noqa: B018


ALLOWED = {
    "energies": set(),
    "errors": set(),
    "schema": set(),
    "recipe": {"errors", "schema", "recipes"},
    "losses": {"energies", "losses"},
    "models": {"errors", "models"},
    "data": {"errors", "data"},
    "training": {"errors", "schema", "recipe", "data", "models", "losses", "training", "_version"},
    "evaluate": {"errors", "energies", "evaluate"},
}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ebmhybrid."):
            found.add(node.module.split(".")[1])
        if isinstance(node, ast.ImportFrom) and node.module == "ebmhybrid":
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_one_way(part: str) -> None:
    base = ROOT / "evaluate" if part == "evaluate" else ROOT / "ebmhybrid" / part
    files = [base.with_suffix(".py")] if base.with_suffix(".py").is_file() else list(base.rglob("*.py"))
    assert files
    for path in files:
        assert _imports(path) <= ALLOWED[part], path


def test_evaluate_imports_its_siblings_relatively() -> None:
    """So that a stray `import evaluate` from the top folder fails at once instead of making a second package."""
    for path in (ROOT / "evaluate").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                assert not node.module.startswith(("ebmhybrid.evaluate", "evaluate")), path
