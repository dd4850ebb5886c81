"""Files of strangers: nothing in them is executed, what they announce is checked before it is allocated, and what they
say is text on a page. Each is refused by one line of our own, on the command line too.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fake_suite
import hostile_files as hostile
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from data_files import idx_bytes, make_cifar10, make_cifar10c, make_mnist_like, make_svhn, pixels
from PIL import Image
from torch import nn

from ebmhybrid import array_files
from ebmhybrid.cli import main
from ebmhybrid.data import load_set
from ebmhybrid.data.archives import unpack
from ebmhybrid.data.formats import decode_images, read_cifar, read_idx, read_svhn
from ebmhybrid.errors import CheckpointError, DataError, EbmhybridError, RecipeError
from ebmhybrid.evaluate import cache, compare_sections
from ebmhybrid.evaluate.compare_runs import Run, compare_results
from ebmhybrid.evaluate.from_logits import read_logits
from ebmhybrid.evaluate.generation_features import InceptionWeights
from ebmhybrid.evaluate.report import render_page, sections_of
from ebmhybrid.evaluate.robust_journal import Journal
from ebmhybrid.external import read_state_dict
from ebmhybrid.models import build_model, import_released
from ebmhybrid.models.fit import check_fits
from ebmhybrid.recipe import load_recipe, parse_recipe
from ebmhybrid.tensor_files import load_tensors
from ebmhybrid.training.checkpoint import load_model, load_state

Reader = Callable[[Path], object]


def cifar(path: Path) -> object:
    return read_cifar([path], "labels", list("ab"))


def journal(path: Path) -> object:
    return Journal(path, {"seed": 1})


def npz_set(path: Path) -> object:
    return load_set(f"npz:{path}")


def kept(path: Path) -> None:
    """The evaluation's cache takes what it cannot use for absent."""
    assert cache._read(path, "x", "digest", features=False) is None
    raise CheckpointError("absent")


OF_TENSORS: dict[str, Reader] = {
    "state.pt": load_state,
    "external.pt": read_state_dict,
    "released.pt": import_released,
    "inception.pth": InceptionWeights.read,
}
OF_SAFETENSORS: dict[str, Reader] = {"model.safetensors": load_model, "external.safetensors": read_state_dict}
OF_ARRAYS: dict[str, Reader] = {"set.npz": npz_set, "scores.npz": read_logits, "cache.npz": kept}


def refused(read: Reader, path: Path) -> str:
    """The message with which a file is refused: one line of an error of ours."""
    with pytest.raises(EbmhybridError) as caught:
        read(path)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


@pytest.fixture
def one_gib() -> Iterator[None]:
    """At most 1 GiB more of addresses than are in use: asking for more fails at once."""
    resource = pytest.importorskip("resource")
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def no_memory_was_asked(message: str) -> None:
    """A refusal that says what the file announces, and not that there was no memory for it."""
    assert not re.search("memory|alloc|Unable", message, re.IGNORECASE), message


# --- nothing is executed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OF_TENSORS, *OF_SAFETENSORS, *OF_ARRAYS, "batch", "journal.jsonl"])
@pytest.mark.parametrize("form", ["torch", "legacy torch", "pickle", "array of objects"])
def test_a_payload_is_not_executed(tmp_path, name, form) -> None:
    readers = {**OF_TENSORS, **OF_SAFETENSORS, **OF_ARRAYS, "batch": cifar, "journal.jsonl": journal}
    planted = hostile.payload(tmp_path / "proof")
    objects = np.array([planted], dtype=object)
    file = io.BytesIO()
    np.savez(file, x=objects, y=objects, logits=objects, labels=objects, notes=objects, image_shape=objects)
    content = {
        "torch": hostile.saved({"format": "1", "model": planted}),
        "legacy torch": hostile.saved({"format": "1", "model": planted}, zipped=False),
        "pickle": pickle.dumps({"data": planted}),
        "array of objects": file.getvalue(),
    }
    (tmp_path / name).write_bytes(content[form])
    refused(readers[name], tmp_path / name)
    assert not (tmp_path / "proof").exists()
    pickle.loads(content["pickle"])  # it would have run
    assert (tmp_path / "proof").exists()


