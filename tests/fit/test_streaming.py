"""What is said of a model larger than memory before it runs: sizes, hit rates, rates."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from oss_tools.checkpoints.ready import ReadyReader
from oss_tools.cli.main import app
from oss_tools.convert.routers import shares
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.fit.estimate import of_checkpoint, of_shape, streamed_row
from oss_tools.fit.memory import Use
from oss_tools.fit.streaming import Experts, Streaming, plan, sentences
from oss_tools.models import open_checkpoint

EXPERTS = Experts(layers=10, each=32, chosen=4, nbytes=10_000_000)


def cli(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def held_by_a_list(each: int, chosen: int, layers: int, slots: int, popularity: np.ndarray) -> float:
    """Hit rate of a cache kept as a list, over tokens whose experts are drawn one after another by popularity."""
    rng = np.random.default_rng(8)
    held: list[tuple[int, int]] = []
    hits = asked = 0
    for token in range(600):
        for layer in range(layers):
            for expert in sorted(rng.choice(each, chosen, replace=False, p=popularity / popularity.sum())):
                key = layer, int(expert)
                if token >= 300:
                    hits, asked = hits + (key in held), asked + 1
                if key in held:
                    held.remove(key)
                elif len(held) == slots:
                    held.pop(0)
                held.append(key)
    return hits / asked


@pytest.mark.parametrize("slots", [4, 8, 16, 24])
def test_hit_rates_are_those_of_a_cache(slots: int) -> None:
    even, skewed = Streaming(0, 0, 0, EXPERTS, slots * EXPERTS.layers).hit_rates()
    assert even == pytest.approx(held_by_a_list(32, 4, 3, 3 * slots, np.ones(32)), abs=0.03)
    assert skewed == pytest.approx(held_by_a_list(32, 4, 3, 3 * slots, shares(32, 4)), abs=0.06)


def test_skewed_routing_hits_more_and_all_hit_where_all_fit() -> None:
    for slots in (80, 160, 300):
        even, skewed = Streaming(0, 0, 0, EXPERTS, slots).hit_rates()
        assert even == pytest.approx(slots / 320, abs=0.05)
        assert even < skewed < 1
    assert Streaming(0, 0, 0, EXPERTS, 320).hit_rates() == (1, 1)
    assert max(Streaming(0, 0, 0, EXPERTS, 4).hit_rates()) < 0.01  # the next token begins when they are gone


def test_the_rate_is_what_the_disk_gives() -> None:
    streaming = Streaming(0, 0, 0, EXPERTS, 160)
    even, skewed = streaming.hit_rates()
    slow, fast = streaming.rates(2e9)
    assert slow == pytest.approx(2e9 / (400e6 * (1 - even)))
    assert fast == pytest.approx(2e9 / (400e6 * (1 - skewed)))
    assert streaming.rates(2e9, (3.0, 4.0)) == (3.0, 4.0)  # memory is slower than the disk
    assert Streaming(0, 0, 0, EXPERTS, 320).rates(2e9, (3.0, 4.0)) == (3.0, 4.0)


def test_all_that_is_not_cache_is_counted() -> None:
    streaming = plan(EXPERTS, resident=10**9, context=10**8, memory=3 * 10**9)
    assert streaming.fixed > 1.1e9
    assert streaming.slots * EXPERTS.nbytes <= streaming.memory - streaming.fixed
    assert streaming.slots * EXPERTS.nbytes > 0.9 * (streaming.memory - streaming.fixed)
    assert streaming.works
    least = plan(EXPERTS, 10**9, 10**8, streaming.least)
    assert (least.works, least.slots) == (True, EXPERTS.chosen)
    assert not plan(EXPERTS, 10**9, 10**8, streaming.least - 1).works


@pytest.mark.slow
def test_published_shapes_have_the_experts_that_are_known_of_them() -> None:
    row = streamed_row(of_shape(load_shape("gpt-oss-120b"), Use(4096)))
    assert row is not None
    assert row.published
    assert row.experts is not None
    assert (row.experts.layers, row.experts.each, row.experts.chosen) == (36, 128, 4)
    assert row.experts.nbytes == pytest.approx(3 * 2880 * 2880 * 4.25 / 8, rel=0.002)
    assert streamed_row(of_shape(load_shape("llama-3.1-8b"), Use(4096))) is None


@pytest.mark.parametrize("shape", ["gpt-oss-small", "qwen3-moe-tiny", "deepseek-v2-tiny"])
def test_an_expert_is_as_large_as_in_a_run_ready_file(shape: str, tmp_path: Path) -> None:
    made = synthesize(plan_synthesis(load_shape(shape).with_layers(2), "ready"), tmp_path / "m.ready")
    with open_checkpoint(made) as checkpoint:
        row = streamed_row(of_checkpoint(checkpoint, "m", Use(128)))
        assert isinstance(checkpoint.reader, ReadyReader)
        records = [record for record in checkpoint.reader.layout.records if record.count > 1]
    assert row is not None
    assert row.experts is not None
    assert row.experts.layers == len(records)
    assert row.experts.each == records[0].count
    assert row.experts.nbytes == pytest.approx(records[0].stride, abs=4096)


def test_sentences_name_sizes_hits_and_rates() -> None:
    text = "\n".join(sentences(Streaming(3 * 10**9, 10**9, 12 * 10**8, EXPERTS, 160), 2e9))
    for part in ("1 GB of weights that stay", "160 of 320 experts", "40 experts of 10 MB: 400 MB", "tokens/s"):
        assert part in text
    assert "tokens/s" not in "\n".join(sentences(Streaming(3 * 10**9, 10**9, 12 * 10**8, EXPERTS, 160), None))


@pytest.mark.slow
def test_fit_says_how_a_shape_would_stream() -> None:
    shown = cli("fit", "gpt-oss-120b", "--memory", "20GB", "--disk", "3.5GB/s", "--ram", "24GB", "--bandwidth", "50GB")
    assert "mxfp4 with --memory 20GB" in shown.output
    assert "from a disk of 3.5 GB/s" in " ".join(shown.output.split())
    assert "tokens/s" in shown.output.rpartition("stream")[2]
    record = json.loads(
        cli(
            "fit", "gpt-oss-120b", "--memory", "20GB", "--disk", "3.5GB/s", "--ram", "24GB", "--bandwidth", "50GB", "--json"
        ).stdout
    )["streaming"]
    assert record["disk_bytes_per_second"] == 3.5e9
    assert record["resident_bytes"] + record["slots"] * record["expert_bytes"] < 20e9
    low, high = record["tokens_per_second_at_most"]
    assert low == pytest.approx(3.5e9 / record["read_bytes_per_token"]["even"])
    assert low < high


def test_fit_says_why_nothing_streams() -> None:
    given = ("--ram", "24GB", "--bandwidth", "50GB")
    assert "no experts" in cli("fit", "llama-3.1-8b", "--memory", "4GB", *given).output
    assert "at least 5.02 GB are needed" in cli("fit", "gpt-oss-120b", "--memory", "2GB", *given).output
    assert cli("fit", "gpt-oss-120b", "--disk", "fast", *given).exit_code == 2
    assert cli("fit", "gpt-oss-120b", "--disk", "0/s", *given).exit_code == 2
    assert "--disk 2GB/s" in cli("fit", "gpt-oss-120b", *given).output  # it does not fit, so streaming is looked at
