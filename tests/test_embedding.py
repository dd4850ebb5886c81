"""Informative embeddings: each kind of model against its own forward pass by hand, and what a caller can get wrong."""

from __future__ import annotations

import copy
import math
import re
from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ebmhybrid.codes import Posterior
from ebmhybrid.embedding import informative_embedding, pooled, tensor_of
from ebmhybrid.errors import EbmhybridError
from ebmhybrid.models.autoencoder import Autoencoder
from ebmhybrid.models.image_transformer import ImageTransformer
from ebmhybrid.models.sequence_autoencoder import SequenceAutoencoder
from ebmhybrid.teaching import call_of

# torch says so of its own fast path for masked encoders, and of encoders that have none.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance)


def naive_pool(states: Tensor, mask: Tensor, pool: str) -> Tensor:
    """Position by position, in Python's floats."""
    rows = []
    for row, kept in zip(states.tolist(), mask.tolist(), strict=True):
        seen = [state for state, keep in zip(row, kept, strict=True) if keep]
        reduce = {"mean": lambda values: math.fsum(values) / len(values), "max": max, "last": lambda values: values[-1]}
        rows.append([reduce[pool](column) for column in zip(*seen, strict=True)])
    return torch.tensor(rows, dtype=states.dtype)


@pytest.mark.parametrize("pool", ["mean", "max", "last"])
def test_pooling_is_the_naive_loop(pool) -> None:
    states = torch.randn(6, 5, 3, dtype=torch.float64)
    mask = torch.tensor(
        [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0] * 4 + [1]]
    )
    expected = naive_pool(states, mask, pool)
    assert close(pooled(states, mask.bool(), pool), expected, 1e-14)
    everything = torch.ones_like(mask)
    assert close(pooled(states, None, pool), naive_pool(states, everything, pool), 1e-14)
    # What is masked may be anything.
    worse = states.masked_fill(~mask.bool()[..., None], math.nan)
    assert close(pooled(worse, mask.bool(), pool), expected, 1e-14)


def test_maps_are_pooled_over_pixels_and_vectors_not_at_all() -> None:
    maps = torch.randn(2, 3, 4, 5)
    assert close(pooled(maps, None, "mean"), maps.mean((2, 3)))
    assert close(pooled(maps, None, "max"), maps.amax((2, 3)))
    assert close(pooled(maps, None, "none"), maps.flatten(2).transpose(1, 2))
    vectors = torch.randn(2, 3)
    for pool in ("mean", "max", "last", "none"):
        assert pooled(vectors, None, pool) is vectors


def test_a_function_pools_states_with_their_mask() -> None:
    states, mask = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]])
    first_and_count = pooled(states, mask, lambda h, kept: torch.cat([h[:, 0], kept.sum(1, keepdim=True)], dim=1))
    assert close(first_and_count[:, :4], states[:, 0])
    assert first_and_count[:, 4].tolist() == [2, 1]


def test_an_output_stands_for_its_tensor() -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    normal = torch.distributions.Normal(x, 1.0)
    hugging = type("Output", (OrderedDict,), {"last_hidden_state": y})(past=x)
    for output, expected in (
        (x, x),
        (Posterior(x, y), x),
        (normal, x),
        ((x, y), x),
        ([(y, x)], y),
        (hugging, y),
        (OrderedDict(latent_dist=normal), x),
    ):
        assert tensor_of(output, "encoder") is expected or torch.equal(tensor_of(output, "encoder"), expected)
    for nothing in (None, (), "text", {}):
        with pytest.raises(EbmhybridError, match=f"encoder must return a tensor or .* got {type(nothing).__name__}"):
            tensor_of(nothing, "encoder")


# --- our own models -------------------------------------------------------------------------------------------------


@pytest.fixture
def autoencoder() -> Autoencoder:
    return Autoencoder(latent=4, width=16, norm="layer", likelihood="logistic").eval()


