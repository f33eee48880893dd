"""The CUDA backend without a GPU: an emulated device interprets the PTX of every kernel that is launched.

Held against the engine on the CPU; with float32 activations both compute the same, with others each rounds in its own way.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda")
sys.path.insert(0, str(Path(__file__).parent.parent / "numba_kernels" / "cuda"))

from drawn import checkpoint, gpt_osses, llamas
from emulated_device import EmulatedDevice
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels.cuda.driver import find_gpu
from numba_kernels.cuda.seam import CudaMissing, cuda
from oss_tools.convert.synth import load_shape
from oss_tools.engine import cuda_backend, cuda_sampling
from oss_tools.engine.backend import backend_for
from oss_tools.engine.cuda_cache import PAGE, Pool
from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request
from oss_tools.engine.sampling import Sampling, log_softmax
from oss_tools.errors import BadRequest, NoRoom, Unsupported
from oss_tools.models.operations import Heads

CONTEXT = 160


@pytest.fixture(scope="module", autouse=True)
def emulated() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(cuda_backend, "open_device", EmulatedDevice)
    patch.setattr(cuda_backend, "check_device", lambda: None)
    patch.setattr(cuda_sampling, "CHOOSERS", 2)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def exact(tiny_gpt_oss: Path) -> Engine:
    """The engine on the CPU with float32 activations."""
    return Engine.load(tiny_gpt_oss, activations="f32", context=CONTEXT, threads=1)


@pytest.fixture(scope="module")
def engine(tiny_gpt_oss: Path) -> Engine:
    """The GPU's, as it is used."""
    return Engine.load(tiny_gpt_oss, backend="cuda", context=CONTEXT)


@pytest.fixture
def prompt() -> list[int]:
    return np.random.default_rng(7).integers(0, 768, CONTEXT).tolist()


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(log_softmax(a) - log_softmax(b)).max())


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(log_softmax(a) - log_softmax(b)).mean())


@pytest.mark.slow
def test_float32_is_exact(tiny_gpt_oss: Path, exact: Engine, prompt: list[int]) -> None:
    """Token by token, past the window of 16; and the same weights give the same tokens."""
    engine = Engine.load(tiny_gpt_oss, backend="cuda", activations="f32", context=CONTEXT)
    assert difference(engine.logits(prompt[:19]), exact.logits(prompt[:19])) < 5e-5
    request = Request(prompt[:5], 3, stop_tokens=frozenset())
    assert [t.id for t in engine.generate(request)] == [t.id for t in exact.generate(request)]


@pytest.mark.slow
def test_prompts_and_steps_agree(engine: Engine, exact: Engine, prompt: list[int]) -> None:
    """A prompt goes through the tensor cores, a step through int8 products: both near to the truth, and to each other."""
    wanted = exact.logits(prompt[:70])
    whole = engine.logits(prompt[:70])
    assert mean_difference(whole, wanted) < 0.03
    assert (whole.argmax(-1) == wanted.argmax(-1)).mean() > 0.9
    sequence = engine.open(prompt[:70], reuse=0)
    rows = [engine.prefill(sequence, prompt[:66])]
    rows += [engine.step([sequence], [token])[0].copy() for token in prompt[66:70]]
    assert mean_difference(np.array(rows), wanted[65:]) < 0.05
    assert difference(rows[0], whole[65]) < 0.02  # the head of many rows rounds them to bfloat16


@pytest.mark.slow
def test_several_sequences_in_one_pass(engine: Engine, prompt: list[int]) -> None:
    sequences = [engine.open(prompt[:n], room=4, reuse=0) for n in (3, 40)]
    for sequence, n in zip(sequences, (3, 40), strict=True):
        engine.prefill(sequence, prompt[:n])
    together = engine.step(sequences, [5, 6]).copy()
    for row, n, token in zip(together, (3, 40), (5, 6), strict=True):
        alone = engine.open(prompt[:n], room=4, reuse=0)
        assert mean_difference(row, engine.prefill(alone, [*prompt[:n], token])) < 0.02
    assert engine.likeliest(sequences, [7, 8]).shape == (2,)


@pytest.mark.slow
def test_many_sequences_outgrow_the_pool(engine: Engine, prompt: list[int]) -> None:
    """Pages move to larger memory; what was recorded before is recorded anew."""
    first = engine.open(prompt[:20], room=4, reuse=0)
    engine.prefill(first, prompt[:20])
    pool = engine.backend.pools[None]  # type: ignore[attr-defined]
    before, others = pool._pages, []
    while pool._pages == before:
        others.append(engine.open(prompt[:1], room=CONTEXT - 1, reuse=0))
    after = engine.step([first], [9])[0].copy()
    again = engine.open(prompt[:20], room=4, reuse=0)
    engine.prefill(again, prompt[:20])
    np.testing.assert_array_equal(after, engine.step([again], [9])[0])


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize(("context", "rows", "start"), [(64, 6, 0), (160, 90, 50), (1024, 700, 300)])
def test_positions_are_read_as_they_were_written(window: int | None, context: int, rows: int, start: int) -> None:
    """In one page, across pages, and more than a ring holds, of which it keeps the last."""
    heads = [Heads(layer, 4, 2, 32, window) for layer in (0, 2)]
    pool = Pool(EmulatedDevice(), heads, context, 64, "bf16", lambda: None)
    numbers = pool.take(pool.needed(context))
    block = np.random.default_rng(rows).integers(0, 1 << 16, (rows, pool.width)).astype(np.uint16)
    pool.write(numbers, start, block)
    kept = min(rows, pool.shape.ring * PAGE)
    np.testing.assert_array_equal(pool.read(numbers, start + rows - kept, start + rows), block[rows - kept :])


