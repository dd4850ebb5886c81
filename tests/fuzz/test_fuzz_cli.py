"""Command lines at random: they end with status 0, 1 or 2 and, where not 0, an error in the last line; no traceback.

Reading, checking and choosing are real; what would train, measure, draw or ask the network is stopped before it begins.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from cases import fuzz
from click.testing import CliRunner
from hypothesis import strategies as st

import ebmhybrid as eh
from ebmhybrid import recipe as recipes
from ebmhybrid.cli import main
from ebmhybrid.errors import EbmhybridError
from ebmhybrid.models import architecture_of
from ebmhybrid.training.checkpoint import save_weights

STOPPED = "stopped before the work"
HEAVY = (
    "ebmhybrid.training.train",
    "ebmhybrid.runs.measure",
    "ebmhybrid.runs.generate",
    "ebmhybrid.evaluations.measure",
    "ebmhybrid.evaluations.suite.evaluate_predictions",
    "ebmhybrid.probing.evaluate_representation",
    "ebmhybrid.data.downloads._fetch",
)
COMMANDS = ["train", "eval", "sample", "probe", "compare", "recipes", "doctor"]
WORDS = [
    *("", "-", "--", "=", "a=b", "-1", "0", "1", "2", "7", "99999999999", "1e999", "nan", "0.5", "8/255", "1,2,3"),
    *("runs/a", "runs/b", "runs", "x.npz", "npz:x.npz", "npz:none", "x.yaml", "none.yaml", "bad.yaml", "w.safetensors"),
    *("digits", "digits:7-9", "noise", "folder:.", "text:x.yaml", "cifar10", "interp:digits", "openood-v1.5", "svhn"),
    *("energy", "msp", "knn", "all", "pgd", "aa", "l2", "smoke", "digits_hdge", "list", "show", "copy", "cpu"),
    *("torchvision/resnet18", "timm/none", "seed=1", "optimizer.lr=x", "training.epochs=0", "model.options={a: [*b]}"),
    *(
        "objective=null",
        "data.train=npz:x.npz",
        "\udcff",
        "\u202e",
        "{",
        "é" * 99,
        "cuda:9",
        "out/a",
        "none",
        "buffer",
    ),
]


def spelled(command: click.Command) -> list[str]:
    return [name for parameter in command.params for name in parameter.opts if name.startswith("-")]


# Without what a path out of the test's own folder is made of, and without NUL, which no command line can hold.
TEXT = st.text(st.characters(exclude_characters="/\\~.\0"), max_size=6)
OPTIONS = {name: spelled(main.commands[name]) or ["--help"] for name in COMMANDS}


def words(name: str) -> st.SearchStrategy[list[str]]:
    """A command line: the command's own options, mostly with a value, and arguments."""
    value = st.sampled_from(WORDS) | TEXT
    option = st.sampled_from(OPTIONS[name])
    parts = st.one_of(
        st.tuples(option, value),
        st.tuples(option, value),
        st.tuples(option),
        st.tuples(value),
        st.tuples(option, value).map(lambda pair: ("=".join(pair),)),
    )
    return st.lists(parts, max_size=5).map(lambda lists: [name, *(word for part in lists for word in part)])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with a run, arrays and recipes, good and bad, for the command lines to name."""
    folder: Path = tmp_path_factory.mktemp("cli")
    (folder / "runs" / "a" / "checkpoints").mkdir(parents=True)
    facts = {"num_classes": 7, "in_channels": 1, "image_size": 8}
    metadata = {
        "architecture": architecture_of("wide_resnet", facts, {"depth": 10, "width": 1}),
        "classes": list("0123456"),
        "image_shape": [1, 8, 8],
        "normalisation": {"mean": 0.5, "std": 0.5},
        "recipe": recipes.load_recipe("smoke").to_yaml(),
    }
    network = eh.WideResNet(depth=10, width=1, num_classes=7, in_channels=1)
    for path in ("runs/a/checkpoints/last.safetensors", "w.safetensors"):
        save_weights(folder / path, network, metadata)
    (folder / "runs/a/config.yaml").write_text(metadata["recipe"])
    (folder / "x.yaml").write_text(recipes.recipe_text("smoke"))
    (folder / "bad.yaml").write_text("seed: !!python/object/apply:os.mkdir [OWNED]")
    np.savez(folder / "x.npz", logits=np.eye(3) * 2 + 1, labels=np.arange(3), ood_n_logits=np.ones((2, 3)))
    return folder


@pytest.fixture
def here(files, tmp_path, monkeypatch) -> Path:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise EbmhybridError(STOPPED)

    for name in HEAVY:
        monkeypatch.setattr(name, stop)
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    return tmp_path


def check(line: list[str]) -> None:
    result = CliRunner().invoke(main, line)
    assert result.exception is None or isinstance(result.exception, SystemExit), (line, result.exc_info)
    assert result.exit_code in (0, 1, 2), (line, result.output)
    assert "Traceback" not in result.output, line
    if result.exit_code:
        assert result.stderr.splitlines()[-1].startswith("Error: "), (line, result.output)


@pytest.mark.parametrize("name", COMMANDS)
@fuzz(15, 100, data=st.data())
def test_command_lines(here, name, data) -> None:
    check(data.draw(words(name)))


@fuzz(15, 100, line=st.lists(st.sampled_from([*WORDS, *COMMANDS, "--help", "--version"]) | TEXT, max_size=4))
def test_any_words(here, line) -> None:
    check(line)