@pytest.fixture
def sequences() -> SequenceAutoencoder:
    return SequenceAutoencoder(["C", "N", "O"], max_length=8, latent=4, dim=16, layers=2, heads=2, dropout=0.3).eval()


@pytest.fixture
def transformer() -> ImageTransformer:
    return ImageTransformer(levels=4, dim=16, layers=2, heads=2, dropout=0.3).eval()


def test_an_autoencoder(autoencoder) -> None:
    images = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        z = autoencoder.encode(images).mean
        hidden = autoencoder.hidden(z)
    embed = partial(informative_embedding, autoencoder.encode, x=images)
    assert close(embed(autoencoder.decode), hidden.mean((2, 3)))
    assert close(embed(autoencoder.hidden), hidden.mean((2, 3)))
    assert close(embed(autoencoder.decode, pool="max"), hidden.amax((2, 3)))
    assert close(embed(autoencoder.decode, layer="decoder.last"), hidden.mean((2, 3)))
    assert close(embed(autoencoder.decode, layer=autoencoder.decoder.head), autoencoder.decoder.head(z).detach())
    both = embed(autoencoder.decode, concat_latent=True)
    assert close(both, torch.cat([hidden.mean((2, 3)), z], dim=1))


def test_a_sequence_autoencoder_and_its_padding(sequences) -> None:
    tokens = sequences.tokens(["CCO", "CNNCO", "O"])
    with torch.no_grad():
        z = sequences.encode(tokens).mean
        hidden = sequences.hidden(z, tokens)
    lengths = torch.tensor([4, 6, 2])
    expected = torch.stack([row[:length].mean(0) for row, length in zip(hidden, lengths, strict=True)])
    embed = partial(informative_embedding, sequences.encode, sequences.decode)
    assert close(embed(tokens), expected)
    assert close(embed(nn.functional.pad(tokens, (0, 2))), expected)
    assert close(embed(tokens, layer="decoder_norm"), expected)
    assert close(embed(tokens, pool="last"), hidden[torch.arange(3), lengths - 1])
    assert close(embed(tokens, mask=torch.ones_like(tokens)), hidden.mean(1))
    assert close(embed(tokens, concat_latent=True), torch.cat([expected, z], dim=1))


def test_an_image_transformer(transformer) -> None:
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        memory = transformer.encode(images)
        hidden = transformer.hidden(transformer.tokens(images), memory)
    embed = partial(informative_embedding, transformer.encode, x=images)
    assert close(embed(transformer.logits), hidden.mean(1))
    assert close(embed(transformer.hidden), hidden.mean(1))
    assert close(embed(transformer.logits, layer="decoder.head"), transformer.decoder.head(hidden).detach().mean(1))
    both = embed(transformer.logits, concat_latent=True)
    assert close(both, torch.cat([hidden.mean(1), transformer.features(images).detach()], dim=1))
    other = transformer.tokens(torch.rand(3, 1, 8, 8))
    with torch.no_grad():
        taught = transformer.hidden(other, memory)
    assert close(embed(transformer.logits, target=other), taught.mean(1))


# --- torch.nn.Transformer -------------------------------------------------------------------------------------------


def torch_transformer(batch_first: bool = True) -> nn.Transformer:
    torch.manual_seed(3)
    return nn.Transformer(8, 2, 2, 2, 16, dropout=0.3, batch_first=batch_first)


KEPT = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()


def by_hand(model: nn.Transformer, source: Tensor, target: Tensor | None = None) -> Tensor:
    """The mean hidden state of a single source without padding, (1, 8)."""
    model = copy.deepcopy(model).eval()
    target = source if target is None else target
    causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
    with torch.no_grad():
        return model.decoder(target, model.encoder(source), tgt_mask=causal).mean(1)