TAGS = ["object/apply:os.mkdir [proof]", "object/new:os.mkdir [proof]", "name:os.mkdir", "module:os"]


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_in_a_recipe_is_not_executed(tmp_path, monkeypatch, tag) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(f"seed: !!python/{tag}\n")
    assert "could not determine a constructor" in refused(load_recipe, tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match="could not determine a constructor"):
        load_recipe("smoke", [f"seed=!!python/{tag}"])
    assert not (tmp_path / "proof").exists()


# --- sizes are checked before anything is allocated -------------------------------------------------------------


@pytest.mark.parametrize("name", OF_TENSORS)
@pytest.mark.parametrize("kind", hostile.huge_torch_files())
def test_torch_files_that_announce_too_much(tmp_path, one_gib, name, kind) -> None:
    (tmp_path / name).write_bytes(hostile.huge_torch_files()[kind])
    message = refused(OF_TENSORS[name], tmp_path / name)
    no_memory_was_asked(message)
    assert name == "state.pt" or re.search("announced|not dense|by its size|values are set in a", message)


@pytest.mark.parametrize("name", OF_SAFETENSORS)
def test_safetensors_that_announce_too_much(tmp_path, one_gib, name) -> None:
    path = tmp_path / name
    for content in (hostile.huge_safetensors(), hostile.safetensors({}, length=2**40)):
        path.write_bytes(content)
        no_memory_was_asked(refused(OF_SAFETENSORS[name], path))


@pytest.mark.parametrize("name", OF_ARRAYS)
def test_npz_that_announces_too_much(tmp_path, one_gib, name) -> None:
    (tmp_path / name).write_bytes(hostile.huge_npz())
    message = refused(OF_ARRAYS[name], tmp_path / name)
    no_memory_was_asked(message)
    assert name == "cache.npz" or "announces (1099511627776," in message


@pytest.mark.parametrize("descr", ["|u1", "|V2147483647", "<U250000000"])
def test_numbers_of_any_width_are_counted(tmp_path, one_gib, descr) -> None:
    x = hostile.npy(pixels(0, 2, 4, 4), descr=descr, shape=(2**40, 4, 4))
    (tmp_path / "a.npz").write_bytes(hostile.npz(x=x, y=hostile.npy(np.zeros(2, int))))
    assert "array 'x' announces" in refused(npz_set, tmp_path / "a.npz")


def test_other_data_that_announces_too_much(tmp_path, one_gib) -> None:
    def write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    for name, content in hostile.huge_pickles().items():
        no_memory_was_asked(refused(cifar, write(name, content)))
    with pytest.raises(ValueError, match=r"IDX of \(2147483648, 28, 28\) bytes unpacks to"):
        read_idx(write("i", hostile.huge_idx()), 3)
    with pytest.raises(ValueError, match=r"IDX of \(2147483648, 28, 28\) bytes unpacks to"):
        read_idx(write("i.gz", gzip.compress(hostile.huge_idx())), 3)
    with pytest.raises(ValueError, match="a part unpacks to 4294967288 bytes"):
        read_svhn(write("s.mat", hostile.huge_mat()))
    make_cifar10c(tmp_path)
    write("CIFAR-10-C/fog.npy", hostile.npy(pixels(0, 50, 32, 32, 3), shape=(2**40, 32, 32, 3)))
    with pytest.raises(DataError, match=r"fog\.npy: cannot be read as \.npy"):
        load_set("cifar10c/fog", data_dir=tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "tga.png", "tga")
    assert "it is none by its content" in refused(lambda path: decode_images([path], 8), tmp_path / "tga.png")
    for side in (10_000, 60_000):  # Pillow warns of the first and refuses the second
        path = write("p.png", hostile.huge_picture(side))
        assert "decompression bomb" in refused(lambda path: decode_images([path], 8), path)


def test_honest_files_pass(tmp_path) -> None:
    """The same readers on the same kinds of files, without the lie."""
    network = nn.LSTM(3, 4, 2)  # its weights share one storage
    state = {**network.state_dict(), "bits": torch.ones(300, dtype=torch.bool), "half": torch.ones(3).bfloat16()}
    for zipped in (True, False):
        found = load_tensors(io.BytesIO(hostile.saved({"s": state, "seed": 2**64, "l": [(1, None)]}, zipped)))
        assert all(torch.equal(found["s"][name], value) for name, value in state.items())
        assert found["seed"] == 2**64
    (tmp_path / "x.npz").write_bytes(
        hostile.npz(packed=True, x=hostile.npy(np.zeros((9, 8, 8), np.uint8)), y=hostile.npy(np.zeros(9, int)))
    )
    assert len(load_set(f"npz:{tmp_path}/x.npz")) == 9
    for name, content in (("i", idx_bytes(pixels(0, 2, 28, 28))), ("e", idx_bytes(pixels(0, 0, 28, 28)))):
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        assert np.array_equal(read_idx(tmp_path / name, 3), read_idx(tmp_path / f"{name}.gz", 3))


