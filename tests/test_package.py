"""The package as an installation: what is packaged, what an import loads, which way imports point."""

from __future__ import annotations

import ast
import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import ebmhybrid

ROOT = Path(__file__).parent.parent
HEAVY = ("webdataset", "netcal", "torchattacks", "sklearn", "matplotlib", "triton", "torchvision")


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
    "codes": set(),
    "array_files": set(),
    "messages": set(),
    "tensor_files": set(),
    "energies": {"kernels"},
    "errors": set(),
    "sampling": {"errors", "sampling"},
    "kernels": {"errors", "kernels"},
    "terms": set(),
    "network": {"terms"},
    "vocabulary": {"errors"},
    "teaching": {"errors", "vocabulary"},
    "embedding": {"energies", "errors", "evaluate", "teaching"},
    "schema": {"network", "terms"},
    "recipe": {"errors", "schema"},
    "losses": {"codes", "energies", "kernels", "losses", "messages"},
    "models": {"codes", "errors", "messages", "models", "tensor_files", "vocabulary"},
    "data": {"array_files", "errors", "data", "vocabulary"},
    "training": {
        "errors",
        "codes",
        "energies",
        "terms",
        "schema",
        "recipe",
        "data",
        "models",
        "losses",
        "kernels",
        "messages",
        "sampling",
        "tensor_files",
        "training",
        "_version",
    },
    "evaluate": {"array_files", "errors", "energies", "sampling", "tensor_files", "evaluate"},
    "external": {"errors", "models", "tensor_files"},
    "eval_sets": {"errors", "data"},
    "measures": {"errors", "data", "eval_sets", "evaluate", "_version"},
    "generation": {
        "data",
        "errors",
        "evaluate",
        "generation",
        "losses",
        "recipe",
        "sampling",
        "schema",
        "terms",
        "training",
    },
    "runs": {
        "errors",
        "schema",
        "recipe",
        "data",
        "training",
        "evaluate",
        "generation",
        "kernels",
        "eval_sets",
        "measures",
        "_version",
    },
    "evaluations": {"errors", "data", "evaluate", "training", "eval_sets", "external", "measures", "runs"},
    "offers": {"data", "embedding", "evaluate", "models", "runs"},
    "probing": {"data", "errors", "eval_sets", "evaluate", "offers", "runs"},
    "terminal": {"errors"},
    "cli_probe": {"terminal", "evaluate", "probing", "runs"},
    "doctor": {"kernels", "training", "_version"},
    "cli_sample": {"terminal", "runs", "generation"},
    "cli_eval": {"terminal", "evaluate", "evaluations", "runs"},
    "cli": {
        "terminal",
        "recipe",
        "training",
        "evaluate",
        "runs",
        "cli_eval",
        "cli_probe",
        "cli_sample",
        "doctor",
        "_version",
    },
}


def _imports(path: Path, package: str) -> set[str]:
    """The parts of ebmhybrid that a file imports, whichever way the import is written."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            names = [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("ebmhybrid.")}
    return found


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_one_way(part: str) -> None:
    base = ROOT / "evaluate" if part == "evaluate" else ROOT / "ebmhybrid" / part
    single = base.with_suffix(".py").is_file()
    files = [base.with_suffix(".py")] if single else list(base.rglob("*.py"))
    assert files
    for path in files:
        assert _imports(path, "ebmhybrid" if single else f"ebmhybrid.{part}") <= ALLOWED[part], path


def test_every_module_has_its_place() -> None:
    modules = {path.stem for path in (ROOT / "ebmhybrid").glob("*.py")} - {"__init__", "__main__", "_version"}
    packages = {path.name for path in (ROOT / "ebmhybrid").iterdir() if (path / "__init__.py").is_file()}
    assert modules | packages - {"recipes"} == set(ALLOWED)


def test_the_import_reader_sees_every_way_of_importing(tmp_path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import ebmhybrid.runs as r\nfrom ..training import train\nfrom . import ood\nfrom ebmhybrid import cli\n"
    )
    assert _imports(path, "ebmhybrid.evaluate") == {"runs", "training", "evaluate", "cli"}


TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]


@pytest.mark.parametrize("path", [*TEXTS, *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").glob("*.yaml")], ids=str)
def test_documents_have_no_placeholder_and_no_dead_link(path: Path) -> None:
    text = path.read_text()
    assert not re.findall(
        r"\b(?:EXPECTED|README|FASHION|DIGITS)_[A-Z_]+\b|TODO|FIXME|PLACE\b|@@[A-Z]\w|@[A-Z]{3}|to be measured", text
    )
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)  # code may call what it has just indexed
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (path.parent / target).exists(), target


def test_commands_in_the_readme_parse() -> None:
    """Every `ebmhybrid ...` line of the README names a command, options and recipe keys that exist."""
    from click.testing import CliRunner

    from ebmhybrid.cli import main

    text = re.sub(r"\\\n *", "", (ROOT / "README.md").read_text())
    lines = re.findall(
        r"^ebmhybrid ((?:train|eval|sample|probe|compare|recipes|doctor)\b.*?)(?:\s+#.*)?$", text, flags=re.M
    )
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line)
        if words[0] == "train" and "--resume" not in words:
            result = CliRunner().invoke(main, [*words, "--print-config"])
            assert result.exit_code == 0, (line, result.output)
        command = main.commands[words[0]]
        command.make_context(words[0], list(words[1:]))


def test_evaluate_imports_its_siblings_relatively() -> None:
    """So that a stray `import evaluate` from the top folder fails at once instead of making a second package."""
    for path in (ROOT / "evaluate").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                assert not node.module.startswith(("ebmhybrid.evaluate", "evaluate")), path