@pytest.mark.slow
def test_reused_and_forked_beginnings(engine: Engine, prompt: list[int]) -> None:
    tokens = prompt[:90]
    first = engine.open(tokens, reuse=0)
    wanted = engine.prefill(first, tokens)
    engine.save(first)
    reused = engine.open(tokens, room=3, reuse=66)
    assert len(reused.tokens) == 66
    assert mean_difference(engine.prefill(reused, tokens[66:]), wanted) < 1e-3
    other = engine.fork(reused, room=3)
    a, b = (engine.step([s], [11])[0].copy() for s in (reused, other))
    np.testing.assert_array_equal(a, b)
    engine.step([other], [12])
    assert (
        difference(engine.step([reused], [13]), engine.prefill(engine.open([*tokens, 11, 13], reuse=0), [*tokens, 11, 13]))
        < 1
    )


@pytest.mark.slow
def test_the_device_chooses_by_itself(engine: Engine, prompt: list[int]) -> None:
    """Steps that follow each other without the host give what the engine gives step by step."""
    backend: Any = engine.backend
    request = Request(prompt[:10], 4, stop_tokens=frozenset())
    wanted = [t.id for t in engine.generate(request)]
    sequence = engine.open(prompt[:10], room=8, reuse=0)
    first = int(engine.prefill(sequence, prompt[:10]).argmax())
    assert [first, *backend.generate(sequence.cache, first, 10, 3)] == wanted
    drawn = backend.generate(sequence.cache, first, 10, 3, temperature=2.0, seed=1)
    assert drawn.tolist() == backend.generate(sequence.cache, first, 10, 3, temperature=2.0, seed=1).tolist()
    assert ((drawn >= 0) & (drawn < backend.vocabulary)).all()