def test_a_torch_transformer_however_its_arguments_come() -> None:
    model, x = torch_transformer(), torch.randn(3, 5, 8)
    lengths = KEPT.sum(1).tolist()
    expected = torch.cat([by_hand(model, x[i : i + 1, :length]) for i, length in enumerate(lengths)])
    padded = x.masked_fill(~KEPT[..., None], 1e3)
    additive = torch.zeros(3, 5).masked_fill(~KEPT, -math.inf)
    for given in (
        (padded, None, ~KEPT),
        {"src": padded, "src_key_padding_mask": ~KEPT},
        {"src_key_padding_mask": ~KEPT, "src": padded},
        {"src": padded, "src_key_padding_mask": additive},
    ):
        assert close(informative_embedding(model.encoder, model.decoder, given), expected, 1e-5)
    assert close(informative_embedding(model.encoder, model.decoder, padded, mask=KEPT), expected, 1e-5)
    alone = informative_embedding(model.encoder, model.decoder, x)
    assert close(alone, torch.cat([by_hand(model, x[i : i + 1]) for i in range(3)]), 1e-5)


def test_a_torch_transformer_with_its_sequences_first() -> None:
    model, x = torch_transformer(), torch.randn(3, 5, 8)
    turned = torch_transformer(batch_first=False)
    turned.load_state_dict(model.state_dict())
    for options in ({}, {"mask": KEPT}, {"concat_latent": True}, {"pool": "last", "mask": KEPT}, {"layer": "layers.0"}):
        expected = informative_embedding(model.encoder, model.decoder, x, **options)
        found = informative_embedding(turned.encoder, turned.decoder, x.transpose(0, 1), **options)
        assert close(found, expected, 1e-5)


def test_a_target_teaches_in_place_of_x() -> None:
    model, x, y = torch_transformer(), torch.randn(1, 5, 8), torch.randn(1, 4, 8)
    expected = by_hand(model, x, y)
    embed = partial(informative_embedding, model.encoder, model.decoder, x)
    assert close(embed(target=y), expected, 1e-5)
    longer = nn.functional.pad(y, (0, 0, 0, 2), value=9.0)
    padding = torch.tensor([[False] * 4 + [True] * 2])
    assert close(embed(target={"tgt": longer, "tgt_key_padding_mask": padding}), expected, 1e-5)
    seen = torch.zeros(4, 4, dtype=torch.bool)  # the caller's own mask, of everything
    with torch.no_grad():
        free = model.eval().decoder(y, model.encoder(x)).mean(1)
    assert close(embed(target={"tgt": y, "tgt_mask": seen}), free, 1e-5)
    assert not close(free, expected, 1e-3)


# --- Hugging Face ---------------------------------------------------------------------------------------------------

IDS = torch.tensor([[5, 6, 7, 2], [5, 2, 1, 1]])


