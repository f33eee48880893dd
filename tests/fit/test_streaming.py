"""What is said of a model larger than memory before it runs: sizes, hit rates, rates."""

import json
from pathlib import Path

import numpy as np
import pytest

from oss_tools.checkpoints.ready import ReadyReader
from oss_tools.convert.routers import shares
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.fit.estimate import of_checkpoint, of_shape, streamed_row
from oss_tools.fit.memory import Use
from oss_tools.fit.streaming import Experts, Streaming, lru_hit_rate, plan, sentences
from oss_tools.measure.expert_cache import lru_hits, stack_distances
from oss_tools.models import open_checkpoint
from tests.cli.test_commands import cli

EXPERTS = Experts(layers=10, each=32, chosen=4, nbytes=10_000_000)


@pytest.mark.parametrize("slots", [4, 8, 16, 24])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_approximation_is_what_a_simulated_cache_hits(slots: int, skewed: bool) -> None:
    popularity = shares(32, 4) if skewed else np.full(32, 4 / 32)
    rng = np.random.default_rng(3)
    chosen = rng.random((20_000, 32)) < popularity  # each expert by itself
    keys = np.nonzero(chosen)[1]
    simulated = lru_hits(stack_distances(keys), slots).mean()
    assert lru_hit_rate(popularity, slots) == pytest.approx(simulated, abs=0.02)


def test_even_routing_hits_what_the_cache_holds_and_skewed_routing_more() -> None:
    for slots in (40, 160, 300):
        even, skewed = Streaming(0, 0, 0, EXPERTS, slots).hit_rates()
        assert even == slots / 320
        assert even < skewed < 1
    assert Streaming(0, 0, 0, EXPERTS, 320).hit_rates() == (1, 1)


def test_the_rate_is_what_the_disk_gives() -> None:
    streaming = Streaming(0, 0, 0, EXPERTS, 160)
    even, skewed = streaming.hit_rates()
    slow, fast = streaming.rates(2e9)
    assert slow == pytest.approx(2e9 / (400e6 * (1 - even)))
    assert fast == pytest.approx(2e9 / (400e6 * (1 - skewed)))
    assert streaming.rates(2e9, (3.0, 4.0)) == (3.0, 4.0)  # memory is slower than the disk
    assert Streaming(0, 0, 0, EXPERTS, 320).rates(2e9, (3.0, 4.0)) == (3.0, 4.0)


def test_all_that_is_not_cache_is_counted() -> None:
    streaming = plan(EXPERTS, resident=10**9, cache=10**8, memory=3 * 10**9)
    assert streaming.fixed > 1.1e9
    assert streaming.slots * EXPERTS.nbytes <= streaming.memory - streaming.fixed
    assert streaming.slots * EXPERTS.nbytes > 0.9 * (streaming.memory - streaming.fixed)
    assert streaming.works
    least = plan(EXPERTS, 10**9, 10**8, streaming.least)
    assert (least.works, least.slots) == (True, EXPERTS.chosen)
    assert not plan(EXPERTS, 10**9, 10**8, streaming.least - 1).works


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
    for part in ("1 GB of weights that stay", "160 of 320 experts", "40 experts of 10 MB: 400 MB", "50%", "tokens/s"):
        assert part in text
    assert "tokens/s" not in "\n".join(sentences(Streaming(3 * 10**9, 10**9, 12 * 10**8, EXPERTS, 160), None))


def test_fit_says_how_a_shape_would_stream() -> None:
    shown = cli("fit", "gpt-oss-120b", "--memory", "20GB", "--disk", "3.5GB/s", "--ram", "24GB", "--bandwidth", "50GB")
    assert "mxfp4 with --memory 20000MB" in shown.output
    assert "3.5 GB/s (given)" in shown.output
    assert "tokens/s" in shown.output.rpartition("stream")[2]
    record = json.loads(
        cli("fit", "gpt-oss-120b", "--memory", "20GB", "--disk", "3.5GB/s", "--ram", "24GB", "--bandwidth", "50GB", "--json").stdout
    )["streaming"]
    assert record["disk_bytes_per_second"] == 3.5e9
    assert record["resident_bytes"] + record["slots"] * record["expert_bytes"] < 20e9
    low, high = record["tokens_per_second_at_most"]
    assert low == pytest.approx(3.5e9 / record["read_bytes_per_token"]["even"])
    assert low < high


def test_fit_says_why_nothing_streams() -> None:
    given = ("--ram", "24GB", "--bandwidth", "50GB")
    assert "no experts" in cli("fit", "llama-3.1-8b", "--memory", "4GB", *given).output
    assert "MB are needed" in cli("fit", "gpt-oss-120b", "--memory", "2GB", *given).output
    assert cli("fit", "gpt-oss-120b", "--disk", "fast", *given).exit_code == 2
    assert cli("fit", "gpt-oss-120b", "--disk", "0/s", *given).exit_code == 2
    assert "--disk 2GB/s" in cli("fit", "gpt-oss-120b", *given).output  # it does not fit, so streaming is looked at
