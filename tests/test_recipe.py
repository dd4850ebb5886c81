"""Recipes: precedence, round trip, and every mistake named."""

from __future__ import annotations

import pytest

from ebmhybrid.errors import RecipeError
from ebmhybrid.recipe import load_recipe, recipe_names, recipe_text
from ebmhybrid.schema import Recipe

REQUIRED = {
    "cifar100_logitnorm",
    "cifar10_cmim",
    "cifar10_gcrl",
    "digits_cmim",
    "digits_gcrl",
    "digits_infonce",
    "digits_mim",
    "digits_vae",
    "fashion_mnist_cmim",
    "fashion_mnist_gcrl",
    "fashion_mnist_mim",
    "text_cmim",
    "cifar100_supcon",
    "cifar10_hdge_jem",
    "cifar10_jem",
    "cifar10_jempp",
    "cifar10_logitnorm",
    "cifar10_sadajem",
    "cifar10_supcon",
    "cifar10_wrn28",
    "cifar10_wrn28_ce",
    "cifar10_wrn28_energy",
    "cifar100_wrn28",
    "digits_ce",
    "digits_energy_margin",
    "digits_hdge",
    "digits_hdge_jem",
    "digits_hdge_released",
    "digits_jem",
    "digits_logitnorm",
    "digits_nce",
    "digits_supcon",
    "fashion_mnist_hdge",
    "fashion_mnist_nce",
    "cifar10_nce",
    "smoke",
}