def test_what_unpacks_to_something_huge(tmp_path, monkeypatch) -> None:
    """Bombs that do not lie, with bounds that are lower so that they need not be large."""
    monkeypatch.setattr(array_files, "FREELY", 2**16)
    x, y = hostile.npy(np.zeros((1000, 28, 28), np.uint8)), hostile.npy(np.zeros(1000, int))
    (tmp_path / "a.npz").write_bytes(hostile.npz(packed=True, x=x, y=y))
    (tmp_path / "b.npz").write_bytes(hostile.npz(packed=False, x=x, y=y))
    assert "the archive unpacks to 792256 bytes from" in refused(npz_set, tmp_path / "a.npz")
    assert len(load_set(f"npz:{tmp_path}/b.npz")) == 1000
    (tmp_path / "i.gz").write_bytes(gzip.compress(idx_bytes(np.zeros((1000, 28, 28), np.uint8))))
    with pytest.raises(ValueError, match="unpacks to 784000 bytes"):
        read_idx(tmp_path / "i.gz", 3)
    (tmp_path / "j.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(3, np.uint8)) + bytes(10**6)))
    with pytest.raises(DataError, match="more found"):
        read_idx(tmp_path / "j.gz", 1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("x", bytes(10**6))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("x")
        member.size = 10**6
        tar.addfile(member, io.BytesIO(bytes(10**6)))
    for name in ("a.zip", "a.tar.gz"):
        assert "the archive unpacks to 1000000 bytes" in refused(
            lambda path: unpack(path, tmp_path / "inside"), tmp_path / name
        )
    assert not (tmp_path / "inside").exists()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_in_an_archive_are_not_read_without_end(tmp_path, one_gib, kind) -> None:
    """A name of 2^33 bytes, of which there are many."""
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, 2**33
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(10**6)))
    message = refused(lambda path: unpack(path, tmp_path / "inside"), tmp_path / "a.tar.gz")
    assert "a header asks for 8589934592 bytes" in message


@pytest.mark.parametrize("outer", [gzip.compress, bz2.compress])
def test_an_archive_is_unpacked_once(tmp_path, outer) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(outer(file.getvalue())))
    refused(lambda path: unpack(path, tmp_path / "inside"), tmp_path / "a.tar.gz")


