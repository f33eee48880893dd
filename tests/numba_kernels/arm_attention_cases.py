"""Attention on the Arm paths, and over latents: operations with their arguments, and the error of each result."""

from __future__ import annotations

from typing import Any

import numpy as np
from arm_emulator import Arena


def attention_cases(
    arena: Arena, element: str, head_dim: int, products: str = "f32"
) -> list[tuple[str, Any, dict[str, Any], Any]]:
    """A prompt's keys and values are stored, and its queries attend; rows are longer than what is in them. Those of 8 bits are
    copied out of the pages in between."""
    import ml_dtypes

    from numba_kernels.cpu.attention import attention_op, attention_scratch
    from numba_kernels.cpu.copies import copy_ops
    from numba_kernels.cpu.kv_pages import Pages, store_op
    from numba_kernels.reference import ops

    rng = np.random.default_rng(head_dim)
    heads, kv_heads, tokens, window = 5, 1, 21, 9
    pages = Pages(kv_heads, head_dim, 16, element)
    width = (heads + 2 * kv_heads) * head_dim
    qkv = arena.copy(rng.normal(size=(tokens, width + 3)).astype(np.float32))
    given = qkv[:, :width].reshape(tokens, heads + 2 * kv_heads, head_dim).copy()
    memory = arena.copy(np.zeros((3, pages.nbytes), np.uint8))
    tables = ops.rope_table(ops.rope_frequencies(head_dim, 1e4), tokens)
    cos, sin = (arena.copy(table) for table in tables)
    out = arena.copy(np.full((tokens, heads, head_dim), np.nan, np.float32))
    scratch = attention_scratch(1, head_dim)
    scratch |= {name: arena.copy(scratch[name]) for name in ("areas", "counters")}
    sinks = arena.copy(rng.normal(size=heads).astype(np.float32))
    positions = arena.copy(np.arange(tokens, dtype=np.int32))
    zeros = arena.copy(np.zeros(tokens, np.int32))
    shared = {
        "qkv": qkv, "stride": qkv.strides[0], "positions": positions, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
        "pages": memory, "page_bytes": pages.nbytes, "page_positions": 16, "tables": arena.copy(np.array([2, 0, 1], np.int32)),
        "table_stride": 12, "ring": 3,
    }  # fmt: skip
    store = {**shared, "rows": tokens, "sequence": zeros, "cos": cos, "sin": sin, "scale": head_dim**-0.5}
    store |= {"pairs": head_dim // 2, "interleaved": 0, "query_norm": None, "key_norm": None, "eps": 0.0}
    attend = {
        **shared, "rows": tokens, "value_dim": head_dim,
        "out": out, "out_stride": out.strides[0], "sequences": 1, "first_row": zeros, "window": window, "sinks": sinks,
        "row_count": arena.copy(np.array([tokens], np.int32)), "divided": 0, **scratch,
    }  # fmt: skip

    rows = arena.copy(np.zeros((tokens, pages.row_bytes), np.uint8))
    copy = {
        "table": shared["tables"], "rows": rows, "row_stride": rows.strides[0], "first": 0, "count": tokens,
        **{name: shared[name] for name in ("ring", "kv_heads", "head_dim", "pages", "page_bytes", "page_positions")},
    }  # fmt: skip

    def rotated() -> list[np.ndarray]:
        q, k = (ops.apply_rope(given[:, a:b], *tables) for a, b in ((0, heads), (heads, heads + kv_heads)))
        return [ops.mixed(q), ops.mixed(k)] if element == "q8" else [q, k]

    def held() -> list[np.ndarray]:
        codes, scales = rows[:, : 2 * head_dim].view(np.int8), rows[:, 2 * head_dim :].copy().view(np.float32)
        return [codes[:, None, i * head_dim : (i + 1) * head_dim] * scales[:, None, i : i + 1] for i in range(2)]

    def rounding_error() -> float:
        pairs = zip(held(), (rotated()[1], given[:, heads + kv_heads :]), strict=True)
        missed = [np.abs(x - ops.cached_in_8_bits(y)) * 127 / np.abs(y).max(-1, keepdims=True) for x, y in pairs]
        steps = np.concatenate(missed, 1)  # a last bit decides how a value is rounded, and seldom
        return 0.0 if steps.max() <= 1.001 and (steps > 0.01).mean() < 0.01 else 1.0

    def error() -> float:
        q, k = rotated()
        v = given[:, heads + kv_heads :]
        if element == "bf16":
            k, v = (x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in (k, v))
        elif element == "q8":
            k, v = held()
        exact = ops.attention(q, k, v, 0, scale=head_dim**-0.5, window=window, sinks=sinks)
        return float(np.abs(out - exact).max() / np.abs(exact).max())

    name = f"attention {head_dim} {element}" + (f" {products}" if element == "q8" else "")
    stored = [(f"keys of {name}", store_op(element), store, lambda: 0.0)]
    if element == "q8":
        stored.append((f"copies of {name}", copy_ops("q8")[0], copy, rounding_error))
    return [*stored, (name, attention_op(8, element, head_dim, None, products), attend, error)]


def latent_cases(arena: Arena, element: str, rank: int) -> list[tuple[str, Any, dict[str, Any], Any]]:
    """A prompt's latents and rotated keys are stored, and its queries, whose part for the latents is given, attend to them."""
    import ml_dtypes

    from numba_kernels.cpu.attention import attention_scratch
    from numba_kernels.cpu.latent import LatentPages, latent_attention_op, store_latents_op
    from numba_kernels.reference import ops

    rng = np.random.default_rng(rank)
    heads, tokens, nope, rope, scale = 5, 21, 18, 6, 0.3
    pages, width = LatentPages(rank, rope, 16, element), -(-(rank + rope) // 32) * 32
    shapes = ((tokens, heads, nope + rope), (tokens, rank), (tokens, rope), (heads, tokens, width))
    query, latent, key, absorbed = (arena.copy(rng.normal(size=shape).astype(np.float32)) for shape in shapes)
    given = query.copy(), latent.copy(), key.copy(), absorbed.copy()
    unrotated, out = (arena.copy(np.full((heads, tokens, n), np.nan, np.float32)) for n in (nope, rank))
    tables = ops.rope_table(ops.rope_frequencies(rope, 1e4), tokens)
    zeros, number = arena.copy(np.zeros(tokens, np.int32)), arena.copy(np.array([2, 0, 1], np.int32))
    shared = {
        "rows": tokens, "heads": heads, "positions": arena.copy(np.arange(tokens, dtype=np.int32)), "tables": number,
        "pages": arena.copy(np.zeros((3, pages.nbytes), np.uint8)), "page_bytes": pages.nbytes, "page_positions": 16,
        "table_stride": 12, "ring": 3,
    }  # fmt: skip
    store = {
        **shared, "query": query, "query_stride": query.strides[0], "latent": latent, "latent_stride": latent.strides[0],
        "key": key, "key_stride": key.strides[0], "nope": nope, "rope": rope, "rank": rank, "sequence": zeros,
        "cos": arena.copy(tables[0]), "sin": arena.copy(tables[1]), "pairs": rope // 2, "interleaved": 1, "scale": scale,
        "unrotated": unrotated, "unrotated_stride": unrotated.strides[1], "absorbed": absorbed,
        "absorbed_stride": absorbed.strides[1],
    }  # fmt: skip
    scratch = attention_scratch(1, rank)
    scratch |= {name: arena.copy(scratch[name]) for name in ("areas", "counters")}
    attend = {
        **shared, "qkv": absorbed, "stride": absorbed.strides[1], "out": out, "out_stride": out.strides[1], "sequences": 1,
        "first_row": zeros, "row_count": arena.copy(np.array([tokens], np.int32)), "kv_heads": 1, "head_dim": rank + rope,
        "value_dim": rank, "window": 0, "sinks": None, "divided": 0, **scratch,
    }  # fmt: skip

    def stored_error() -> float:
        return float(np.abs(unrotated - given[0][..., :nope].transpose(1, 0, 2) * scale).max())

    def error() -> float:
        turned = ops.apply_rope(given[0][..., nope:], *tables, True) * scale
        queries = np.concatenate([given[3].transpose(1, 0, 2)[..., :rank], turned], -1)
        rows = np.concatenate([given[1], ops.apply_rope(given[2][:, None], *tables, True)[:, 0]], -1)
        if element == "bf16":
            rows = rows.astype(ml_dtypes.bfloat16).astype(np.float32)
        exact = ops.attention(queries, rows[:, None], rows[:, None, :rank], 0, scale=1)
        return float(np.abs(out.transpose(1, 0, 2) - exact).max() / np.abs(exact).max())

    name = f"latent attention {rank} {element}"
    stored = (f"keys of {name}", store_latents_op(element), store, stored_error)
    return [stored, (name, latent_attention_op(element, rank), attend, error)]
