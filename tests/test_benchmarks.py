"""The benchmarks run and say what they should, at tiny sizes; how fast anything is, no test can tell."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import Counter

import pytest
import torch
from torch import nn

from benchmarks import __main__ as everything
from benchmarks import (
    evaluate,
    harness,
    kernel,
    layer,
    loopback,
    loss,
    processes,
    profile_step,
    representation,
    rings,
    sgld,
    startup,
    traffic,
    train_step,
)
from ebmhybrid import HDGELoss, WideResNet, load_recipe
from ebmhybrid.data import ImageSet
from ebmhybrid.sampling import ReplayBuffer, UniformStart

CPU = torch.device("cpu")
RIVALS = {
    startup: {"import torch", "import ebmhybrid", "ebmhybrid --help", "python -c pass"},
    loss: {loss.OURS, "O(K C) sum", "literal N x C x K", "K = 64", "K = 512"},
    kernel: {kernel.OURS, "composite", "operator", "eager", "HDGELoss", "linear_energy", "F.linear, logsumexp, gather"},
    train_step: {train_step.OURS, train_step.RELEASED, "released procedure, ring loss", *train_step.LADDER},
    sgld: {sgld.OURS, sgld.RELEASED, *sgld.LADDER},
    evaluate: {evaluate.OURS, evaluate.RIVAL},
    processes: {processes.TWO, processes.ONE, processes.APART},
}


class Alone:
    """Trains here, where a team would in processes of its own: to start them takes longer than the training."""

    def __init__(self, *team: object, apart: bool = False) -> None:
        pass

    def run(self, recipe: str, overrides: list[str], batch: int, folder: str) -> float:
        return processes.time_between_steps(recipe, [*overrides, f"training.batch_size={batch}"], folder)

    def end(self) -> None:
        pass


@pytest.mark.parametrize("benchmark", RIVALS, ids=lambda module: module.__name__.split(".")[1])
def test_a_benchmark_runs_and_writes_its_tables_and_raw_times(benchmark, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(processes, "Team", Alone)
    name = benchmark.__name__.split(".")[1]
    benchmark.main(["--quick", "--threads", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / f"{name}.json").read_text())
    text = (tmp_path / f"{name}.md").read_text()
    assert found["benchmark"] == name
    assert found["options"]["quick"] is True
    assert {"cpu", "cores", "threads", "torch", "platform", "date", "load_average"} <= found["machine"].keys()
    assert capsys.readouterr().out.strip() == text.strip()
    seen = set()
    for cell in found["cells"]:
        base = cell["rivals"][cell["base"]]
        assert base["ratio"] == base["paired_ratio"] == 1
        for rival, figures in cell["rivals"].items():
            assert min(figures["seconds"]) > 0
            assert figures["range"][0] <= figures["quartiles"][0] <= figures["median"] <= figures["range"][1]
            assert figures["ratio"] == pytest.approx(figures["median"] / base["median"])
            assert f"| {rival} |" in text
            seen.add(rival)
    assert RIVALS[benchmark] <= seen


def test_rivals_are_called_in_turn_and_each_round_begins_with_another() -> None:
    calls: list[str] = []
    times = harness.in_turn(
        {name: lambda name=name: calls.append(name) for name in "abc"}, 4, timer=lambda call: call() or 1.0
    )
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"  # the warm-up first
    assert times == {name: [1.0] * 4 for name in "abc"}


def test_a_slow_rival_drops_out_after_its_budget_but_not_before_five_rounds() -> None:
    calls: Counter[str] = Counter()
    seconds = {"fast": 0.1, "slow": 10.0}
    times = harness.in_turn(
        {name: lambda name=name: calls.update([name]) or name for name in seconds},
        9,
        warmup=0,
        budget=4.0,
        timer=lambda call: seconds[call()],
    )
    assert calls == {"fast": 9, "slow": 5}
    assert len(times["slow"]) == harness.AT_LEAST


def test_ratios_are_of_medians_and_of_rounds() -> None:
    found = harness.compare({"ours": [1.0, 2.0, 4.0], "rival": [3.0, 2.0, 12.0, 99.0]}, "ours")
    assert found["ours"]["median"] == 2.0
    assert found["ours"]["quartiles"] == [1.5, 3.0]
    assert found["rival"]["ratio"] == pytest.approx(7.5 / 2)
    assert found["rival"]["paired_ratio"] == 3.0  # of 3, 1 and 3: the fourth round was the rival's alone
    assert harness.compare({"ours": [2.0]}, "ours")["ours"]["quartiles"] == [2.0, 2.0]


def test_a_fast_call_is_repeated_until_it_can_be_timed() -> None:
    calls: list[int] = []
    mean = harness.stopwatch(lambda: calls.append(1), least=0.01)
    assert len(calls) > 100
    assert 0 < mean < 0.01 / 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the GPU's own counter is read")
def test_peak_memory_of_known_allocations() -> None:
    kept = torch.zeros(1000)

    def call() -> torch.Tensor:
        kept.resize_(0).resize_(1000)
        torch.empty(2_500_000)  # 10 MB, released at once
        return torch.cat([torch.empty(500_000), torch.empty(500_000)])  # 2 + 2 + 4 MB

    assert harness.peak_bytes(call) == 10_000_000
    assert harness.peak_bytes(lambda: torch.empty(1_000_000) + torch.empty(1_000_000)) == 12_000_000
    # A temporary within one operator: logsumexp holds a copy of its input.
    x = torch.randn(1000, 1000)
    assert 4_000_000 <= harness.peak_bytes(lambda: x.logsumexp(1)) <= 5_000_000
    assert harness.peak_bytes(lambda: None) == 0


def test_a_table_has_a_column_for_every_key() -> None:
    text = harness.markdown([{"a": 1, "b": 1234.6}, {"a": "x", "c": 0.012345}, {"b": None}])
    assert text.splitlines() == [
        "| a | b | c |",
        "|---|---|---|",
        "| 1 | 1,235 | – |",
        "| x | – | 0.0123 |",
        "| – | – | – |",
    ]


def test_the_released_step_and_ours_have_the_same_loss_from_the_same_start() -> None:
    """What the training benchmark compares differs in speed alone: one forward or two, ring or literal."""
    images = ImageSet(
        "random", torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8), torch.arange(8), tuple("0123456789")
    )
    x, y = images.images.float() / 255, images.labels
    plain = ["training.precision=fp32", "training.channels_last=false", "data.augment.pad=0", "data.augment.flip=false"]
    parts = [train_step.build("10-1", 64, 8, [*plain, "data.augment.noise_std=0"], images, CPU) for _ in range(3)]
    queue = train_step.Queue(64, CPU)
    ring = HDGELoss(10, bank_size=64, ce_weight=0.0)
    ring.fill_bank(queue.vectors)
    parts[0].objective.hdge.fill_bank(queue.vectors)
    steps = [
        train_step.our_step(parts[0], x, y),
        train_step.released_step(parts[1], ring, x, y),
        train_step.released_step(parts[2], queue, x, y),
    ]
    first, second, third = (step() for step in steps)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(second, third)
    assert all((step() != first).all() for step in steps)


def test_the_released_sampling_and_ours_walk_the_same_way_from_the_same_start(monkeypatch) -> None:
    """What the sampling benchmark compares differs in speed alone: [-1, 1] or [0, 1], one buffer or the other."""
    for name, value in (("STEP", 10.0), ("NOISE", 0.0), ("REINIT", 0.0)):
        monkeypatch.setattr(sgld, name, value)
    start = torch.rand(3, 8, 8)
    images = (2 * start - 1).repeat(20, 1, 1, 1)
    theirs = (sgld.released_phase(sgld.network("10-1", CPU, 0.0, 1.0), images, 4, 3)() + 1) / 2
    assert (theirs - start).abs().max() > 0.05
    assert 1 <= (images != 2 * start - 1).flatten(1).any(1).sum() <= 4
    for settings, tolerance in [((), 2e-2), *((settings, 1e-5) for settings in list(sgld.LADDER.values())[1:])]:
        buffer = ReplayBuffer(20, UniformStart((3, 8, 8)), num_classes=10, pooled=True)
        buffer.images.copy_(start.expand(20, 3, 8, 8))
        ours = sgld.our_phase(sgld.network("10-1", CPU), buffer, 4, 3, *settings)()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
        assert 1 <= (buffer.images != start).flatten(1).any(1).sum() <= 4


def test_the_profile_of_a_step_names_phases_operators_and_waits(capsys) -> None:
    profile_step.main(["--recipe", "smoke", "--steps", "1", "--threads", "1", "--set", "training.batch_size=8"])
    text = capsys.readouterr().out
    for word in ("augmentation", "forward", "backward", "loss", "optimiser", "convolution", "norm layer", "waits for"):
        assert word in text
    assert profile_step.kind_of("aten::native_batch_norm_backward") == "norm layer"
    assert profile_step.kind_of("aten::leaky_relu_") == "activation"


def test_all_benchmarks_run_one_after_the_other_and_a_failure_is_not_hidden(tmp_path, monkeypatch, capsys) -> None:
    started = []

    def run(words: list[str]) -> argparse.Namespace:
        name = words[2].removeprefix("benchmarks.")
        started.append(name)
        (tmp_path / f"{name}.md").write_text(f"## {name}\n")
        return argparse.Namespace(returncode=int(name == "kernel"))

    monkeypatch.setattr(subprocess, "run", run)
    assert everything.main(["--out", str(tmp_path)]) == 1
    assert started == list(everything.BENCHMARKS)
    text = (tmp_path / "README.md").read_text()
    assert "## loss" in text
    assert "`benchmarks.kernel` failed." in text
    assert "failed: kernel" in capsys.readouterr().out
    assert everything.main(["--out", str(tmp_path), "--only", "loss", "--quick"]) == 0


@pytest.mark.parametrize("table", representation.TABLES)
def test_each_row_of_a_table_of_representations_is_a_recipe(table: str) -> None:
    recipe, settings, common = representation.TABLES[table]
    assert len({str(load_recipe(recipe, [*common, *changes]).model_dump()) for changes in settings.values()}) == len(
        settings
    )


def test_a_table_of_representations_goes_on_and_refuses_runs_of_other_settings(tmp_path, monkeypatch, capsys) -> None:
    small = ["model.options={latent: 3, width: 4}", "training.max_steps=2", "training.batch_size=256"]
    row = (["objectives", "--rows", "MIM", "cMIM", "--seeds", "1", "--runs", str(tmp_path)], small)

    def table(arguments: list[str], changes: list[str]) -> str:
        monkeypatch.setattr("sys.argv", ["representation", *arguments, "--set", *changes])
        representation.main()
        return capsys.readouterr().out

    first = table(*row)
    assert "| cMIM less MIM |" in first
    assert "kNN mean %" in first
    weights = sorted(tmp_path.rglob("last.safetensors"))
    assert len(weights) == 2
    written = [path.stat().st_mtime_ns for path in weights]
    assert table(*row) == first  # nothing is trained again
    assert [path.stat().st_mtime_ns for path in weights] == written
    with pytest.raises(SystemExit, match="was trained by other settings"):
        table(row[0], [*small[1:], "model.options={latent: 2, width: 4}"])


def test_differences_are_of_the_same_seed() -> None:
    rows = {"MIM": [{"a %": 1.0}, {"a %": 5.0}], "cMIM": [{"a %": 2.0}, {"a %": 6.0}]}
    assert representation.controls(["MIM, B = 2", "cMIM, B = 2", "cMIM, B = 4"]) == {"cMIM, B = 2": "MIM, B = 2"}
    assert representation.controls(["MIM", "InfoNCE, two views"]) == {"InfoNCE, two views": "MIM"}
    assert representation.controls(["GCRL", "lambda = 0"]) == {"lambda = 0": "GCRL"}
    assert "| cMIM less MIM | 1.00 ± 0.00 |" in representation.against(rows)
    assert "| MIM | 3.00 ± 2.83 |" in representation.written(rows)
    assert "| – |" in representation.written({**rows, "none": [{}, {}]})


def test_a_team_says_what_went_wrong_goes_on_and_ends(tmp_path) -> None:
    team = processes.Team(1, 1, tmp_path)
    try:
        for name in ("no_such_recipe", "nor_this_one"):
            with pytest.raises(RuntimeError, match=rf"RecipeError: .*{name}"):
                team.run(name, [], 8, str(tmp_path / "run"))
    finally:
        team.end()
    assert not any(worker.is_alive() for worker in team.workers)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 33])
def test_rings_give_what_they_should_and_send_what_the_model_says(count: int) -> None:
    for numbers in (count - 1, count, 5 * count + 1):  # fewer than processes, as many, and not divisible
        assert sum(rings.check_sums(count, numbers).sent) == 8 * 2 * (count - 1) * numbers
    for row in rings.simulate([count], numbers=7):
        assert row["bytes a process"] == row["by the model"]
    one, many = (
        rings.Ring(count),
        rings.all_gather(rings.Ring(count), [torch.full((2,), r).numpy() for r in range(count)]),
    )
    assert all(part.tolist() == [r for r in range(count) for _ in "ab"] for part in many)
    assert rings.all_reduce(one, [torch.ones(3).numpy()] * count)[0].tolist() == [count] * 3


def test_a_wrong_exchange_does_not_pass_the_simulation(monkeypatch) -> None:
    monkeypatch.setattr(rings.Ring, "shift", lambda self, payloads: [payload * 1.0 for payload in payloads])
    for check, sizes in (
        (rings.check_sums, (3, 6)),
        (rings.check_gathering, (3, 5)),
        (rings.check_bank, (3, 16, 16, 2)),
    ):
        with pytest.raises((AssertionError, KeyError)):
            check(*sizes)


def test_the_traffic_model_is_that_of_the_network(capsys) -> None:
    case = traffic.Case(net="10-1", classes=7, batch=32, block=8, bank_size=256, image_size=8)
    weights = 4 * sum(p.numel() for p in WideResNet(10, 1, 7).parameters())
    found = traffic.traffic(case, 4)
    values = list(found.values())
    assert values[0] == 1.5 * weights
    assert values[1] == 3 * 4 * 4 * 7  # 3 others, 4 rows of 7 numbers
    assert values[2] == 8 * values[1]
    assert values[3] == 3 * 4 * 7 + 1.5 * 4 * 7
    assert traffic.Case(batch=64, block=24).rows(3) == 4  # the second share, 64..127, lies in rows 2 to 5
    assert set(traffic.traffic(case, 1).values()) == {0.0}
    traffic.main(["--net", "10-1", "--processes", "2", "8", "--images", "100", "--replay", "80"])
    text = capsys.readouterr().out
    assert "| replay buffer of 80 images on 8 | 0.123 |" in text
    assert "| data set, 100 images | 0.307 |" in text
    traffic.main(["--net", "10-1", "--processes", "2", "8", "--bandwidth", "10", "--latency-us", "5"])
    assert "messages in turn" in capsys.readouterr().out
    traffic.main(["--simulate", "--processes", "4"])
    assert "1.000000000000" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        traffic.main(["--block", "100", "--bank-size", "50"])


def test_what_autograd_keeps_is_the_same_without_values() -> None:
    case = traffic.Case(net="10-1", classes=7, batch=3, image_size=8)
    real = case.model().to_empty(device="cpu")
    x = torch.rand(3, 3, 8, 8)
    on_meta = layer.kept_bytes(lambda: case.model()(x.to("meta")))
    assert on_meta == layer.kept_bytes(lambda: real(x))
    y, linear = torch.arange(3), nn.Linear(5, 1000)
    features = torch.rand(3, 5, requires_grad=True)
    assert layer.kept_bytes(lambda: layer.whole(features, linear, y)) > 4 * 3 * 1000
    assert layer.kept_bytes(lambda: layer.chunked(features, linear, y)) < 100


def test_the_last_layer_without_logits_takes_less(capsys) -> None:
    layer.main(["--batch", "64", "--classes", "50000"])
    cells = [float(cell.replace(",", "")) for cell in capsys.readouterr().out.splitlines()[-1].strip("| ").split("|")]
    _, logits, _, peak, kept, ours, ours_kept = cells
    assert logits == 12.8
    assert peak > 1.9 * logits
    assert kept >= logits
    assert ours_kept < 0.1
    assert ours < 2 * 8.4 + 5  # two chunks of 2^21 numbers, and what is small


@pytest.mark.fuzz  # seconds for the processes to start
@pytest.mark.skipif(not loopback.Path("/proc/net/dev").is_file(), reason="Linux alone counts a loopback's bytes")
def test_two_real_processes_send_what_the_model_says() -> None:
    for row in loopback.measure([2]):
        more = float(row["more by"].rstrip(" %"))
        assert 0 <= more < (200 if "rows" in row["exchange"] else 5), row
