"""The sequence autoencoder: padding, causality, exact likelihoods, generation, training; and docs/sequences.md."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from ebmhybrid.codes import Posterior
from ebmhybrid.data.text import LARGEST_LINE, LARGEST_VOCABULARY, load_text
from ebmhybrid.losses.mim import cmim_loss
from ebmhybrid.models.sequence_autoencoder import SequenceAutoencoder
from ebmhybrid.vocabulary import split_tokens

START, END = 1, 2


def small(vocabulary: str = "CNO", max_length: int = 8, **options: Any) -> SequenceAutoencoder:
    sizes = {"latent": 4, "dim": 16, "layers": 2, "heads": 2, "memory": 2}
    return SequenceAutoencoder(list(vocabulary), max_length, **(sizes | options))


def lively(**options: Any) -> SequenceAutoencoder:
    """In float64, with weights far from their first values, so that every dependence shows."""
    model = small(**options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
    return model


LINES = ["CCO", "N", "CNOCNOC", ""]


# shapes and options


@pytest.mark.parametrize("options", [{}, {"layers": 1, "heads": 1, "memory": 1, "latent": 1}, {"dim": 24, "heads": 3}])
def test_shapes(options) -> None:
    model = small(**options)
    tokens = model.tokens(LINES)
    assert tokens.shape == (4, 8)
    posterior = model.encode(tokens)
    assert isinstance(posterior, Posterior)
    assert posterior.mean.shape == posterior.log_std.shape == (4, model.latent)
    z = torch.randn(4, model.latent)
    assert model.decode(z, tokens).shape == (4, 8, 4 + 3)
    assert model.hidden(z, tokens).shape == (4, 8, options.get("dim", 16))
    assert model.log_likelihood(tokens, z).shape == (4,)
    assert model.sample(3).shape[0] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length must be a whole number from 1 to 2097152, got 0"),
        ({"latent": 2.0}, "latent must be a whole number from 1 to 65536, got 2.0"),
        ({"dim": True}, "dim must be a whole number from 1 to 8192, got True"),
        ({"dim": 10**8}, "dim must be a whole number from 1 to 8192, got 100000000"),
        ({"dim": 0}, "dim must be"),
        ({"layers": 0}, "layers must be"),
        ({"heads": -1}, "heads must be"),
        ({"memory": 0}, "memory must be"),
        ({"dim": 16, "heads": 3}, "dim must be a multiple of heads, got 16 and 3"),
        ({"dropout": 1.0}, "dropout must lie in [0, 1), got 1.0"),
        ({"dropout": "x"}, "dropout must lie in [0, 1), got 'x'"),
        ({"min_log_std": 5}, "min_log_std must lie in [-20, 0], got 5"),
        ({"min_log_std": math.nan}, "min_log_std must lie in [-20, 0], got nan"),
        ({"min_log_std": -math.inf}, "min_log_std must lie in [-20, 0], got -inf"),
        ({"min_log_std": "x"}, "min_log_std must lie in [-20, 0], got 'x'"),
        ({"min_log_std": None}, "min_log_std must lie in [-20, 0], got None"),
        ({"vocabulary": ["C", "C"]}, "'C' stands twice"),
    ],
)
def test_options_that_do_not_fit(options, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        small(**options)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.full((2, 9), 4), "tokens must be int64 (N, L) with L in 1..8, got torch.int64 (2, 9)"),
        (torch.zeros(2, 0, dtype=torch.int64), "got torch.int64 (2, 0)"),
        (torch.full((2,), 4), "got torch.int64 (2,)"),
        (torch.full((2, 8), 4.0), "got torch.float32 (2, 8)"),
        (torch.full((2, 8), 7), "tokens must lie in 0..6, got 7..7"),
        (torch.full((2, 8), -1), "tokens must lie in 0..6, got -1..-1"),
    ],
)
def test_tokens_that_do_not_fit(tokens, message) -> None:
    model = small()
    for call in (model.encode, model, lambda t: model.log_likelihood(t, torch.zeros(2, 4))):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(tokens)


def test_codes_that_do_not_fit() -> None:
    model = small()
    for z in (torch.zeros(3, 4), torch.zeros(2, 5), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"z must be \(2, 4\) for these tokens, got"):
            model.decode(z, model.tokens(["C", "N"]))
    for most in (0, 9, 2.0):
        with pytest.raises(ValueError, match=f"max_length must be a whole number from 1 to 8, got {most}"):
            model.generate(torch.zeros(2, 4), max_length=most)  # type: ignore[arg-type]
    for temperature in (-0.1, math.nan, 1e-40, math.inf, None):
        message = f"temperature, unless 0, must lie in [1e-06, 1e+06], got {temperature}"
        with pytest.raises(ValueError, match=re.escape(message)):
            model.generate(torch.zeros(2, 4), temperature=temperature)  # type: ignore[arg-type]
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="z must be finite, got NaN or infinity"):
            model.generate(torch.tensor([[0.0] * 4, [0.0, 0.0, bad, 0.0]]))
    for n in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"n must be a whole number from 1 to 10000000, got {n}"):
            model.sample(n)  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [True, False])
def test_no_rows_have_no_codes(training: bool) -> None:
    model, none = small().train(training), torch.zeros(0, 5, dtype=torch.int64)
    codes = model(none)
    assert codes.mean.shape == codes.log_std.shape == codes.z.shape == (0, 4)
    assert codes.log_likelihood.shape == (0,)
    assert model.generate(codes.z).shape[0] == 0


def test_layers_do_not_begin_as_copies_of_each_other() -> None:
    model = small()
    for layers in (model.encoder_layers, model.decoder_layers):
        assert not torch.equal(layers[0].linear1.weight, layers[1].linear1.weight)


# the encoder


def test_an_encoding_is_that_of_the_row_alone_without_padding() -> None:
    model = lively()
    together = model.encode(model.tokens(LINES))
    for row, line in enumerate(LINES):
        alone = model.encode(model.tokens([line]))
        torch.testing.assert_close(alone.mean[0], together.mean[row], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(alone.log_std[0], together.log_std[row], rtol=1e-10, atol=1e-10)
    assert (together.mean[0] - together.mean[1]).abs().max() > 0.1


@pytest.mark.parametrize("training", [True, False])
def test_what_follows_the_end_has_no_influence(training) -> None:
    """Also in evaluation without gradients, where torch takes another path through its layers."""
    model = lively().train(training)
    tokens, other = model.tokens(["CCO", "NO"]), model.tokens(["CCO", "NO"])
    tokens = torch.cat([tokens, torch.zeros(2, 3, dtype=torch.int64)], 1)
    other = torch.cat([other, torch.tensor([[5, 5, 2], [0, 4, 0]])], 1)
    z = torch.randn(2, 4, dtype=torch.float64)
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(model.encode(tokens), model.encode(other), rtol=1e-12, atol=1e-12)
        a, b = model.log_likelihood(tokens, z), model.log_likelihood(other, z)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_evaluation_gives_what_training_gives() -> None:
    model = lively()
    tokens, z = model.tokens(LINES), torch.randn(4, 4, dtype=torch.float64)
    trained = model.encode(tokens), model.log_likelihood(tokens, z)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            (model.encode(tokens), model.log_likelihood(tokens, z)), trained, rtol=1e-9, atol=1e-9
        )


def test_the_pooled_vector_is_the_mean_over_the_tokens_and_the_end() -> None:
    model, states = lively(), []
    model.encoder_norm.register_forward_hook(lambda module, inputs, output: states.append(output))
    mean, _ = model.encode(model.tokens(["CNO", "C"]))
    pooled = torch.stack([states[0][0].mean(0), states[0][1, :2].mean(0)])
    expected = pooled @ model.posterior.weight.T + model.posterior.bias
    torch.testing.assert_close(mean, expected[:, :4], rtol=1e-10, atol=1e-10)


def test_order_matters_and_the_floor_holds() -> None:
    model = lively()
    mean, _ = model.encode(model.tokens(["CNO", "ONC"]))
    assert (mean[0] - mean[1]).abs().max() > 1e-3
    with torch.no_grad():
        model.posterior.bias[4:] = -1e4
    _, log_std = model.encode(model.tokens(["CNO"]))
    torch.testing.assert_close(log_std, torch.full_like(log_std, -6.0))
    model.min_log_std = -2.5
    torch.testing.assert_close(model.encode(model.tokens(["C"])).log_std, torch.full_like(log_std, -2.5))


def test_a_row_of_padding_alone_is_finite() -> None:
    """As the mean over no tokens, zero; also on the path that torch takes in evaluation, where its layers give NaN."""
    model = small()
    tokens = torch.tensor([[0, 0, 0], [4, 2, 0]])
    codes = model(tokens)
    assert codes.log_likelihood[0] == 0
    torch.testing.assert_close(codes.mean[0], model.posterior.bias[:4])
    codes.mean.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().encode(tokens).mean, codes.mean.detach())


# the decoder


def test_decoding_is_causal() -> None:
    """The logits at t see the tokens before t, each of them, and none from t on."""
    model = lively()
    tokens, z = model.tokens(["CNOCNOC"]), torch.randn(1, 4, dtype=torch.float64)
    logits = model.decode(z, tokens)
    for t in range(7):
        other = tokens.clone()
        other[:, t] = 4 if tokens[0, t] != 4 else 5
        change = (model.decode(z, other) - logits)[..., END:].abs().amax((0, 2))
        assert (change[: t + 1] < 1e-12).all(), t
        assert (change[t + 1 :] > 1e-6).all(), t


def test_every_logit_depends_on_z() -> None:
    model = lively()
    tokens = model.tokens(["CNO"])
    a, b = (model.decode(torch.full((1, 4), value, dtype=torch.float64), tokens)[..., END:] for value in (0.0, 0.5))
    assert ((a - b).abs().amax(2) > 1e-4).all()


def test_padding_and_start_are_never_predicted() -> None:
    model = lively()
    logits = model.decode(torch.zeros(1, 4, dtype=torch.float64), model.tokens(["CNO"]))
    assert (logits[..., :END] == -math.inf).all()
    assert torch.isfinite(logits[..., END:]).all()


def naive_log_likelihood(model: SequenceAutoencoder, row: list[int], z: Tensor) -> float:
    """log p(x|z) as a product of conditionals, each from the row's beginning alone."""
    total = 0.0
    for t, token in enumerate(row):
        scores = model.decode(z[None], torch.tensor([[*row[:t], 4]]))[0, t].tolist()[END:]
        total += scores[token - END] - math.log(sum(math.exp(score) for score in scores))
        if token == END:
            break
    return total