@pytest.fixture(scope="module")
def hugging_face() -> dict[str, tuple[nn.Module, nn.Module, nn.Module]]:
    """Name -> a whole model, its encoder, its decoder; padding is 1 for both."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"d_model": 16, "vocab_size": 12, "pad_token_id": 1, "eos_token_id": 2}
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_kv=8, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=1, **sizes)
    )
    layers = {f"{part}_{key}": 2 for part in ("encoder", "decoder") for key in ("layers", "attention_heads")}
    widths = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 16}
    bart = transformers.BartForConditionalGeneration(transformers.BartConfig(**layers, **widths, **sizes))
    return {"t5": (t5, t5.encoder, t5.decoder), "bart": (bart, bart.model.encoder, bart.model.decoder)}


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_hugging_face_model(hugging_face, name) -> None:
    """Its own loss does the same teacher forcing, and returns all hidden states."""
    model, encoder, decoder = hugging_face[name]
    model.eval()
    kept = IDS != 1
    with torch.no_grad():
        out = model(input_ids=IDS, attention_mask=kept.long(), labels=IDS, output_hidden_states=True)
    last = out.decoder_hidden_states[-1]
    expected = torch.stack([row[keep].mean(0) for row, keep in zip(last, kept, strict=True)])
    model.train()
    embed = partial(informative_embedding, encoder, decoder)
    for given in (IDS, {"input_ids": IDS, "attention_mask": kept.long()}, (IDS, kept.long())):
        assert close(embed(given), expected)
    assert close(embed(IDS[1:, :2]), expected[1:], 1e-5)
    assert close(embed(nn.functional.pad(IDS, (0, 3), value=1)), expected, 1e-5)
    z = out.encoder_last_hidden_state
    both = torch.cat([expected, torch.stack([z[0].mean(0), z[1, :2].mean(0)])], dim=1)
    assert close(embed(IDS, concat_latent=True), both)
    target = torch.tensor([[1, 5, 6, 7], [1, 5, 1, 1]])  # the start token is the padding: nothing may hide it
    whole = {"input_ids": target if name == "t5" else target.clone().index_fill_(1, torch.tensor([0]), 2)}
    assert close(embed(IDS, target=whole | {"attention_mask": kept.long()}), expected)
    assert model.training


def test_a_layer_of_a_hugging_face_model_returns_a_tuple_or_a_tensor(hugging_face) -> None:
    model, encoder, decoder = hugging_face["t5"]
    with torch.no_grad():
        out = model.eval()(input_ids=IDS[:1], labels=IDS[:1], output_hidden_states=True)
    embed = partial(informative_embedding, encoder, decoder, IDS[:1])
    expected = out.decoder_hidden_states[1].mean(1)
    assert close(embed(layer="block.0"), expected)
    assert close(embed(layer=decoder.block[0]), expected)


# --- any callables --------------------------------------------------------------------------------------------------


def test_plain_functions_of_z_and_of_z_and_x() -> None:
    x = torch.rand(4, 6)
    double, triple = (lambda x: 2 * x), (lambda z, x: torch.stack([z, 3 * x], dim=1))
    assert close(informative_embedding(double, lambda z: z + 1, x), 2 * x + 1)
    assert close(informative_embedding(double, lambda z, scale=5.0: scale * z, x), 10 * x)
    assert close(informative_embedding(double, triple, x), 2.5 * x)
    assert close(informative_embedding(double, partial(triple, x=x), x, pool="max"), 3 * x)
    assert close(informative_embedding(lambda a, b: (a + b, None), torch.exp, (x, x)), (2 * x).exp())
    weights = torch.tensor([[True, False]] * 4)
    assert close(informative_embedding(double, triple, x, mask=weights), 2 * x)
    assert close(informative_embedding(double, triple, x, target=torch.zeros(4, 6)), x)


def test_decode_without_hidden_is_called_itself() -> None:
    class Plain(nn.Module):
        def encode(self, x: Tensor) -> Tensor:
            return -x

        def decode(self, z: Tensor) -> Tensor:
            return z * 3

        def features(self, z: Tensor) -> Tensor:
            return z * 5

    class Deep(Plain):
        def hidden(self, z: Tensor) -> Tensor:
            return z * 7

    x = torch.rand(2, 3)
    for model, name, factor in ((Plain(), "decode", -3), (Deep(), "decode", -7), (Deep(), "features", -5)):
        assert close(informative_embedding(model.encode, getattr(model, name), x), factor * x)


def test_half_precision_becomes_float32_and_float64_stays() -> None:
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        model = nn.Linear(3, 3, dtype=dtype)
        assert informative_embedding(model, model, torch.rand(2, 3, dtype=dtype)).dtype == expected


# --- laws -----------------------------------------------------------------------------------------------------------


def models() -> dict[str, tuple[nn.Module, partial, Tensor]]:
    auto = Autoencoder(latent=4, width=16, norm="layer")
    text = SequenceAutoencoder(["C", "N"], max_length=6, latent=4, dim=16, layers=1, heads=2, dropout=0.3)
    gcrl = ImageTransformer(levels=4, dim=16, layers=1, heads=2, dropout=0.3)
    seq = torch_transformer()
    made = {}
    for name, model, encoder, decoder, x in (
        ("autoencoder", auto, auto.encode, auto.decode, torch.rand(4, 1, 8, 8)),
        ("sequences", text, text.encode, text.decode, text.tokens(["CCN", "N", "CCCCC", "NN"])),
        ("image transformer", gcrl, gcrl.encode, gcrl.logits, torch.rand(4, 1, 8, 8)),
        ("torch", seq, seq.encoder, seq.decoder, torch.randn(4, 5, 8)),
    ):
        made[name] = model, partial(informative_embedding, encoder, decoder), x
    return made


@pytest.mark.parametrize("name", ["autoencoder", "sequences", "image transformer", "torch"])
def test_laws_of_every_kind(name) -> None:
    """Rows do not mix, dropout is off, modes and hooks are as before, there are no gradients and no random draws."""
    model, embed, x = models()[name]
    model.train()
    frozen = next(module for module in model.modules() if module is not model)
    frozen.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    found = embed(x, concat_latent=True)
    assert found.shape[0] == 4
    assert found.dim() == 2
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert close(embed(x, concat_latent=True), found, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert True in modes
    assert not any(module._forward_hooks for module in model.modules())
    rows = torch.cat([embed(x[i : i + 1], concat_latent=True) for i in range(4)])
    assert close(rows, found, 1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_a_hook_is_gone_and_modes_are_back_after_an_error() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, z: Tensor) -> Tensor:
            self.inner(z)
            raise RuntimeError("no")

    decoder, encoder = Broken().train(), nn.Linear(3, 3).train()
    with pytest.raises(RuntimeError, match="no"):
        informative_embedding(encoder, decoder, torch.rand(2, 3), layer="inner")
    assert not decoder.inner._forward_hooks
    assert decoder.training
    assert encoder.training
    informative_embedding(encoder, nn.Sequential(layer := nn.Linear(3, 3)), torch.rand(2, 3), layer="0")
    assert not layer._forward_hooks


def test_the_last_of_several_calls_of_a_layer_counts() -> None:
    layer = nn.Linear(3, 3)
    x = torch.rand(2, 3)
    found = informative_embedding(lambda x: x, lambda z: layer(layer(z)) * 0, x, layer=layer)
    assert close(found, layer(layer(x)).detach())


@pytest.mark.parametrize("kind", ["layer", "number", "method"])
def test_only_a_method_hidden_stands_for_decode(kind) -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(3, 4)
            if kind != "method":
                self.hidden = nn.Linear(3, 5) if kind == "layer" else 8

        def decode(self, z: Tensor) -> Tensor:
            return self.out(z)

    class WithMethod(Decoder):
        def hidden(self, z: Tensor) -> Tensor:
            return 2 * z

    x, decoder = torch.rand(2, 3), WithMethod() if kind == "method" else Decoder()
    found = informative_embedding(lambda x: x, decoder.decode, x)
    assert close(found, 2 * x if kind == "method" else decoder.out(x).detach())


# --- what can be wrong ----------------------------------------------------------------------------------------------


def wrong(message: str, encoder, decoder, x, **options):
    with pytest.raises(EbmhybridError, match=message):
        informative_embedding(encoder, decoder, x, **options)


def test_wrong_input_is_said_with_its_value() -> None:
    model = nn.Sequential(OrderedDict(first=nn.Linear(3, 3), second=nn.Sequential(nn.Linear(3, 3))))
    x = torch.rand(2, 3)
    same, seq = nn.Identity(), torch.rand(2, 4, 3)
    wrong("pool = 'maen': did you mean 'mean'", same, model, x, pool="maen")
    wrong(r"pool = 3: valid: last, max, mean, none, or a function", same, model, x, pool=3)
    wrong("concat_latent needs pooled features, got pool = 'none'", same, model, x, pool="none", concat_latent=True)
    wrong(r"layer = 'frist': .*did you mean 'first'\?", same, model, x, layer="frist")
    wrong("layer = 'x': no such module in the decoder, valid: first, second$", same, model, x, layer="x")
    wrong("layer = 'first': the decoder is a plain function", same, lambda z: model(z), x, layer="first")
    wrong("layer 'Linear' is not called by the decoder", same, model, x, layer=nn.Linear(3, 3))
    wrong(r"hidden states must be \(N, D\).*got \(2, 3, 1, 1, 1\)", same, lambda z: z.view(2, 3, 1, 1, 1), x)
    wrong(r"hidden states must .*got \(2,\)", same, lambda z: z.sum(1), x)
    wrong(r"mask must be \(2, 4\) as the hidden states, got \(2, 3\)", same, same, seq, mask=torch.ones(2, 3))
    wrong("row 1 has no position", same, same, seq, mask=torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]]))
    wrong("decoder must take z, or z and x, got one that takes a, b, c", same, lambda a, b, c: a, x)
    wrong("decoder must return a tensor or .* got int", same, lambda z: 3, x)
    wrong("hidden states must be floating point, got torch.int64", same, lambda z: z.long(), x)
    wrong("layer must be a module, its dotted name or None, got 3", same, model, x, layer=3)
    wrong(r"mask must be a tensor \(N, L\) or None, got list", same, same, seq, mask=[1])
    wrong(r"pool must return floating point \(2, D\), got list", same, same, seq, pool=lambda h, m: h.tolist())
    wrong(r"pool must return .* got torch.int64 \(2, 3\)", same, same, seq, pool=lambda h, m: h[:, 0].long())
    wrong(r"pool must return .* got torch.float32 \(1, 3\)", same, same, seq, pool=lambda h, m: h[:1, 0])
    takes_tokens = "x cannot teach the decoder, which takes tokens, got torch.float32: give it a target"
    wrong(takes_tokens, same, lambda tokens, memory: memory, x)
    wrong("encoder must return a tensor or .* got NoneType", lambda x: None, same, x)
    wrong("x must be a tensor, or arguments that begin with one, got str", same, same, "CCO")
    wrong("x must be a tensor, .* got NoneType", same, same, {"attention_mask": x})


def test_padding_that_a_causal_decoder_would_see(hugging_face) -> None:
    model, x = torch_transformer(), torch.rand(2, 3, 8)
    before = torch.tensor([[0, 1, 1], [1, 1, 1]])
    wrong("padding before or among the tokens", model.encoder, model.decoder, x, mask=before)
    _, encoder, decoder = hugging_face["t5"]
    wrong("padding before or among", encoder, decoder, torch.tensor([[1, 5, 2]]))


def test_what_cannot_teach_a_decoder_of_token_ids(hugging_face) -> None:
    _, encoder, decoder = hugging_face["t5"]
    embedded = {"inputs_embeds": torch.rand(1, 3, 16)}
    wrong("x cannot teach the decoder.* got torch.float32 and 1: give it a target", encoder, decoder, embedded)
    assert informative_embedding(encoder, decoder, embedded, target=torch.tensor([[3, 5]])).shape == (1, 16)
    start, decoder.config.decoder_start_token_id = decoder.config.decoder_start_token_id, None
    try:
        wrong("got torch.int64 and None: give it a target", encoder, decoder, IDS)
    finally:
        decoder.config.decoder_start_token_id = start


def test_a_call_leaves_the_callers_arguments_alone() -> None:
    encoder, given, mask = torch_transformer().encoder, {"src": torch.rand(1, 2, 8)}, torch.tensor([[True, False]])
    call = call_of(encoder, given, mask)
    assert list(given) == ["src"]
    assert call.kwargs["src_key_padding_mask"].tolist() == [[False, True]]
    # A mask among the arguments stays what the model sees; the one given says what is pooled.
    given["src_key_padding_mask"] = torch.zeros(1, 2, dtype=torch.bool)
    call = call_of(encoder, given, mask)
    assert call.kwargs["src_key_padding_mask"] is given["src_key_padding_mask"]
    assert call.mask is not None
    assert call.mask.tolist() == [[True, False]]


def test_the_examples_of_the_page_run() -> None:
    text = (Path(__file__).parent.parent / "docs" / "embedding.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) >= 4
    scope: dict[str, object] = {}
    for block in blocks:
        if "transformers" in block:
            pytest.importorskip("transformers")
        exec(block, scope)