def test_the_promised_recipes_exist() -> None:
    assert set(recipe_names()) >= REQUIRED


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_each_recipe_loads_round_trips_and_is_headed(name: str, tmp_path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    (tmp_path / "config.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "config.yaml") == recipe
    heading = [line for line in recipe_text(name).splitlines() if line.startswith("#")]
    for word in (f"ebmhybrid train --recipe {name}", "Hardware:", "Expected:"):
        assert any(word in line for line in heading), word
    if name.startswith("cifar"):
        assert "not yet reproduced" in " ".join(line.lstrip("# ") for line in heading).lower()


def test_published_settings() -> None:
    accuracy, energy = load_recipe("cifar10_wrn28"), load_recipe("cifar10_wrn28_energy")
    assert (accuracy.model.norm, accuracy.model.dropout, accuracy.training.batch_size) == ("batch", 0.3, 128)
    assert accuracy.optimizer.name == "sgd"
    assert accuracy.objective.hdge is not None
    assert (accuracy.objective.hdge.form, accuracy.objective.hdge.bank_size) == ("released", 65536)
    assert (energy.model.norm, energy.optimizer.name, energy.optimizer.lr) == ("none", "adam", 1e-4)
    assert (energy.schedule.warmup_steps, energy.schedule.milestones) == (1000, [160, 180])


def test_overrides_beat_the_file_and_the_file_beats_the_defaults(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optimizer: {lr: 0.2}\n")
    recipe = load_recipe(path, ["optimizer.lr=1e-3", "model.depth=10", "data.augment.flip=true"])
    assert recipe.name == "mine"
    assert (recipe.optimizer.lr, recipe.model.depth, recipe.data.augment.flip) == (0.001, 10, True)
    assert load_recipe(path).optimizer.lr == 0.2
    assert recipe.optimizer.momentum == Recipe().optimizer.momentum


def test_foreign_models_round_trip_without_wide_resnet_keys(tmp_path) -> None:
    recipe = load_recipe("smoke", ["model={name: torchvision/resnet18}", "model.options={zero_init_residual: true}"])
    (tmp_path / "c.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "c.yaml").model.arguments() == {"zero_init_residual": True}


WRONG = [
    (["optimizr.lr=1"], "unknown key 'optimizr', did you mean 'optimizer'"),
    (["optimizer.lrr=1"], "unknown key 'optimizer.lrr', did you mean 'optimizer.lr'"),
    (["optimizer.learning_rate=1"], "unknown key 'optimizer.learning_rate', valid: optimizer.betas, "),
    (["data.augment.flop=true"], "did you mean 'data.augment.flip'"),
    (["optimizer.lr=-1"], r"optimizer\.lr = -1.*greater than 0"),
    (["optimizer.lr=fast"], r"optimizer\.lr = 'fast'.*number"),
    (["optimizer.lr=.inf"], r"optimizer\.lr = inf.*1000000"),
    (["optimizer.weight_decay=.nan"], r"optimizer\.weight_decay = nan"),
    (["data.split_seed=99999999999999999999999"], r"data\.split_seed = 9+: .*less than"),
    (["model.width=1000000"], r"model\.width = 1000000.*1024"),
    (["objective.hdge.bank_size=1000000000000"], r"bank_size = 1000000000000"),
    (["objective={hdge: {weight: 0.0, ce_weight: 0.0}}"], "are both 0: nothing would be trained"),
    (["model={name: torchvision/resnet18, options: {name: wide_resnet}}"], "options: name cannot stand there"),
    (["evaluation.eps=5.0"], "eps must be at most 1 for linf, got 5"),
    (["seed=2020-13-45"], "not valid YAML"),
    (["name=[" + "x, " * 200 + "x]"], r"name = \['x'.*\.\.\.: input should be a valid string"),
    (["seed=1.5"], r"seed = 1\.5.*integer"),
    (["seed=true"], "seed = True.*integer"),
    (["training.epochs=0"], r"training\.epochs = 0"),
    (["training=3"], "training = 3"),
    (["model.depth=11"], r"depth must be 6 n \+ 4.*got 11"),
    (["model.mean=abc"], r"model\.mean = 'abc'"),
    (["model.name=torchvision/resnet18"], "keys of wide_resnet; give torchvision/resnet18 its arguments in options"),
    (["model.options={a: 1}"], "options are for"),
    (["objective.hdge=null"], "objective: needs at least one term of: ce, hdge"),
    (["objective.hdge.form=article"], r"objective\.hdge\.form = 'article'.*'released' or 'paper'"),
    (["schedule.name=step"], "milestones"),
    (["name=a/b"], "name = 'a/b'"),
    (["reference={families: [smooth]}", "objective.hdge.negatives=bank"], "reference images enter live columns"),
    (["objective.hdge.reference_weight=2.0"], "objective.hdge.reference_weight needs reference images"),
    (["objective.hdge.reference_weight=0.0"], r"objective\.hdge\.reference_weight = 0.*greater than 0"),
    (["objective.hdge={reference_weight: 2.0, negatives: bank}"], "reference_weight is for live columns"),
    (["data.augment.mixup_alpha=1.0", "objective.hdge.form=released"], "mixup needs"),
    (["reference={families: [smoth]}"], r"reference\.families = 'smoth'.*'smooth'"),
    (["evaluation.scores=[enrgy]"], r"evaluation\.scores = 'enrgy'.*'energy'"),
    (["evaluation.attacks=[pdg]"], r"evaluation\.attacks = 'pdg'"),
    (["objective.ce={}"], "hdge has its own cross-entropy"),
    (["optimizer.name=adam", "optimizer.momentum=0.5"], "momentum: not an option of adam"),
    (["optimizer.betas=[0.5, 0.9]"], "betas: not an option of sgd"),
    (["optimizer.nesterov=true", "optimizer.momentum=0.0"], "nesterov needs momentum"),
    (["schedule.gamma=0.5"], "gamma: not an option of the 'cosine' schedule"),
    (["schedule={name: one_cycle, warmup_steps: 5}"], "warm-up of its own"),
    (["lr"], "must be KEY=VALUE"),
    ([".lr=1"], "must be KEY=VALUE"),
    (["seed=[1"], "not valid YAML"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG)
def test_each_mistake_is_named_in_one_line(overrides, message) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe("smoke", overrides)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("smoke", ["optimizer.lr=-1", "modle=3", "seed=-2"])
    for mistake in ("optimizer.lr = -1", "unknown key 'modle'", "seed = -2"):
        assert mistake in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not valid YAML at line"),
        (b"- 1\n", "must be a mapping"),
        (b"", "must be a mapping"),
        (b"seed: 1\nmodel: {depth: 10}\nseed: 2\n", "line 3 .key 'seed' stands twice"),
        (b"optimizer: {lr: 1.0, lr: 2.0}\n", "key 'lr' stands twice"),
        (b"seed: !!int foo", "not valid YAML"),
        (b"a: " + b"[" * 3000, "not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"seed: !!python/object/apply:os.system ['echo']", "not valid YAML"),
    ],
)
def test_files_that_are_no_recipes(content: bytes, message: str, tmp_path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


@pytest.mark.parametrize(("file", "name"), [("_my.yaml", "my"), ("日本.yaml", "unnamed"), ("A b.YAML", "A_b")])
def test_a_file_without_a_name_is_named_after_itself(file: str, name: str, tmp_path) -> None:
    (tmp_path / file).write_text("seed: 3\n", encoding="utf-8")
    assert load_recipe(tmp_path / file).name == name


def test_missing_file_and_unknown_name() -> None:
    with pytest.raises(RecipeError, match=r"nothing\.yaml: cannot be read \(No such file"):
        load_recipe("nothing.yaml")
    with pytest.raises(RecipeError, match="no recipe 'digits_hdgee': did you mean 'digits_hdge'"):
        load_recipe("digits_hdgee")


def test_the_schema_names_what_the_code_has() -> None:
    """The schema must not import the code it describes, so the two lists of names are compared here."""
    from typing import get_args, get_type_hints

    from ebmhybrid import schema, terms
    from ebmhybrid.data import FAMILIES
    from ebmhybrid.evaluate.attacks import ATTACKS
    from ebmhybrid.evaluate.detectors import ALL, DETECTORS
    from ebmhybrid.evaluate.scores import MODEL_SCORES, SCORES
    from ebmhybrid.losses import contrastive, hdge
    from ebmhybrid.models import wide_resnet

    def names(section: type, key: str) -> set[str]:
        hint = get_type_hints(section)[key]
        inner = get_args(hint)[0] if get_args(hint) and not isinstance(get_args(hint)[0], str) else hint
        return set(get_args(inner))

    assert names(schema.Reference, "families") == set(FAMILIES)
    assert names(schema.Evaluation, "scores") == {ALL, *SCORES, *DETECTORS, *MODEL_SCORES}
    assert names(schema.Evaluation, "attacks") == set(ATTACKS)
    assert names(schema.Model, "norm") == set(get_args(wide_resnet.Norm))
    assert names(schema.Model, "activation") == set(get_args(wide_resnet.Activation))
    assert names(terms.HDGETerm, "form") == set(get_args(contrastive.Form))
    assert names(terms.HDGETerm, "normalize") == set(get_args(contrastive.Normalize))
    assert names(terms.HDGETerm, "negatives") == set(get_args(hdge.Negatives))


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 3  # type: ignore[misc]