def test_the_likelihood_is_the_product_of_the_conditionals() -> None:
    model = lively()
    tokens, z = model.tokens(LINES), torch.randn(4, 4, dtype=torch.float64)
    expected = [naive_log_likelihood(model, row, code) for row, code in zip(tokens.tolist(), z, strict=True)]
    torch.testing.assert_close(model.log_likelihood(tokens, z).tolist(), expected, rtol=1e-10, atol=1e-10)


def every_sequence(model: SequenceAutoencoder, length: int) -> list[tuple[int, ...]]:
    """All rows of at most `length` ids that end, and all of exactly `length` that do not."""
    ids = range(END + 1, len(model.vocabulary))
    ended = [(*row, END) for n in range(length) for row in itertools.product(ids, repeat=n)]
    return ended + list(itertools.product(ids, repeat=length))


def exact_probabilities(model: SequenceAutoencoder, z: Tensor, length: int = 3) -> dict[tuple[int, ...], float]:
    rows = every_sequence(model, length)
    padded = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    return dict(zip(rows, model.log_likelihood(padded, z.expand(len(rows), -1)).exp().tolist(), strict=True))


def test_probabilities_of_all_sequences_sum_to_one() -> None:
    model = lively(vocabulary="CO")
    for z in torch.randn(3, 1, 4, dtype=torch.float64):
        probabilities = exact_probabilities(model, z)
        assert len(probabilities) == 1 + 3 + 9 + 27
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-12)
        assert max(probabilities.values()) < 0.9


