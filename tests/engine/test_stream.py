"""Experts that stream from the disk: the same bits as if all were in memory, whatever room there is, whatever goes wrong."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oss_tools.convert.recipe import Recipe, Rule, recipe_of_format
from oss_tools.convert.synth import Shape, load_shape, plan_synthesis, synthesize
from oss_tools.engine.backend import Options
from oss_tools.engine.engine import Engine
from oss_tools.engine.numba_backend import NumbaBackend
from oss_tools.engine.requests import Request
from oss_tools.engine.stream.plan import Plan, plan_streaming
from oss_tools.engine.stream.replaying import Streaming
from oss_tools.engine.stream.streamed import IN_HAND, StreamedExperts
from oss_tools.errors import BadCheckpoint, BadRecipe, BadRequest, NoRoom
from oss_tools.machine import memory
from oss_tools.machine.direct import PAGE, DirectFile
from oss_tools.models import open_checkpoint
from tests.convert.helpers import convert
from tests.models.small_families import CONFIGS

CONTEXT = 1024
PROMPT = np.random.default_rng(5).integers(0, 300, 700).tolist()
BATCH = [PROMPT[7 * i : 7 * i + 5 + i] for i in range(8)]
FAMILIES = [kind for kind in CONFIGS if "moe" in kind[0] or kind[0].startswith(("mixtral", "deepseek"))]
SLOW = pytest.mark.slow


def plan_of(path: Path, context: int = CONTEXT) -> Plan:
    """What streams if there is room for all of it but a little."""
    with open_checkpoint(path) as checkpoint:
        kept = NumbaBackend.context_bytes(checkpoint.architecture, Options(context=context))
        return plan_streaming(checkpoint, 1 << 40, kept, 0)


def load(path: Path, slots: int | None, context: int = CONTEXT, threads: int = 2, **options: object) -> Engine:
    """An engine with so many experts in memory; None: all weights, loaded as ever."""
    size = None
    if slots is not None:
        plan = plan_of(path, context)
        size = plan.least + (slots - plan.least_slots) * plan.slot_bytes
    engine = Engine.load(path, threads=threads, context=context, memory=size, prefix_budget=0, **options)  # type: ignore[arg-type]
    assert isinstance(engine.backend, NumbaBackend)
    streamed = engine.backend.streamed
    assert (streamed.cache.slots if streamed else None) == slots
    return engine


def outputs(engine: Engine) -> list[np.ndarray]:
    """Logits of a prompt of two passes, of single tokens behind it, and of eight sequences at once."""
    found = [engine.logits(PROMPT)]
    sequence = engine.open(PROMPT[:20], room=8, reuse=0)
    found.append(engine.prefill(sequence, PROMPT[:20]))
    found += [engine.step([sequence], [token])[0].copy() for token in PROMPT[20:26]]
    sequences = [engine.open(tokens, room=4, reuse=0) for tokens in BATCH]
    for each, tokens in zip(sequences, BATCH, strict=True):
        engine.prefill(each, tokens)
    found += [engine.step(sequences, [token] * 8).copy() for token in (1, 2, 3)]
    return found


def assert_same(engine: Engine, expected: list[np.ndarray]) -> None:
    for ours, theirs in zip(outputs(engine), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def containers(tiny_gpt_oss: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("streamed")
    convert(tiny_gpt_oss, folder / "a.gguf", "gguf")
    convert(tiny_gpt_oss, folder / "a.ready", "ready")
    return {"hf": tiny_gpt_oss, "gguf": folder / "a.gguf", "ready": folder / "a.ready"}


@pytest.fixture
def ready(containers: dict[str, Path], tmp_path: Path) -> Path:
    """A run-ready file of the test's own."""
    return Path(shutil.copyfile(containers["ready"], tmp_path / "a.ready"))