@pytest.mark.slow
def test_draws_are_made_on_the_device(engine: Engine, prompt: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the logits; the seed alone decides, also beside others."""

    def drawn(*requests: Request) -> list[list[int]]:
        tokens: list[list[int]] = [[] for _ in requests]
        for i, token in engine.generate_batch(list(requests)):
            tokens[i].append(token.id)
        return tokens

    monkeypatch.setattr(engine.backend, "logits", None)  # nobody asks
    request = Request(prompt[:10], 3, Sampling(temperature=3.0, seed=5), stop_tokens=frozenset())
    greedy = Request(prompt[:12], 3, stop_tokens=frozenset())
    other = Request(prompt[:10], 3, Sampling(temperature=3.0, seed=6), stop_tokens=frozenset())
    (alone,), (likeliest,) = drawn(request), drawn(greedy)
    together = drawn(greedy, request, other)
    assert together[:2] == [likeliest, alone]
    assert together[2] != alone


@pytest.mark.slow
def test_rules_and_logprobs_take_the_logits(engine: Engine, prompt: list[int]) -> None:
    greedy = [t.id for t in engine.generate(Request(prompt[:10], 2, stop_tokens=frozenset()))]
    told = list(engine.generate(Request(prompt[:10], 2, stop_tokens=frozenset(), logprobs=1)))
    assert [t.id for t in told] == greedy == [t.top[0][0] for t in told]
    assert list(
        engine.generate(Request(prompt[:10], 2, Sampling(temperature=1.0, top_k=3, seed=3), stop_tokens=frozenset()))
    )


@pytest.mark.slow
def test_measurements(engine: Engine) -> None:
    backend: Any = engine.backend
    assert backend.device_memory()["allocated"] >= backend.device.allocated > 0
    assert backend.facts()["bytes_per_token"] > 0
    assert set(backend.ceilings()) == {"read", "multiply"}
    assert backend.stopwatch()() > 0


@pytest.mark.slow
def test_llama(tiny_llama: Path, prompt: list[int]) -> None:
    tokens = [t % 512 for t in prompt[:20]]
    wanted = Engine.load(tiny_llama, activations="f32", context=CONTEXT, threads=1).logits(tokens)
    engine = Engine.load(tiny_llama, backend="cuda", context=CONTEXT)
    assert mean_difference(engine.logits(tokens), wanted) < 0.01
    sequence = engine.open(tokens, reuse=0)
    engine.prefill(sequence, tokens[:18])
    assert mean_difference(engine.step([sequence], [tokens[18]])[0], wanted[18]) < 0.01


@pytest.mark.slow
@settings(deadline=None, max_examples=6)
@given(st.one_of(llamas(), gpt_osses()), st.integers(1, 7), st.integers(0, 4), st.sampled_from(["f32", "int8"]))
def test_drawn_shapes(config: dict[str, Any], sixteenths: int, window: int, activations: str) -> None:
    """Any widths, groups and experts, and head sizes that are multiples of 16; a prompt, then steps."""
    kv_heads = min(config["num_key_value_heads"], 2)
    group = min(config["num_attention_heads"] // config["num_key_value_heads"], 5)
    config |= {"head_dim": 16 * sixteenths, "num_key_value_heads": kv_heads, "num_attention_heads": kv_heads * group}
    config |= {"num_hidden_layers": 1, "vocab_size": min(config["vocab_size"], 100)}
    if "layer_types" in config:
        config |= {"layer_types": config["layer_types"][:1], "sliding_window": window + 1}
    tokens = np.random.default_rng(0).integers(0, config["vocab_size"], 7).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint(config, Path(folder) / "model")
        wanted = Engine.load(path, activations="f32", context=64, threads=1).logits(tokens)[4:]
        engine = Engine.load(path, backend="cuda", activations=activations, context=64)
        sequence = engine.open(tokens, reuse=0)
        rows = [engine.prefill(sequence, tokens[:5]), *(engine.step([sequence], [t])[0].copy() for t in tokens[5:])]
    off = np.abs(np.array(rows) - wanted)
    assert off.max() <= 1e-4 * np.abs(wanted).max() if activations == "f32" else off.mean() <= 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head_dim": 40}, "head_dim is 40: the GPU's attention takes multiples of 16 up to 256"),
        ({"head_dim": 272}, "head_dim is 272"),
        ({"head_dim": 192}, "pages of heads of 192 values need 52224 bytes of a block's shared memory, which has 49152"),
        ({"head_dim": 128, "num_attention_heads": 48, "num_key_value_heads": 1}, "48 query heads of 128 values"),
        ({"head_dim": 16, "num_attention_heads": 71, "num_key_value_heads": 1}, "71 query heads share a key-value head"),
        ({"hidden_size": 14336}, "vectors of 14336 values in float32 need"),
    ],
)
def test_shapes_without_a_kernel_are_one_line(changes: dict[str, int], said: str, tmp_path: Path) -> None:
    path = checkpoint(load_shape("llama-tiny").config | changes, tmp_path / "model")
    with pytest.raises(BadRequest) as raised:
        Engine.load(path, backend="cuda", context=64)
    assert str(raised.value).startswith(said)
    assert str(raised.value).endswith(": use --device cpu for this model")


def test_what_does_not_fit_is_refused(tiny_gpt_oss: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmulatedDevice, "memory", lambda self: (850_000_000, 16_000_000_000))
    with pytest.raises(NoRoom, match=r"emulated: the model needs [89]\d\d MB .* 8\d\d MB of 16 GB are free; "):
        Engine.load(tiny_gpt_oss, backend="cuda", context=CONTEXT)


# ---- no GPU ---------------------------------------------------------------------------------------------------------


def no_gpu() -> None:
    raise Unsupported("no NVIDIA driver can be used here: none")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_for("cuda", "numba") == backend_for("auto", "numba") == "cuda"
    assert backend_for("cpu", "numba") == "numba"
    with pytest.raises(BadRequest, match="There are cpu, cuda, auto"):
        backend_for("tpu", "numba")
    with pytest.raises(BadRequest, match="leave --backend out"):
        backend_for("cuda", "torch")
    monkeypatch.setattr(cuda_backend, "check_device", no_gpu)
    told: list[str] = []
    assert backend_for("auto", "numba", told.append) == "numba"
    assert told == ["the CPU is used: no NVIDIA driver can be used here: none"]
    with pytest.raises(Unsupported):
        backend_for("cuda", "numba")


NO_GPU = pytest.mark.skipif(cuda.is_available(), reason="there is a GPU")


@NO_GPU
def test_commands_without_a_gpu(tiny_llama: Path) -> None:
    """One line and status 3; auto goes on without."""

    def oss_tools(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "oss_tools", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    for verb in (["generate", tiny_llama, "x", "--raw"], ["bench", tiny_llama]):
        done = oss_tools(*verb, "--device", "cuda")
        assert done.returncode == 3
        assert len(done.stderr.strip().splitlines()) == 1
        assert "no NVIDIA driver can be used here" in done.stderr
    done = oss_tools("generate", tiny_llama, "x", "--raw", "-n", 1, "-t", 1, "--device", "auto")
    assert done.returncode == 0
    assert "the CPU is used: no NVIDIA driver" in done.stderr


@NO_GPU
def test_the_driver_that_is_missing_is_named() -> None:
    with pytest.raises(CudaMissing, match=r"^no NVIDIA driver can be used here: ") as raised:
        find_gpu()
    assert "\n" not in str(raised.value)