RECIPES = {
    "aliases of aliases": (hostile.laughs(), "10000 values in 32 levels"),
    "an alias of itself": ("a: &a [*a]", "10000 values in 32 levels"),
    "deep": ("a: " + "[" * 100 + "]" * 100, "10000 values in 32 levels"),
    "very deep": ("[" * 5_000, "recursion"),
    "many values": ("a: [" + "1," * 10_001 + "]", "10000 values in 32 levels"),
    "long": ("# " + "a" * 200_000, "longer than 131072 characters"),
    "a number of 5,000 digits": ("seed: " + "9" * 5000, "not valid YAML"),
    "a number of 5,000 hexadecimal digits": ("seed: 0x" + "f" * 5000, "more than 1024 bits"),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_recipes_that_grow(tmp_path, one_gib, kind) -> None:
    text, message = RECIPES[kind]
    (tmp_path / "r.yaml").write_text(text)
    assert message in refused(load_recipe, tmp_path / "r.yaml")


def test_aliases_that_do_not_grow_are_read() -> None:
    text = "optimizer: &o {lr: 0.1}\nmodel: {name: timm/x, options: {a: *o, b: *o}}"
    assert parse_recipe(text, "recipe").model.options == {"a": {"lr": 0.1}, "b": {"lr": 0.1}}
    with pytest.raises(RecipeError, match="must be KEY=VALUE"):
        load_recipe("smoke", ["optimizer." + "a." * 1000 + "b=1"])


def test_json_that_nests_without_end(tmp_path) -> None:
    deep = "[" * 10**6
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(deep)
    with pytest.raises(EbmhybridError, match="not the results of an evaluation"):
        compare_results([tmp_path / "a.json", tmp_path / "b.json"])
    assert "is not a journal" in refused(journal, tmp_path / "a.json")
    header = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    texts = {"format": "1", "architecture": deep, "classes": deep, "image_shape": deep, "recipe": deep}
    (tmp_path / "w.safetensors").write_bytes(hostile.safetensors(header | {"__metadata__": texts}))
    refused(load_model, tmp_path / "w.safetensors")


def test_weights_that_name_a_huge_network(tmp_path, one_gib) -> None:
    """A released checkpoint tells width and depth by its shapes: here 64 x 1,024 channels, and 12 GB of weights."""
    tensors = {"f.conv1.weight": torch.zeros(16, 3, 3, 3), "class_output.weight": torch.zeros(1, 2**16)}
    torch.save(tensors | {"f.layer1.0.x": torch.zeros(1)}, tmp_path / "r.pt")
    assert "weights do not fit a WideResNet" in refused(import_released, tmp_path / "r.pt")


def test_an_architecture_is_compared_before_it_is_built(one_gib) -> None:
    options = {"name": "wide_resnet", "num_classes": 3, "in_channels": 1}
    network = build_model(**options, depth=10, width=1)
    check_fits(options | {"depth": 10, "width": 1}, network.state_dict())
    for change, message in (
        (
            {"depth": 10, "width": 1024},
            r"stages\.0\.0\.conv1\.weight is \(16384, 16, 3, 3\) in the network and \(16, 16",
        ),
        ({"depth": 6 * 10**12 + 4, "width": 1}, "depth is 6000000000004, and the file has"),
        ({"depth": 16, "width": 1}, "in the network and absent in the file"),
    ):
        with pytest.raises(ValueError, match=message):
            check_fits(options | change, network.state_dict())
    with pytest.raises(ValueError, match="x is absent in the network"):
        check_fits(options | {"depth": 10, "width": 1}, {**network.state_dict(), "x": torch.ones(1)})
    with pytest.raises(ValueError, match="layers"):
        check_fits({"name": "torchvision/resnet18", "num_classes": 3, "layers": [2, 2, 10**9, 2]}, {})


# --- the command line -------------------------------------------------------------------------------------------


@pytest.fixture
def hostile_folder(tmp_path, monkeypatch) -> Path:
    """Files that would make the folder `proof` here."""
    monkeypatch.chdir(tmp_path)
    torch_file = hostile.saved({"a": hostile.payload(tmp_path / "proof")})
    for name in ("evil.pt", "evil.safetensors", "run/checkpoints/last.safetensors", "run/checkpoints/last.state.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(torch_file)
    (tmp_path / "run" / "config.yaml").write_text(load_recipe("smoke").to_yaml())
    (tmp_path / "evil.yaml").write_text("seed: !!python/object/apply:os.mkdir [proof]")
    (tmp_path / "laughs.yaml").write_text(hostile.laughs())
    (tmp_path / "huge.npz").write_bytes(hostile.huge_npz())
    (tmp_path / "deep.json").write_text("[" * 10**6)
    (tmp_path / "huge.safetensors").write_bytes(hostile.huge_safetensors())
    make_mnist_like(tmp_path / "data", "MNIST", n=4, gz=False)
    (tmp_path / "data/MNIST/raw/t10k-images-idx3-ubyte").write_bytes(hostile.huge_idx())
    make_svhn(tmp_path / "data", n=4)
    (tmp_path / "data/test_32x32.mat").write_bytes(hostile.huge_mat())
    make_cifar10(tmp_path / "data", archive=True)
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as packed:
        packed.writestr("../proof", "x")
    with tarfile.open(tmp_path / "data/cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "evil.yaml", "../proof")
    return tmp_path


COMMANDS = {
    "eval run": 1,
    "eval evil.safetensors": 1,
    "eval huge.safetensors": 1,
    "sample run": 1,
    "probe run": 1,
    "train --resume run": 1,
    "train --recipe evil.yaml": 2,
    "train --recipe laughs.yaml": 2,
    "train seed=!!python/object/apply:os.mkdir[proof]": 2,
    "eval --model torchvision/resnet18 --weights evil.pt --data digits": 1,
    "eval --model torchvision/resnet18 --weights evil.safetensors --data digits": 1,
    "eval --logits npz:huge.npz": 1,
    "train --recipe smoke data.train=npz:huge.npz": 1,
    "train --recipe smoke data.train=mnist --no-download": 1,
    "train --recipe smoke data.train=svhn --no-download": 1,
    "train --recipe smoke data.train=cifar10 --no-download": 1,
    "compare deep.json huge.npz": 1,
}


@pytest.mark.parametrize("line", COMMANDS)
def test_the_command_line_says_it_in_one_line(hostile_folder, one_gib, line) -> None:
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code == COMMANDS[line], result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert not result.stdout
    no_memory_was_asked(result.stderr)
    assert not (hostile_folder / "proof").exists()
    assert not (hostile_folder / "data" / "proof").exists()


# --- pages ------------------------------------------------------------------------------------------------------

PLAIN = "plain"
TEXTS = [
    '<img src=x onerror="alert(1)">',
    "</script><script>alert(1)</script>",
    "\"'><b onclick=alert(1)>",
    "--><!-- ]]> {{ 7 * 7 }} {% raw %} &lt;i&gt;",
    "</title></style></svg><iframe src=javascript:alert(1)>",
    "\0\u202e\u2028\ufeff\ud800".encode("utf-8", "replace").decode(),
]


class Structure(HTMLParser):
    """What a page is made of: its elements with the names of their attributes, comments and declarations."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(("/", tag))

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment", data))

    def handle_decl(self, decl: str) -> None:
        self.found.append(("declaration", decl))

    def unknown_decl(self, data: str) -> None:
        self.found.append(("declaration", data))


def suite_of(text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A full evaluation in which whatever a file or a user names is this text."""
    monkeypatch.setattr(fake_suite, "HOSTILE", text)
    found = fake_suite.fake_suite(model=text, trained=text, n=60)
    weights = {"path": text, "sha256": text}
    config = {"name": text, "data": {"train": text}, "model": {"name": text}, "x": {text: [text]}}
    found.context = {"model": text, "weights": weights, "config": config, "classes": [text, text], "notes": [text]}
    found.versions = found.versions | {text: text}
    found.settings = found.settings | {"norm": text, "scores": [text], text: text}
    return found


def pages(text: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """report.html and compare.html, with figures left empty."""
    content = suite_of(text, monkeypatch)
    runs = [Run(f"{label} {text}", Path("/x"), json.loads(json.dumps(content.as_dict()))) for label in "ab"]
    drawn = []
    for sections in (sections_of(content), compare_sections.comparison_sections(runs)):
        figures = {drawing.name: "<svg></svg>" for section in sections for drawing in section.drawings}
        drawn.append(render_page(text, text, text, sections, figures, [text]))
    return drawn


@pytest.fixture(scope="module")
def plain_pages() -> list[Structure]:
    with pytest.MonkeyPatch.context() as patch:
        return [Structure(page) for page in pages(PLAIN, patch)]


@pytest.mark.parametrize("text", ["".join(TEXTS), "".join(TEXTS[::-1])], ids=["forwards", "backwards"])
def test_a_text_makes_no_element_and_no_attribute(monkeypatch, plain_pages, text) -> None:
    for page, plain in zip(pages(text, monkeypatch), plain_pages, strict=True):
        found = Structure(page)
        assert found.found == plain.found
        assert found.scripts == plain.scripts


def test_a_text_in_a_figure_makes_no_element() -> None:
    from matplotlib.figure import Figure

    from ebmhybrid.evaluate.plots import to_svg
    from ebmhybrid.evaluate.report import inline

    def drawn(text: str) -> Structure:
        figure = Figure()
        axes = figure.add_subplot(title=text.replace("$", r"\$"), xlabel=text, ylabel=text)
        axes.plot([0, 1], label=text)
        axes.set_xticks([0], [text])
        axes.legend()
        return Structure(inline(to_svg(figure, "f")))

    for text in TEXTS[:-1]:
        assert {part[0] for part in drawn(text).found} == {part[0] for part in drawn(PLAIN).found}
        assert {part for part in drawn(text).found if "on" in part[0][:2]} == set()
