"""How much memory the engine takes for a model: panels of weights, caches, activations, the program itself.

The sizes of panels and of KV pages come from the engine's own classes; what a pass needs follows from the widths of its
layers. `python -m oss_tools.measure.peak` measures the truth, and tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from numba_kernels.cpu.huge_pages import HUGE
from numba_kernels.cpu.packed import Packed
from numba_kernels.cpu.records import record_bytes
from numba_kernels.simd.values import LANES
from oss_tools.checkpoints.ready import ReadyReader
from oss_tools.engine.engine import PREFIX_SHARE
from oss_tools.engine.numba_cache import Pool
from oss_tools.engine.numba_pages import pages_for
from oss_tools.engine.numba_values import CHUNK, OUTPUTS
from oss_tools.engine.numba_weights import CHUNK_BYTES, TRANSPOSED, kept_bytes, kernel_format
from oss_tools.errors import BadRequest
from oss_tools.models import Architecture, Checkpoint, Entry
from oss_tools.models.operations import Latent

PROGRAM_BYTES = 196_000_000  # interpreter, NumPy, Numba, compiled kernels: the peak of a model of 0.4 MB
# Of a tokenizer, per byte of tokenizer.json, or per token and merge of a GGUF file's vocabulary: what the library keeps, and
# what there is while the file is parsed, before the weights are loaded
KEPT_PER_BYTE, KEPT_PER_TOKEN, KEPT_PER_MERGE = 5, 300, 50
READ_PER_BYTE, READ_PER_TOKEN, READ_PER_MERGE = 18, 300, 1000
MERGES = 2  # for each token, in vocabularies of gpt-oss's and Llama 3's kind
SAMPLER_COPIES = 8  # of a row of logits: softmax, sorting, random choice, in float32 and float64


@dataclass(frozen=True)
class Memory:
    """Bytes of resident memory.

    Attributes:
        weights: panels, biases and norms, as this processor's kernels keep them.
        cache: keys and values of the live sequences; sliding layers keep their window only.
        prefixes: copies of keys and values of finished prompts, for reuse; bounded by a share of what is free.
        activations: values of a pass, its pages of sliding layers, logits, position tables, or what loading takes beside weights
            if that is more.
        program: interpreter, libraries, kernels, tokenizer.
        device_weights: the same on a GPU, whose rows lie in no panels.
    """

    weights: int
    cache: int
    prefixes: int
    activations: int
    program: int
    device_weights: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.prefixes + self.activations + self.program

    @property
    def on_device(self) -> int:
        """Of these, what a GPU would hold."""
        return self.device_weights + self.cache + self.activations


@dataclass(frozen=True)
class Use:
    """How a model is used: positions of a sequence, sequences at a time, threads, bytes of memory that are free, the number
    format of keys and values."""

    context: int
    batch: int = 1
    threads: int = 1
    free: int | None = None
    cache: str = "bf16"


@dataclass(frozen=True)
class Tokenizer:
    """Bytes that a tokenizer takes: for good, and while it is read."""

    kept: int = 0
    read: int = 0


def memory(architecture: Architecture, entries: Sequence[Entry], tokenizer: Tokenizer, use: Use) -> Memory:
    """The engine's memory for a model whose tensors are stored as `entries` say."""
    latent = latent_of(architecture)
    weights = sum(panel_bytes(entry, latent) for entry in entries)
    pools = _pools(architecture, use)
    cache = sum(use.batch * _pool_bytes(pool, use.context) for pool in pools)
    position = sum(pool.width * pool.dtype.itemsize for pool in pools)
    budget = max((use.free or 1 << 60) - weights, 0) // PREFIX_SHARE
    prefixes = min(use.batch * use.context * position, budget)
    copied = 2 * min(CHUNK, use.context) * position
    working = pass_bytes(architecture, entries, use) + copied + sum(map(_passing_bytes, pools))
    working = max(working, loading_bytes(entries, use.threads), tokenizer.read - tokenizer.kept - weights - cache)
    rows = sum(kept_bytes(entry) for entry in entries)
    return Memory(weights, cache, prefixes, working, PROGRAM_BYTES + tokenizer.kept, rows)


# ---- weights --------------------------------------------------------------------------------------------------------


