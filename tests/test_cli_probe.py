"""`ebmhybrid probe` as a user types it, and what of each kind of model it measures."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.linalg
import torch
from click.testing import CliRunner, Result
from torch import nn

from ebmhybrid.cli import main
from ebmhybrid.embedding import informative_embedding
from ebmhybrid.evaluate import files
from ebmhybrid.evaluate.results import SuiteResult
from ebmhybrid.models import NormalizedClassifier, WideResNet
from ebmhybrid.models.autoencoder import Autoencoder
from ebmhybrid.models.image_transformer import ImageTransformer
from ebmhybrid.models.sequence_autoencoder import SequenceAutoencoder
from ebmhybrid.offers import DRAWN_TOKENS, offered, representations_of
from ebmhybrid.probing import probe_run
from ebmhybrid.recipe import load_recipe
from ebmhybrid.runs import open_run, splits_of
from ebmhybrid.training import load_model

TINY = ["training.max_steps=2", "training.precision=fp32", "data.train=digits:0-2", "--quiet"]
RECIPES = {
    "ce": ["--recipe", "smoke", "objective={ce: {}}"],
    "auto": ["--recipe", "digits_cmim", "model.options={latent: 4, width: 4, likelihood: logistic}"],
    "gcrl": [
        *("--recipe", "digits_cmim", "objective={gcrl: {}}", "model.name=image_transformer", "data.image_size=8"),
        "model.options={levels: 4, patch: 4, dim: 8, layers: 1, heads: 2, projection: 4}",
    ],
}
QUICK = ["--limit", "10", "--train-limit", "9"]
FILES = {"results.json", "results.csv", "report.html", "figures", "scores.npz"}


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "runs"
    for name, recipe in RECIPES.items():
        result = call("train", *recipe, *TINY, "--out", folder / name)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def probed(folder) -> dict[str, SuiteResult]:
    """Each kind's probe, without OOD sets but for the autoencoder's."""
    quick = {"limit": 10, "train_limit": 9}
    return {name: probe_run(folder / name, ood=["noise"] if name == "auto" else [], **quick) for name in RECIPES}


@pytest.fixture
def quick(monkeypatch, probed) -> list[dict]:
    """The command without its work: what it asks for."""
    asked = []

    def probe(run, **given):
        asked.append({"run": run, **given})
        return probed["auto"]

    monkeypatch.setattr("ebmhybrid.probing.probe_run", probe)
    return asked


def test_the_newest_run_is_probed(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(folder / "auto", tmp_path / "runs" / "auto")
    before = tree(copy)
    result = call("probe", *QUICK, "--ood", "noise")
    assert result.exit_code == 0, result.output
    assert re.search(r"linear probe, informative\+mean +[\d.]+ %", result.output)
    assert "\nnote: log_likelihood is log p(x|z) at the mean of q(z|x)" in result.output
    assert "\nprobed: runs/auto\n" in result.output
    out = Path(re.search(r"report: (\S+)/report.html", result.output)[1])
    assert out.parent == Path("runs/auto/probe")
    assert {path.name for path in out.iterdir()} == FILES
    new = {name for name in tree(copy) - before if not name.startswith(f"probe/{out.name}/")}
    assert new == {"probe", f"probe/{out.name}"}
    found = json.loads((out / "results.json").read_text())
    assert found["context"]["config"]["name"] == "digits_cmim"
    assert found["context"]["weights"]["path"] == "runs/auto/checkpoints/best.safetensors"
    assert found["representation"]["about"]["representations"] == {
        "mean": 4,
        "informative": 4,
        "informative+mean": 8,
        "pixels": 64,
    }
    assert "<svg" in (out / "report.html").read_text()


def test_json_is_all_of_stdout_and_options_are_heard(folder, tmp_path) -> None:
    options = ("--ood", "digits:7-9", "--ood", "noise", "--seed", "3", "--out", tmp_path / "a", "--json")
    result = call("probe", folder / "ce", *QUICK, *options)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed == json.loads((tmp_path / "a" / "results.json").read_text())
    asked = {"ood": ["digits:7-9", "noise"], "corruptions": False, "test_limit": 10, "train_limit": 9, "seed": 3}
    assert printed["settings"].items() >= asked.items()
    assert {(one["role"], one["n"]) for one in printed["sets"]} == {
        ("test", 10),
        ("train", 9),
        ("validation", 10),
        ("ood", 10),
    }
    assert not (folder / "ce" / "probe").exists()


def test_options_are_passed_on(quick, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(SuiteResult, "save", lambda self, folder: folder)
    assert call("probe", folder / "auto", "--out", tmp_path / "a").exit_code == 0
    paths = {"data_dir": "data", "device": "auto", "download": True}
    asked = quick[0]
    del asked["progress"]
    assert asked == {"run": folder / "auto", **paths}  # the rest by the recipe
    options = ("--corruptions", "--no-download", "--data-dir", "d", "--device", "cpu", "--train-limit", "8")
    assert call("probe", folder / "auto", *options, "--out", tmp_path / "a").exit_code == 0
    del quick[1]["progress"]
    given = {"download": False, "data_dir": "d", "device": "cpu", "train_limit": 8, "corruptions": True}
    assert quick[1] == {"run": folder / "auto", **given}
    assert call("probe", folder / "auto", "--no-corruptions", "--out", tmp_path / "b").exit_code == 0
    assert quick[2]["corruptions"] is False


def test_what_is_left_out_is_the_recipes(folder, monkeypatch) -> None:
    seen = {}

    def evaluate(*args, **given):
        seen.update(given)
        raise InterruptedError

    monkeypatch.setattr("ebmhybrid.probing.evaluate_representation", evaluate)
    opened = open_run(folder / "auto")
    said = {"ood": ["noise"], "corruptions": True, "batch_size": 7}
    recipe = opened.recipe.model_copy(
        update={"seed": 5, "evaluation": opened.recipe.evaluation.model_copy(update=said)}
    )
    monkeypatch.setattr("ebmhybrid.probing.open_run", lambda run, device: replace(opened, recipe=recipe))
    with pytest.raises(InterruptedError):
        probe_run(folder / "auto")
    assert (list(seen["ood_sets"]), seen["corruptions"], seen["seed"]) == (["noise"], True, 5)
    assert {part.batch_size for part in (seen["validation"], *seen["ood_sets"].values())} == {7}
    drawn = seen["samples"]
    with pytest.raises(InterruptedError):
        probe_run(folder / "auto", ood=[], corruptions=False, seed=0)
    assert (seen["ood_sets"], seen["corruptions"], seen["seed"]) == ({}, False, 0)
    assert not torch.equal(seen["samples"], drawn)  # of another seed


# --- what is measured of each model ---------------------------------------------------------------------------------


def reconstruction(result: SuiteResult) -> dict:
    (row,) = result.representation.of("reconstruction")
    return row


def test_figures_of_an_autoencoder_by_hand(folder, probed) -> None:
    result, opened = probed["auto"], open_run(folder / "auto")
    model = opened.model
    splits = splits_of(opened.recipe, opened.weights, "data", False)
    images = splits.test.take(10).images.float() / 255
    with torch.no_grad():
        z = model.encode(images).mean
        likelihood, shown = model.log_likelihood(images, z), model.mean_image(z)
    row = reconstruction(result)
    assert row["n"] == 10
    assert row["log_likelihood"] == pytest.approx(likelihood.mean().item(), rel=1e-5)
    assert row["bits_per_dimension"] == pytest.approx(-likelihood.mean().item() / (64 * math.log(2)), rel=1e-5)
    assert row["mse"] == pytest.approx((shown - images).square().mean().item(), rel=1e-5)
    # Draws near the codes: a normal distribution with the mean and the covariance of those of training images.
    with torch.no_grad():
        means = model.encode(splits.train.take(1000).images.float() / 255).mean.double()
        centred = means - means.mean(0)
        covariance = centred.T @ centred / (len(means) - 1)
        noise = torch.randn(100, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        drawn = means.mean(0) + noise @ torch.from_numpy(scipy.linalg.sqrtm(covariance.numpy()).real)
        expected = model.mean_image(drawn.float())
    samples = torch.from_numpy(result.representation.samples)
    assert torch.allclose(samples, expected, atol=1e-5)
    note = f"samples are decoded from a normal distribution fitted to the codes of {len(means)} training images"
    assert note in result.context["notes"]
    groups = {row["group"] for row in result.representation.rows}
    assert groups == {"probe", "few_labels", "ood", "reconstruction"}
    assert {row["score"] for row in result.representation.of("ood")} == {"knn", "mahalanobis", "log_likelihood"}
    assert result.representation.of("ood")[0]["n"] == 10


def test_samples_of_a_vae_are_drawn_from_the_prior(folder) -> None:
    opened = open_run(folder / "auto")
    train = splits_of(opened.recipe, opened.weights, "data", False).train
    recipe = load_recipe(folder / "auto" / "config.yaml", ["objective={latent: {generative: vae}}"])
    offer = offered(replace(opened, recipe=recipe), 0, train)
    expected = opened.model.sample(100, torch.Generator().manual_seed(0))
    assert torch.equal(offer.samples(), expected)
    assert len(offer.notes) == 1
    one = offered(opened, 0, train.select([0, 0]))  # codes that do not vary: their image alone
    assert len(one.samples().flatten(1).unique(dim=0)) == 1


def test_figures_of_an_image_transformer_by_hand(folder, probed) -> None:
    result, opened = probed["gcrl"], open_run(folder / "gcrl")
    model = opened.model
    images = splits_of(opened.recipe, opened.weights, "data", False).test.take(10).images.float() / 255
    with torch.no_grad():
        likelihood = model.log_likelihood(images)
    row = reconstruction(result)
    assert row["log_likelihood"] == pytest.approx(likelihood.mean().item(), rel=1e-5)
    assert row["bits_per_dimension"] == pytest.approx(-likelihood.mean().item() / (64 * math.log(2)), rel=1e-5)
    assert 0 < row["mse"] < 1
    assert set(result.representation.about["representations"]) == {"pooled", "projection", "informative", "pixels"}
    notes = result.context["notes"]
    assert "log_likelihood is log p(x) of images quantised to 4 levels" in notes
    assert "reconstructions are drawn from p(x | e(x))" in notes
    # In the order of its draws: 100 samples, then an image each from the images' own memories.
    generator = torch.Generator().manual_seed(0)
    samples = model.sample(100, generator)
    assert torch.allclose(torch.from_numpy(result.representation.samples), samples)
    with torch.no_grad():
        again = model.sample(10, generator, model.encode(images))
    assert row["mse"] == pytest.approx((again - images).square().mean().item(), rel=1e-5)


def test_figures_of_a_classifier(probed) -> None:
    result = probed["ce"].representation
    assert {row["group"] for row in result.rows} == {"probe", "few_labels"}
    assert list(result.about["representations"]) == ["features", "pixels"]
    assert result.samples is None
    assert "notes" not in probed["ce"].context or "log_likelihood" not in str(probed["ce"].context["notes"])


def test_the_same_seed_gives_the_same_figures(folder, probed) -> None:
    again = probe_run(folder / "gcrl", ood=[], limit=10, train_limit=9, seed=0)
    assert again.as_dict() == probed["gcrl"].as_dict()
    other = offered(open_run(folder / "gcrl"), seed=1).samples()
    assert (torch.from_numpy(again.representation.samples) != other).float().mean() > 0.2


def test_representations_of_each_model_are_what_they_say() -> None:
    images = torch.rand(3, 1, 8, 8)
    auto = Autoencoder(latent=4, width=4)
    gcrl = ImageTransformer(levels=4, patch=4, dim=8, layers=1, heads=2, projection=5)
    text = SequenceAutoencoder(["C", "N"], max_length=5, latent=4, dim=8, layers=1, heads=2)
    tokens = text.tokens(["CCN", "N", "C"])
    wide = WideResNet(depth=10, width=1, num_classes=3, in_channels=1)
    plain = NormalizedClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)), 3, 1, mean=0.5, std=0.5
    )
    headless = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    pooled = gcrl.encode(images).mean(1)
    features = partial_forward(plain, images)
    embedded = informative_embedding(auto.encode, auto.decode, images)
    for model, x, expected in (
        (
            auto,
            images,
            {
                "mean": auto.encode(images).mean,
                "informative": embedded,
                "informative+mean": torch.cat([embedded, auto.encode(images).mean], dim=1),
                "pixels": images.flatten(1),
            },
        ),
        (
            gcrl,
            images,
            {
                "pooled": pooled,
                "projection": gcrl.project(pooled),
                "informative": gcrl.hidden(gcrl.tokens(images), gcrl.encode(images)).mean(1),
                "pixels": images.flatten(1),
            },
        ),
        (
            text,
            tokens,
            {
                "mean": text.encode(tokens).mean,
                "informative": informative_embedding(text.encode, text.decode, tokens),
                "informative+mean": informative_embedding(text.encode, text.decode, tokens, concat_latent=True),
                # start, end, unknown, C, N
                "counts": torch.tensor([[0.0, 1, 0, 2, 1], [0, 1, 0, 0, 1], [0, 1, 0, 1, 0]]),
            },
        ),
        (wide, images, {"features": wide.eval().features(images), "pixels": images.flatten(1)}),
        (plain, images, {"features": features, "pixels": images.flatten(1)}),
        (headless, images, {"pixels": images.flatten(1)}),
    ):
        found = representations_of(model)
        assert list(found) == list(expected)
        for name, encoder in found.items():
            with torch.no_grad():
                assert torch.allclose(encoder(x), expected[name], atol=1e-6), name
            assert model in encoder.modules()  # so that an evaluation finds the device, and puts it into eval mode


def partial_forward(model: NormalizedClassifier, images: torch.Tensor) -> torch.Tensor:
    return model.backbone[:3](model.normalize(images))


def offer_of(model: nn.Module, folder: Path, run: str, *changes: str):
    """What of the model is measured if it was trained by this objective."""
    recipe = load_recipe(folder / run / "config.yaml", list(changes))
    return offered(replace(open_run(folder / run), model=model, recipe=recipe), seed=0)


def test_parts_that_were_not_trained_are_not_measured(folder) -> None:
    auto, gcrl = load_model(folder / "auto"), load_model(folder / "gcrl")
    offer = offer_of(auto, folder, "auto", "objective={latent: {generative: none, contrast: infonce}}")
    assert list(offer.representations) == ["mean", "pixels"]
    assert (offer.log_likelihood, offer.reconstruct, offer.samples, offer.bits) == (None,) * 4
    assert offer.notes == ("the decoder was not trained: there is nothing of it to measure",)
    offer = offer_of(gcrl, folder, "gcrl", "objective.gcrl.generative_weight=0")
    assert list(offer.representations) == ["pooled", "projection", "pixels"]
    assert (offer.log_likelihood, offer.samples, len(offer.notes)) == (None, None, 1)
    offer = offer_of(gcrl, folder, "gcrl", "objective.gcrl.weight=0")
    assert list(offer.representations) == ["pooled", "informative", "pixels"]
    assert offer.log_likelihood is not None
    for empty, likelihood, reconstruct in ((0.0, False, True), (0.5, True, True), (1.0, True, False)):
        model = ImageTransformer(levels=4, patch=4, dim=8, layers=1, heads=2, empty=empty)
        offer = offer_of(model, folder, "gcrl")
        assert (offer.log_likelihood is not None, offer.samples is not None) == (likelihood, likelihood)
        assert (offer.reconstruct is not None) == reconstruct
        assert len(offer.notes) == likelihood + reconstruct
    for size, drawn in ((16, True), (20, False)):
        assert (size**2 <= DRAWN_TOKENS) == drawn
        model = ImageTransformer(image_size=size, levels=4, patch=4, dim=8, layers=1, heads=2)
        assert (offer_of(model, folder, "gcrl").reconstruct is not None) == drawn


def test_a_cross_entropy_of_grey_images_has_no_bits(folder) -> None:
    for likelihood, some in (("bernoulli", False), ("logistic", True), ("gaussian", True)):
        offer = offer_of(Autoencoder(latent=4, width=4, likelihood=likelihood), folder, "auto")
        assert (offer.bits(torch.zeros(3).numpy()) is not None) == some


# --- sequences ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    lines = ["C" * (1 + i % 5) + "ON"[i % 2] for i in range(60)]
    (folder / "lines.txt").write_text("".join(f"{line}\t{len(line)}\n" for line in lines))
    (folder / "other.txt").write_text("OOOO\nNNN\nNONO\nCCXX\n" * 3)
    objective = "objective={latent: {generative: mim, contrast: cmim}}"
    model = ("model.name=sequence_autoencoder", "model.options={latent: 4, dim: 8, layers: 1, heads: 2}")
    data = f"data.train=text:{folder / 'lines.txt'}"
    quick = ("training.max_steps=2", "--quiet", "evaluation.ood=[]")
    result = call("train", "--recipe", "digits_cmim", data, objective, *model, *quick, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    return folder


def test_sequences_are_probed_by_their_numbers(text, tmp_path) -> None:
    result = call("probe", text / "run", "--ood", f"text:{text / 'other.txt'}", "--json", "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["representation"]
    assert set(found["about"]["representations"]) == {"mean", "informative", "informative+mean", "counts"}
    ridge = {row["representation"]: row for row in found["rows"] if row["group"] == "ridge"}
    assert ridge["counts"]["r2"] > 0.99  # the length is the number of tokens
    assert {row["score"] for row in found["rows"] if row["group"] == "ood"} == {"knn", "mahalanobis", "log_likelihood"}
    (row,) = (row for row in found["rows"] if row["group"] == "reconstruction")
    assert row["log_likelihood"] < 0
    assert "bits_per_dimension" not in row
    assert any("tokens are not in the vocabulary" in note for one in found["about"]["sets"] for note in one["notes"])


# --- what can be wrong ----------------------------------------------------------------------------------------------


def used(tmp: Path) -> Path:
    (tmp / "used").mkdir()
    (tmp / "used" / "thesis.txt").write_text("mine")
    return tmp / "used"


def in_the_way(run: Path, tmp: Path) -> Path:
    copy = shutil.copytree(run, tmp / "copy")
    (copy / "probe").write_text("")
    return copy


def damaged(run: Path, tmp: Path) -> Path:
    copy = shutil.copytree(run, tmp / "copy")
    (copy / "checkpoints" / "best.safetensors").write_bytes(b"no weights")
    return copy


# Each: exit status, what the one line must name, and the arguments, given (a good run, an empty folder).
WRONG = {
    "no run at all": (1, "runs: no run there; make one with `ebmhybrid train`", lambda r, t: []),
    "missing run": (1, "none: no such run", lambda r, t: [t / "none"]),
    "no weights": (1, "cannot be read as safetensors", lambda r, t: [damaged(r, t)]),
    "empty run": (2, "RUN is empty", lambda r, t: [""]),
    "empty out": (2, "--out is empty", lambda r, t: [r, "--out", ""]),
    "empty ood": (2, "--ood is empty", lambda r, t: [r, "--ood", ""]),
    "unknown option": (2, "--oood", lambda r, t: [r, "--oood", "noise"]),
    "unknown set": (1, "unknown data set 'nois', did you mean 'noise'", lambda r, t: [r, "--ood", "nois"]),
    "missing file": (1, "none.npz: there is no file", lambda r, t: [r, "--ood", f"npz:{t / 'none.npz'}"]),
    "text for images": (1, "text:x.txt: holds sequences", lambda r, t: [r, "--ood", "text:x.txt"]),
    "no limit": (2, "--limit.*0 is not in the range", lambda r, t: [r, "--limit", "0"]),
    "no training": (2, "--train-limit.*-1 is not in the range", lambda r, t: [r, "--train-limit", "-1"]),
    "negative seed": (2, "--seed.*-1 is not in the range", lambda r, t: [r, "--seed", "-1"]),
    "out is used": (1, "cannot write the probe to .*used: it holds 'thesis.txt'", lambda r, t: [r, "--out", used(t)]),
    "out is a file": (1, "it is not a folder", lambda r, t: [r, "--out", shutil.copy(r / "env.json", t / "w")]),
    "out in a file": (
        1,
        "cannot write the probe to .*w/a: Not a directory",
        lambda r, t: [r, "--out", Path(shutil.copy(r / "env.json", t / "w")) / "a"],
    ),
    "out at the root": (1, "cannot write the probe to /: name a folder", lambda r, t: [r, "--out", "/"]),
    "run takes no probes": (1, "copy/probe/new: Not a directory", lambda r, t: [in_the_way(r, t)]),
    "unknown device": (1, "device 'gpu9'", lambda r, t: [r, "--device", "gpu9"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_wrong_input_gives_one_line_and_leaves_nothing(case: str, folder: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, message, make = WRONG[case]
    arguments = make(folder / "auto", tmp_path)
    before, before_run = tree(tmp_path), tree(folder)
    result = call("probe", *arguments)
    assert result.exit_code == status, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert re.search(message, lines[0]), lines[0]
    assert result.stdout == ""  # said before the work, not after it
    assert (tree(tmp_path), tree(folder)) == (before, before_run)


@pytest.mark.parametrize("name", ["text", "noise", "text:"])
def test_sets_that_do_not_suit_sequences(text, name) -> None:
    result = call("probe", text / "run", "--ood", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: OOD set '{name}': the model is of text, and takes text:PATH\n"


@pytest.mark.parametrize("name", ["auto", "gcrl"])
@pytest.mark.parametrize("command", ["eval", "sample"])
def test_other_commands_point_encoder_decoders_here(folder, command, name) -> None:
    before = tree(folder)
    result = call(command, folder / name)
    assert (result.exit_code, result.stdout) == (1, "")
    line = r"Error: \S+: an encoder-decoder \(\w+\) and no classifier; use `ebmhybrid probe \S+`\n"
    assert re.fullmatch(line, result.stderr)
    assert tree(folder) == before


@pytest.mark.parametrize("given", [True, False])
def test_a_failed_save_leaves_nothing_half_written(quick, folder, tmp_path, monkeypatch, given) -> None:
    def fails(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "dumps", fails)
    before = tree(folder)
    result = call("probe", folder / "auto", *(("--out", tmp_path / "a") if given else ()))
    assert result.exit_code == 1
    assert re.fullmatch(r"Error: cannot write the evaluation to \S+: No space left on device\n", result.stderr)
    assert "linear probe, mean" in result.stdout  # the figures are not lost
    assert not list(tmp_path.iterdir())
    assert tree(folder) == before


def test_a_lone_weight_file_is_probed_beside_itself(quick, folder, tmp_path) -> None:
    weights = shutil.copy(folder / "auto" / "checkpoints" / "best.safetensors", tmp_path / "w.safetensors")
    assert call("probe", weights).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"w.safetensors", "probe"}
    assert quick[0]["run"] == Path(weights)