# ---- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["ready", "gguf", "hf"])
def test_the_same_logits_with_room_for_any_number_of_experts(containers: dict[str, Path], container: str) -> None:
    path = containers[container]
    with load(path, None) as engine:
        expected = outputs(engine)
    plan = plan_of(path)
    for slots in range(plan.least_slots, plan.experts):
        with load(path, slots) as engine:
            assert_same(engine, expected)
            figures = engine.backend.facts()["streaming"]
            assert plan.least_slots <= figures["slots"] <= slots
            assert figures["misses"] >= plan.experts
            assert figures["bytes_read"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("container", ["ready", "gguf", "hf"])
@pytest.mark.parametrize("kind", FAMILIES, ids="-".join)
def test_the_same_logits_of_every_family_with_experts(kind: tuple[str, str], container: str, tmp_path: Path) -> None:
    shape = Shape("a", CONFIGS[kind] | {"max_position_embeddings": CONTEXT}, "bf16", "")
    synthesize(plan_synthesis(shape, "hf"), tmp_path / "a")
    path = tmp_path / "a"
    if container != "hf":
        path = tmp_path / f"a.{container}"
        recipe = recipe_of_format("q4_0").falling_back(("q8_0", "bf16"))
        try:
            convert(tmp_path / "a", path, container, recipe)
        except BadRecipe as error:
            pytest.skip(str(error))
    with load(path, None) as engine:
        expected = outputs(engine)
    plan = plan_of(path)
    for slots in {plan.least_slots, plan.least_slots + 1, plan.experts // 2, plan.experts - 1}:
        with load(path, slots) as engine:
            assert_same(engine, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("gate and up differ", (Rule("q8_0", "experts.up"), Rule("q4_0", "experts"), Rule("bf16"))),
        Recipe("down differs", (Rule("q5_1", "experts.down"), Rule("q4_0", "experts"), Rule("bf16"))),
    ],
    ids=lambda recipe: recipe.name,
)
def test_the_same_logits_where_formats_differ_in_an_expert(recipe: Recipe, tmp_path: Path) -> None:
    """Gate and up projections of two formats have no panels in common: they are packed on the way."""
    config = CONFIGS["qwen3_moe", "usual"] | {"moe_intermediate_size": 64}
    synthesize(plan_synthesis(Shape("a", config, "bf16", ""), "hf"), tmp_path / "a")
    for container in ("gguf", "ready"):
        path = tmp_path / f"a.{container}"
        convert(tmp_path / "a", path, container, recipe)
        with load(path, None, context=256) as engine:
            expected = engine.logits(PROMPT[:200])
        with load(path, 4, context=256) as engine:
            np.testing.assert_array_equal(engine.logits(PROMPT[:200]), expected)


def test_the_same_logits_with_float_activations_and_one_thread(ready: Path) -> None:
    with load(ready, None, activations="f32") as engine:
        expected = outputs(engine)
    with open_checkpoint(ready) as checkpoint:
        options = Options(context=CONTEXT, activations="f32")
        kept = NumbaBackend.context_bytes(checkpoint.architecture, options)
        size = plan_streaming(checkpoint, 1 << 40, kept, 0).least
    with Engine.load(ready, threads=1, context=CONTEXT, memory=size, prefix_budget=0, activations="f32") as engine:
        assert "streaming" in engine.backend.facts()
        assert_same(engine, expected)


def test_the_same_text_with_a_prefix_cache(ready: Path) -> None:
    request = Request(PROMPT[:40], max_tokens=12, stop_tokens=frozenset())
    with load(ready, None) as engine:
        expected = [token.id for token in engine.generate(request)]
    plan = plan_of(ready)
    with Engine.load(ready, threads=2, context=CONTEXT, memory=plan.least + 2 * plan.slot_bytes) as engine:
        assert 0 < engine.prefixes.budget < 2 * plan.slot_bytes
        for _ in range(2):
            assert [token.id for token in engine.generate(request)] == expected


def test_where_there_are_no_reads_past_the_cache(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(ready, None) as engine:
        expected = engine.logits(PROMPT)
    monkeypatch.setattr("oss_tools.machine.direct._reopened", lambda descriptor: -1)
    with load(ready, 3) as engine:
        np.testing.assert_array_equal(engine.logits(PROMPT), expected)


@pytest.mark.parametrize("refused", ["open", "read"])
def test_bytes_of_direct_reads(tmp_path: Path, refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aligned or not, to the end of the file and where the file system refuses such reads."""
    content = np.random.default_rng(0).integers(0, 256, 5 * PAGE + 100, dtype=np.uint8)
    path = tmp_path / "a"
    path.write_bytes(content.tobytes())
    memory_ = np.empty(8 * PAGE, np.uint8)
    memory_ = memory_[-memory_.ctypes.data % PAGE :]
    with path.open("rb") as file:
        if refused == "open":
            monkeypatch.setattr("oss_tools.machine.direct._reopened", lambda descriptor: -1)
        direct = DirectFile(file.fileno(), path)
        if refused == "read":
            read = os.preadv

            def refusing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
                if descriptor == direct._direct:
                    raise OSError(22, "Invalid argument")
                return read(descriptor, buffers, offset)

            monkeypatch.setattr(os, "preadv", refusing)
        for offset, nbytes in ((0, PAGE), (PAGE, 3 * PAGE), (100, 2 * PAGE), (PAGE, 4 * PAGE + 100), (0, 7)):
            direct.read(offset, memory_[:nbytes])
            np.testing.assert_array_equal(memory_[:nbytes], content[offset : offset + nbytes])
        with pytest.raises(BadCheckpoint, match="ended at byte 20580"):
            direct.read(4 * PAGE, memory_[: 2 * PAGE])


# ---- what changes, fails or is broken off ---------------------------------------------------------------------------


def changed(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff")


@pytest.mark.parametrize("container", ["ready", "gguf", "hf"])
def test_a_file_that_is_written_to_gives_no_token(containers: dict[str, Path], container: str, tmp_path: Path) -> None:
    source = containers[container]
    path = tmp_path / source.name
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, path)
    with load(path, 3) as engine:
        sequence = engine.open([1, 2])
        engine.prefill(sequence, [1, 2])
        time.sleep(0.02)  # times of files have steps
        changed(next(path.glob("*.safetensors")) if path.is_dir() else path)
        with pytest.raises(BadCheckpoint, match="was changed while it was in use"):
            engine.step([sequence], [3])


@pytest.mark.parametrize("container", ["ready", "gguf"])
def test_a_file_that_is_cut_short_gives_no_token(containers: dict[str, Path], container: str, tmp_path: Path) -> None:
    path = Path(shutil.copyfile(containers[container], tmp_path / f"a.{container}"))
    with load(path, 2) as engine:
        os.truncate(path, PAGE)
        with pytest.raises(BadCheckpoint, match=r"while being read|was changed"):
            engine.logits(PROMPT[:3])


@pytest.mark.parametrize("container", ["ready", "gguf"])
def test_a_file_that_is_replaced_or_removed_stays_as_it_was(
    containers: dict[str, Path], container: str, tmp_path: Path
) -> None:
    path = Path(shutil.copyfile(containers[container], tmp_path / f"a.{container}"))
    with load(path, None) as engine:
        expected = engine.logits(PROMPT)
    with load(path, 2) as engine:
        other = tmp_path / "other"
        other.write_bytes(b"another file")
        other.replace(path)
        np.testing.assert_array_equal(engine.logits(PROMPT), expected)
        path.unlink()
        np.testing.assert_array_equal(engine.logits(PROMPT), expected)


def test_a_read_that_fails_is_an_error_and_the_next_pass_is_right(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(ready, None) as engine:
        expected = outputs(engine)
    real = DirectFile.read
    with load(ready, 3) as engine:
        for good in (0, 1, 4, 9):
            left = [good]

            def failing(self: DirectFile, offset: int, memory: np.ndarray, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise BadCheckpoint(f"{self.path}: cannot be read: Input/output error")
                real(self, offset, memory)

            monkeypatch.setattr(DirectFile, "read", failing)
            with pytest.raises(BadCheckpoint, match="Input/output error"):
                engine.logits(PROMPT)
            monkeypatch.setattr(DirectFile, "read", real)
            assert_same(engine, expected)


@pytest.mark.parametrize("after", [1, 2, 3, 5, 8, 13])
def test_an_interrupt_leaves_nothing_wrong(ready: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a pass is broken off, the next one has the right experts in the right slots."""
    with load(ready, None) as engine:
        expected = outputs(engine)
    with load(ready, 3) as engine:
        assert isinstance(engine.backend, NumbaBackend)
        run, calls = engine.backend.team.run, [0]

        def interrupted(*arguments: object) -> None:
            calls[0] += 1
            if calls[0] == after:
                raise KeyboardInterrupt
            run(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(engine.backend.team, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.logits(PROMPT)
        assert_same(engine, expected)


def test_wrong_guesses_change_nothing(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(ready, None) as engine:
        expected = outputs(engine)
    guess = Streaming._guess

    def opposite(self: Streaming, cache: object, stop: object, stops: object, rows: int) -> None:
        guess(self, cache, stop, stops, rows)  # type: ignore[arg-type]
        cache.read_ahead([stops.bases[stop.experts] + e for e in reversed(range(4))])  # type: ignore[attr-defined]

    monkeypatch.setattr(Streaming, "_guess", opposite)
    for slots in range(2, 8):
        with load(ready, slots) as engine:
            assert_same(engine, expected)


# ---- room -----------------------------------------------------------------------------------------------------------


def test_too_little_is_refused_with_the_number_that_is_enough(ready: Path) -> None:
    plan = plan_of(ready)
    with pytest.raises(NoRoom, match=rf"at least {-(-plan.least // 10**6)} MB are needed.*--context"):
        Engine.load(ready, context=CONTEXT, memory=plan.least - 1, prefix_budget=0)
    with Engine.load(ready, context=CONTEXT, memory=-(-plan.least // 10**6) * 10**6, prefix_budget=0) as engine:
        assert engine.logits([1]).shape[0] == 1


def test_a_dense_model_has_nothing_that_streams(tiny_llama: Path) -> None:
    with pytest.raises(NoRoom, match="no experts that could stream"):
        Engine.load(tiny_llama, context=64, memory=1000)
    with Engine.load(tiny_llama, context=64, memory=memory.WORK_BYTES + 10**8) as engine:
        assert "streaming" not in engine.backend.facts()


def test_more_than_is_free_is_refused(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(ready)
    monkeypatch.setattr(memory, "available_memory", lambda: plan.least - 1)
    monkeypatch.setattr(memory, "taken_memory", lambda: 0)
    with pytest.raises(NoRoom, match=r"--memory: .* would be taken, .* are free"):
        Engine.load(ready, context=CONTEXT, memory=plan.least, prefix_budget=0)


def test_other_backends_refuse_it(ready: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra `torch`")
    for option in ({"memory": 10**9}, {"trace_experts": tmp_path / "trace"}):
        with pytest.raises(BadRequest, match="for the kernels on the CPU"):
            Engine.load(ready, backend="torch", context=64, **option)  # type: ignore[arg-type]


@pytest.mark.parametrize(("container", "how"), [("ready", "mapped"), ("ready", "resident"), ("gguf", "mapped")])
def test_what_does_not_fit_into_free_memory_streams_by_itself(
    containers: dict[str, Path], container: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = containers[container]
    with load(path, None) as engine:
        expected = engine.logits(PROMPT)
    plan = plan_of(path)
    free = (plan.least + 3 * plan.slot_bytes) * 16 // 15
    monkeypatch.setattr(memory, "available_memory", lambda: free)
    monkeypatch.setattr("oss_tools.engine.stream.choice.kernel_bytes", lambda checkpoint: free + 1)
    if container == "gguf" or how == "resident":
        monkeypatch.setattr(NumbaBackend, "weight_bytes", classmethod(lambda cls, checkpoint, options: free))
    said: list[str] = []
    with Engine.load(path, threads=2, context=CONTEXT, load=how, prefix_budget=0, say=said.append) as engine:
        assert engine.backend.facts()["streaming"]["slots"] == plan.least_slots + 3
        np.testing.assert_array_equal(engine.logits(PROMPT), expected)
    assert len(said) == 1
    assert "do not fit into the free memory" in said[0]
    assert f"of {plan.experts} experts {plan.least_slots + 3} are kept" in said[0]


def test_what_cannot_stream_is_mapped_as_before(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: memory.WORK_BYTES + 1)
    monkeypatch.setattr(NumbaBackend, "weight_bytes", classmethod(lambda cls, checkpoint, options: 0))
    monkeypatch.setattr(NumbaBackend, "position_bytes", classmethod(lambda cls, architecture, options: 0))
    with open_checkpoint(ready) as checkpoint:
        assert NumbaBackend.require(checkpoint, Options(context=64)).streaming is None


def test_many_sequences_take_room_from_experts_until_there_is_none(ready: Path) -> None:
    plan = plan_of(ready)
    with load(ready, 6) as engine:
        assert isinstance(engine.backend, NumbaBackend)
        streamed = engine.backend.streamed
        assert isinstance(streamed, StreamedExperts)
        expected = outputs(engine)
        streamed.make_room(plan.context_bytes + 1)
        assert streamed.cache.slots == 5
        assert_same(engine, expected)
        for more in (4 * plan.slot_bytes, IN_HAND):
            streamed.make_room(plan.context_bytes + more)
            assert streamed.cache.slots == 2
            assert_same(engine, expected)
        with pytest.raises(NoRoom, match="no room for a layer's experts"):
            streamed.make_room(plan.context_bytes + IN_HAND + 4 * plan.slot_bytes + 1)


def test_the_files_are_closed_with_the_engine(containers: dict[str, Path]) -> None:
    for path in containers.values():
        checkpoint = open_checkpoint(path)
        plan = plan_of(path)
        engine = Engine.load(checkpoint, context=CONTEXT, memory=plan.least, prefix_budget=0)
        descriptors = checkpoint.reader.descriptors()
        checkpoint.close()
        assert all(os.fstat(descriptor) for descriptor in descriptors)
        engine.logits([1, 2, 3])
        engine.close()
        assert not any(d in checkpoint.reader.descriptors() and d >= 0 for d in descriptors)


@pytest.mark.slow
def test_the_process_keeps_to_the_size(tmp_path: Path) -> None:
    """An 8th of gpt-oss-20b with little room: what is resident at the highest, next to what was given."""
    import json
    import subprocess
    import sys

    shape = load_shape("gpt-oss-20b").with_layers(2)
    path = synthesize(
        plan_synthesis(replace(shape, config=shape.config | {"vocab_size": 32000}), "ready"), tmp_path / "a.ready"
    )
    size = 10**9
    program = f"""
import json, sys
from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request
from oss_tools.measure.peak import own_peak
with Engine.load(sys.argv[1], context=2048, memory={size}) as engine:
    for _ in engine.generate(Request(list(range(1500)), 8, stop_tokens=frozenset())):
        pass
    print(json.dumps([own_peak(), engine.backend.facts()["streaming"]]))
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    peak, figures = json.loads(done.stdout)
    assert figures["misses"] > figures["slots"]
    assert peak < size