def panel_bytes(entry: Entry, latent: Latent | None = None) -> int:
    """A tensor's bytes once it is loaded: rows in panels of LANES, biases and norms as float32. What projects latents to keys is
    transposed, and in floats."""
    count, rows, columns = entry.spec.matrices
    if entry.spec.is_vector:
        return 4 * count * -(-rows // 32) * 32
    form = kernel_format(entry).name
    if latent and entry.spec.role == "attention.kv_b":
        transposed = form if kernel_format(entry).is_float else TRANSPOSED
        keys = _panels(transposed, latent.rank, latent.nope)
        return latent.queries * (keys + _panels(form, latent.value, latent.rank))
    return count * _panels(form, rows, columns)


def _panels(form: str, rows: int, columns: int) -> int:
    """Bytes of a matrix in panels."""
    return -(-rows // LANES) * Packed(form, 1, 1, columns).panel_bytes


def latent_of(architecture: Architecture) -> Latent | None:
    """The shape of the layers' latent attention, if they have it."""
    return next((h for h in architecture.attention_layers() if isinstance(h, Latent)), None)


def bytes_per_token(architecture: Architecture, entries: Iterable[Entry], use: Use, filled: float) -> float:
    """Bytes that one token's pass reads: every matrix once, the chosen experts' share of theirs, of the embedding one row
    unless it is the output too, and the keys and values of a cache that is filled to this share."""
    entries = list(entries)
    tied = not any(entry.spec.role == "output" for entry in entries)
    chosen, latent = _chosen(architecture), latent_of(architecture)
    total = 0.0
    for entry in entries:
        matrices, rows, _ = entry.spec.matrices
        share = min(chosen / matrices, 1.0) if entry.spec.role.startswith("experts.") else 1.0
        if entry.spec.role == "positions" or (entry.spec.role == "embedding" and not tied):
            share = 1 / rows
        total += share * panel_bytes(entry, latent)
    for heads in architecture.attention_layers():
        seen = min(filled * use.context, heads.window or use.context)
        total += seen * pages_for(heads, use.cache).row_bytes
    return total


def loading_bytes(entries: Iterable[Entry], threads: int) -> int:
    """What the threads hold while they load: a chunk, or a whole matrix where it is stored transposed, as read and as
    unpacked."""
    most = 0
    for entry in entries:
        _, rows, columns = entry.spec.matrices
        values = rows * columns if entry.needs_whole_matrix else min(CHUNK_BYTES // 4, rows * columns)
        stored = values * entry.format.bytes_per_row(columns) // columns
        copies = 3 if entry.needs_whole_matrix else 2
        converted = 4 * values if kernel_format(entry) != entry.format else 0
        most = max(most, copies * stored + converted)
    return threads * most


# ---- keys and values ------------------------------------------------------------------------------------------------


def _pools(architecture: Architecture, use: Use) -> list[Pool]:
    """The engine's own pools of pages; their memory is taken only when it is written."""
    layers = architecture.attention_layers()
    windows = dict.fromkeys(heads.window for heads in layers)
    try:
        return [Pool([h for h in layers if h.window == window], use.context, CHUNK, use.cache) for window in windows]
    except ValueError as error:
        raise BadRequest(f"{error}: only --backend torch runs this model, and what that takes is not known here") from None


def _pool_bytes(pool: Pool, context: int) -> int:
    """Bytes of one sequence's pages."""
    return len(pool.heads) * _in_memory(pool.needed(context) * pool.pages.nbytes)


def _passing_bytes(pool: Pool) -> int:
    """Bytes of the pages that passes over many tokens work on; one set for all sequences."""
    return len(pool.heads) * _in_memory(pool.passing.ring * pool.pages.nbytes) if pool.passing else 0


def _in_memory(nbytes: int) -> int:
    """A layer's pages lie together and take whole huge pages."""
    return -(-nbytes // HUGE) * HUGE if nbytes > HUGE // 2 else nbytes


# ---- activations ----------------------------------------------------------------------------------------------------


def pass_bytes(architecture: Architecture, entries: Iterable[Entry], use: Use) -> int:
    """Buffers of a pass over a full chunk of tokens; every layer uses the same ones. Logits, and tables of rotary
    positions."""
    width: dict[str, int] = {}
    for entry in entries:
        _, rows, columns = entry.spec.matrices
        width[entry.spec.role] = rows
        width[entry.spec.role + " in"] = columns
    chosen = _chosen(architecture)
    hidden, heads = width["embedding in"], architecture.attention_layers()[0]
    inner = chosen * max(width.get("experts.down in", 0), width.get("mlp.down in", 0))
    floats = 4 * hidden + sum(width.get(f"attention.{part}", 0) for part in ("q", "k", "v", "q_a", "q_b", "kv_a"))
    if isinstance(heads, Latent):
        attended = heads.queries * heads.value
        floats += 2 * attended + heads.queries * (heads.nope + heads.size + heads.rank)
        between = heads.queries * record_bytes(heads.rank)
    else:
        attended, between = heads.queries * heads.size, 0
        floats += attended
    floats += 3 * inner + (chosen * hidden if "experts.down" in width else 0) + width.get("router", 0)
    records = 2 * record_bytes(hidden) + record_bytes(attended) + between + record_bytes(inner)
    rows = min(CHUNK, use.context * use.batch)
    vocabulary = width.get("output", width["embedding"])
    logits = 4 * vocabulary * (min(use.batch, OUTPUTS) + 1 + SAMPLER_COPIES)
    return rows * (4 * floats + records) + logits + 8 * use.context * heads.size


def _chosen(architecture: Architecture) -> int:
    """Experts that a token goes to; 1 for dense models."""
    return int(architecture.computation().get("num_experts_per_tok") or 1)


def tokenizer_bytes(checkpoint: Checkpoint) -> Tokenizer:
    """What a checkpoint's tokenizer takes; nothing if it has none."""
    if checkpoint.container == "gguf":
        keys = checkpoint.reader.raw_config
        return _tokenizer(*(len(keys.get(f"tokenizer.ggml.{name}", ())) for name in ("tokens", "merges")))
    if isinstance(checkpoint.reader, ReadyReader):
        return Tokenizer(KEPT_PER_BYTE * checkpoint.reader.text_bytes, READ_PER_BYTE * checkpoint.reader.text_bytes)
    folder = checkpoint.path if checkpoint.path.is_dir() else Path(checkpoint.path).parent
    file = folder / "tokenizer.json"
    size = file.stat().st_size if file.exists() else 0
    return Tokenizer(KEPT_PER_BYTE * size, READ_PER_BYTE * size)


def tokenizer_bytes_of(vocabulary: int) -> Tokenizer:
    """What a tokenizer of so many tokens takes, where nothing else is known of it."""
    return _tokenizer(vocabulary, MERGES * vocabulary)


def _tokenizer(tokens: int, merges: int) -> Tokenizer:
    kept = tokens * KEPT_PER_TOKEN + merges * KEPT_PER_MERGE
    return Tokenizer(kept, tokens * READ_PER_TOKEN + merges * READ_PER_MERGE)