# forward, gradients, precision


def test_forward_is_encode_draw_and_decode() -> None:
    model = lively()
    tokens = model.tokens(LINES)
    state = torch.get_rng_state()
    codes = model(tokens)
    torch.set_rng_state(state)
    mean, log_std = model.encode(tokens)
    torch.testing.assert_close((codes.mean, codes.log_std), (mean, log_std), rtol=0, atol=0)
    torch.testing.assert_close(codes.z, mean + log_std.exp() * torch.randn(4, 4).double())
    torch.testing.assert_close(codes.log_likelihood, model.log_likelihood(tokens, codes.z))


def test_gradients_reach_every_weight() -> None:
    model = small()
    tokens = model.tokens(["CNOCNOC", "OONNCCC"])
    cmim_loss(*model(tokens)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    assert model.position_embedding.weight.grad.abs().amax(1).min() > 0
    used = model.token_embedding.weight.grad.abs().amax(1) > 0
    assert used.tolist() == [False, True, True, False, True, True, True]


def test_gradients_are_those_of_finite_differences() -> None:
    model = lively(dim=8)
    tokens = model.tokens(["CNO", "C"])
    z = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: model.log_likelihood(tokens, z), (z,))


def test_likelihoods_and_codes_are_wide_under_autocast() -> None:
    model = small()
    tokens = model.tokens(LINES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = model(tokens)
    assert {part.dtype for part in codes} == {torch.float32}
    plain = model.log_likelihood(tokens, codes.z)
    torch.testing.assert_close(codes.log_likelihood, plain, rtol=0.02, atol=0.02)
    sum(part.sum() for part in codes).backward()


def test_draws_are_as_fine_under_autocast() -> None:
    """With logits that both precisions hold exactly, the same noise must draw the same tokens."""
    model = small()
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(torch.tensor([-3.0, 0.5, 1.0, 1.5, 1.0]))
    z = torch.zeros(300, 4)
    wide = model.generate(z, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.generate(z, torch.Generator().manual_seed(0)), wide)


def test_dropout_is_on_in_training_alone() -> None:
    model = small(dropout=0.5)
    tokens = model.tokens(LINES)
    assert not torch.equal(model.encode(tokens).mean, model.encode(tokens).mean)
    model.eval()
    assert torch.equal(model.encode(tokens).mean, model.encode(tokens).mean)


# generation


def test_samples_have_the_probabilities_of_the_likelihood() -> None:
    """Chi-square over all sequences of a toy vocabulary, and the mean log-likelihood against the exact entropy."""
    model, n = lively(vocabulary="CO", max_length=3), 4000
    z = torch.randn(1, 4, dtype=torch.float64)
    probabilities = exact_probabilities(model, z)
    rows = model.generate(z.expand(n, -1), torch.Generator().manual_seed(0))
    counts = dict.fromkeys(probabilities, 0)
    for row in rows.tolist():
        counts[tuple(row[: row.index(END) + 1] if END in row else row)] += 1
    common = [row for row, p in probabilities.items() if n * p >= 5]
    assert len(common) >= 8
    rare = n * (1 - sum(probabilities[row] for row in common))
    expected = [n * probabilities[row] for row in common] + [rare]
    found = [counts[row] for row in common]
    assert stats.chisquare([*found, n - sum(found)], expected).pvalue > 0.01
    entropy = -sum(p * math.log(p) for p in probabilities.values())
    spread = math.sqrt(sum(p * math.log(p) ** 2 for p in probabilities.values()) - entropy**2)
    found_mean = model.log_likelihood(rows, z.expand(n, -1)).mean().item()
    assert abs(found_mean + entropy) < 4 * spread / math.sqrt(n)


def test_temperature_sharpens_and_zero_is_greedy() -> None:
    model = lively()
    z = torch.randn(6, 4, dtype=torch.float64)
    greedy = model.generate(z, temperature=0)
    for row, code in zip(greedy.tolist(), z, strict=True):
        by_hand: list[int] = []
        while len(by_hand) < 8 and END not in by_hand:
            by_hand.append(int(model.decode(code[None], torch.tensor([[*by_hand, 4]]))[0, -1].argmax()))
        assert row == by_hand + [0] * (greedy.shape[1] - len(by_hand))
    cold = model.generate(z, torch.Generator().manual_seed(0), temperature=1e-3)
    assert torch.equal(cold, greedy)
    hot = model.generate(z.repeat(50, 1), torch.Generator().manual_seed(0), temperature=1e6)[:, 0]
    assert hot.bincount(minlength=7)[END:].min() > 300 / 5 * 0.6  # nearly uniform over end, unknown and three tokens


def test_generated_rows_end_once_and_are_padded_behind() -> None:
    model = lively()
    with torch.no_grad():
        model.output.bias[0] += 2  # of the end token
    rows = model.generate(torch.randn(200, 4, dtype=torch.float64), torch.Generator().manual_seed(1))
    ends = (rows == END).sum(1)
    assert ends.max() == 1
    assert len(ends.unique()) == 2 or (rows != 0).sum(1).max() < 8
    for row in rows[ends == 1].tolist():
        assert set(row[row.index(END) + 1 :]) <= {0}
        assert 0 not in row[: row.index(END)]
    assert (rows[ends == 0] > END).all()
    assert (rows != START).all()


def test_generation_stops_when_all_have_ended_or_at_the_length() -> None:
    model = small()
    with torch.no_grad():
        model.output.bias[0] = 1e4
    assert model.generate(torch.zeros(3, 4)).tolist() == [[END]] * 3
    with torch.no_grad():
        model.output.bias[0] = -1e4
    assert model.generate(torch.zeros(3, 4)).shape == (3, 8)
    assert model.generate(torch.zeros(3, 4), max_length=2).shape == (3, 2)
    assert model.generate(torch.zeros(0, 4)).shape[0] == 0


def test_generation_keeps_no_graph() -> None:
    model, states = small(), []
    model.decoder_norm.register_forward_hook(lambda module, inputs, output: states.append(output))
    model.generate(torch.zeros(1, 4))
    assert states
    assert not any(state.requires_grad for state in states)


def test_draws_come_from_the_generator() -> None:
    model = small()
    state = torch.get_rng_state()
    first, second, third = (model.sample(20, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, second)
    assert first.shape != third.shape or not torch.equal(first, third)
    assert not torch.equal(state, (model.sample(2), torch.get_rng_state())[1])


def test_samples_are_those_of_standard_normal_codes() -> None:
    model = small()
    generator, again = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    z = torch.randn(7, 4, generator=again)
    assert torch.equal(model.sample(7, generator), model.generate(z, again))
    assert model.double().sample(2, generator).dtype == torch.int64


# text, copies


def test_lines_to_tokens_and_back() -> None:
    model = small()
    assert model.strings(model.tokens(LINES)) == LINES
    with pytest.raises(ValueError, match="'CCCCCCCC' has 9 tokens with its end, at most 8 fit"):
        model.tokens(["CCCCCCCC"])


def test_a_model_is_its_options_and_weights() -> None:
    options = {"vocabulary": ["C", "[Na+]"], "max_length": 6, "latent": 4, "dim": 16, "layers": 1, "heads": 2}
    model = SequenceAutoencoder(**options)
    again = SequenceAutoencoder(**json.loads(json.dumps(options)))
    again.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    tokens = model.tokens(["C[Na+]"])
    for other in (again, twin):
        assert torch.equal(other.tokens(["C[Na+]"]), tokens)
        torch.testing.assert_close(other.encode(tokens), model.encode(tokens), rtol=0, atol=0)


# training


def test_training_learns_to_reconstruct(tmp_path) -> None:
    """Chains of three groups of four: given its code, an unseen chain becomes likelier than its entropy, 3 log 4."""
    chains = ["".join(chain) for chain in itertools.product(["C", "N", "Cl", "(O)"], repeat=3)]
    (tmp_path / "chains.txt").write_text("\n".join(chains))
    data = load_text(str(tmp_path / "chains.txt"))
    torch.manual_seed(1)
    model = SequenceAutoencoder(list(data.vocabulary.tokens), *data.shape, latent=8, dim=32, layers=1, heads=2)
    order = torch.randperm(len(data))
    train, unseen = data.tokens[order[:-16]], data.tokens[order[-16:]]
    before = model(unseen).log_likelihood.mean()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(100):
        loss = cmim_loss(*model(train))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = model(unseen).log_likelihood.mean()
        blind = model.log_likelihood(unseen, torch.zeros(16, 8)).mean()
    assert before < -10
    assert after > -3 * math.log(4) + 0.5, (before, after)
    assert after > blind + 1, (after, blind)


# the document


def test_the_snippets_of_the_page_run(tmp_path, monkeypatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "sequences.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(snippet, names)
    data, model = names["data"], names["model"]
    assert (len(data), data.targets.shape) == (4000, (4000,))
    assert names["tokens"].shape == (2, 9)
    assert names["posterior"].mean.shape == (2, 32)
    assert names["features"].shape == (2, 64)
    assert (len(names["greedy"]), len(names["drawn"])) == (2, 5)
    again = load_text("molecules.txt", model.max_length, model.vocabulary)
    assert torch.equal(again.tokens, data.tokens)


def test_the_page_shows_what_the_tokeniser_does() -> None:
    page = (Path(__file__).parent.parent / "docs" / "sequences.md").read_text()
    examples = re.findall(r"^(split_tokens\(.*\))  # (.*)$", page, re.M)
    assert examples
    for call, tokens in examples:
        assert eval(call, {"split_tokens": split_tokens}) == eval(tokens)
    for limit in (LARGEST_LINE, LARGEST_VOCABULARY):
        assert f"{limit:,}" in page
