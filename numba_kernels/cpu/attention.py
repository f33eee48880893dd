"""Attention over a paged KV cache of bfloat16, float32 or 8 bits (`kv_pages`): the operation, which divides the work.

A tile is some rows, query heads that share a key-value head, times tokens. A piece of work is a block of tiles: while a segment
of keys and values lies in the core's cache, all of them meet it. Where keys are divided, a piece is one tile and a part of its
keys, and the thread that finishes last puts the tile's parts together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_kernels.cpu import attention_bytes, attention_matrix
from numba_kernels.cpu import attention_steps as steps
from numba_kernels.cpu.attention_steps import HEAD, PART, SEGMENT, STRIDE
from numba_kernels.cpu.attention_tiles import places_of
from numba_kernels.cpu.kv_pages import ELEMENTS, MAX_HEAD, SCALES
from numba_kernels.cpu.op import Op, inner, maker, specialize
from numba_kernels.cpu.team import take, thread_count
from numba_kernels.simd.memory import get_i32, load_bf16, load_floats, set_i32, set_i64, stack
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.threads import atomic_add, atomic_store
from numba_kernels.simd.tiles import TILES
from numba_kernels.simd.values import LANES

USUAL_HEAD = 256  # values of a head: up to so many share one kernel
MOST_TILES = 16  # of a block
VECTOR_TILES = tuple(t for t in TILES if t <= 8)  # rows of a tile
HAS_PAIRS = ACTIVE.multiplies_bf16 and ACTIVE.architecture == "x86"  # products of bfloat16; Arm's were not measured
ROWS, PLACES, WIDTH, SCALE = steps.ROWS, steps.PLACES, steps.WIDTH, 0


@inner
def first_key(position, window):  # type: ignore[no-untyped-def]
    """The first key that a query at this position sees."""
    return max(position - window + 1, 0) if window > 0 else 0


def parts_that_fit(sequences, first_row, row_count, positions, group, kv_heads, pieces):  # type: ignore[no-untyped-def]
    """Parts of the keys of the longest sequence if all pieces of work have an area then, else 1."""
    tiles, longest = 0, 0
    for s in range(sequences):
        rows = get_i32(row_count + 4 * s)
        if rows > 0:
            tiles += (rows * group + ROWS - 1) // ROWS
            longest = max(longest, get_i32(positions + 4 * (get_i32(first_row + 4 * s) + rows - 1)) + 1)
    parts = (longest + PART - 1) // PART
    return parts if tiles * kv_heads * parts <= pieces else 1


def tiles_of_all(sequences, row_count, group):  # type: ignore[no-untyped-def]
    """Tiles of the sequences' rows."""
    tiles = 0
    for s in range(sequences):
        tiles += (get_i32(row_count + 4 * s) * group + ROWS - 1) // ROWS
    return tiles


def first_of_run(run, total, threads):  # type: ignore[no-untyped-def]
    """The first of `total` pieces of work that run number `run` has, `total` where there is no such run. Runs get shorter: while
    a thread goes from one piece to the next, it knows what to ask memory for, and the last ones are short."""
    first = 0
    for _ in range(run):
        first += max((total - first) // (2 * threads), 1)
    return min(first, total)


LATENT, MATRIX = 0, 0
AREA, QUERIES, SCORES, SPOTS = 64, 64, 64, 64
score_keys: Any = None  # the compiled forms of the steps for ROWS rows; set by `attention_op`
soften_scores: Any = None
sum_segment: Any = None
gather: Any = None  # with MATRIX only
clear_sums: Any = None
merge_sums: Any = None
finish: Any = None
prepare_queries: Any = None
parts_that_fit_in: Any = None
tiles_of: Any = None
run_from: Any = None


def attention(  # type: ignore[no-untyped-def]
    qkv, stride, rows, out, out_stride, sequences, first_row, row_count, positions, heads, kv_heads, head_dim, value_dim,
    window, sinks, pages, page_bytes, page_positions, tables, table_stride, ring, divided, areas, area_bytes, counters, pieces,
    team, thread,
):  # fmt: skip
    """Causal attention of rotated and scaled queries over the stored keys, the rows' own among them.

    qkv: as `rotate_and_store` left it; out: float32 rows [heads · head_dim], out_stride bytes apart; sequences: how many,
    each with its rows first_row[s] … + row_count[s] (int32) at consecutive positions (int32, per row); window: a key is seen
    when query − key < window, 0 for all; sinks: float32 [heads] or 0; pages … ring: as there. With `divided`, each part of a
    tile's keys is a piece of work, where there is room for them: areas hold what they found, and counters (int64, zeros) how
    many are done (`attention_scratch` makes both). Otherwise areas hold what the tiles of a block have found, and their queries.

    With LATENT, all heads share one key of head_dim values, of which the first value_dim are its value (pages as `latent` lays
    them out), and heads lie one under another: that of row r is row head · rows + r of qkv and of out; otherwise value_dim is
    head_dim.

    A row's result is the same bits whatever tile, block, batch, chunk or number of threads it is computed with: which keys are
    summed together follows from their positions alone.
    """
    group = heads // kv_heads
    padded = (value_dim + LANES - 1) // LANES * LANES
    across = (head_dim + LANES - 1) // LANES * LANES if LATENT else padded
    head_bytes = page_positions * ((head_dim + padded) * WIDTH + 2 * SCALE)
    row_bytes = padded * 4
    own, whole, queries = stack(AREA), stack(AREA), stack(QUERIES)
    scores, places, sees = stack(SCORES), stack(SPOTS), stack(SPOTS)
    threads = thread_count(team)
    splits, each, pieces_of_work = 1, 1, tiles_of(sequences, row_count, group) * kv_heads
    if HEAD + PLACES * row_bytes <= area_bytes:
        if divided:
            splits = parts_that_fit_in(sequences, first_row, row_count, positions, group, kv_heads, pieces)
        if splits == 1:  # a tile of a block takes three areas, and there are several blocks for each thread
            each = max(min(pieces_of_work // (8 * threads), pieces // (3 * threads), MOST_TILES), 1)
    if each > 1:
        own = areas + thread * each * 3 * area_bytes
        whole = own + each * area_bytes
        if not LATENT:
            queries = whole + each * area_bytes
    if MATRIX:
        attention_matrix.configure_registers(ROWS)
    run = take(team)
    item, after = run, run + 1
    if splits > 1:
        item, after = run_from(run, pieces_of_work * splits, threads), run_from(run + 1, pieces_of_work * splits, threads)
    done = 0
    s = 0
    prepared = np.int64(-1)  # the block whose queries lie in memory
    while s < sequences:
        queries_of = get_i32(row_count + 4 * s) * group
        tiles = (queries_of + ROWS - 1) // ROWS
        blocks = (tiles + each - 1) // each
        work = blocks * kv_heads * splits
        if item >= done + work:
            done += work
            s += 1
            continue
        number = item - done
        if splits > 1:  # tiles that share keys one after the other: the second finds them in a cache
            number = number % tiles * kv_heads * splits + number // tiles
        block = blocks - 1 - number // (kv_heads * splits)  # the longest first
        head = number // splits % kv_heads
        split = number % splits
        begin = get_i32(first_row + 4 * s)
        count = min(each, tiles - block * each)
        which = (done + number) // splits
        if which != prepared:
            for t in range(count * ROWS):
                r = min(block * each * ROWS + t, queries_of - 1)
                row = begin + r // group
                position = get_i32(positions + 4 * row)
                if LATENT:
                    set_i64(places + 8 * t, qkv + (row + r % group * rows) * stride)
                else:
                    set_i64(places + 8 * t, qkv + row * stride + (head * group + r % group) * head_dim * 4)
                set_i32(sees + 8 * t, first_key(position, window))
                set_i32(sees + 8 * t + 4, position + 1)
            if not LATENT:
                for j in range(count):
                    prepare_queries(places + 8 * ROWS * j, queries + j * area_bytes, head_dim)
            prepared = which
        low, high = get_i32(sees), get_i32(sees + 8 * count * ROWS - 4)
        found = own
        if splits > 1:
            found = areas + (done + number) * area_bytes
            part = (low // PART + split) * PART
            low, high = max(low, part), min(high, part + PART)
        for j in range(count):
            clear_sums(found + j * area_bytes, row_bytes)
            clear_sums(whole + j * area_bytes, row_bytes)
        table = tables + s * table_stride
        keys = head * head_bytes
        values = keys if LATENT else keys + page_positions * (head_dim * WIDTH + SCALE)
        segment = low // SEGMENT * SEGMENT
        while segment < high:
            if MATRIX:
                gather(scores + ROWS * STRIDE, head_dim, padded, max(segment, low), min(segment + SEGMENT, high),
                       pages, page_bytes, page_positions, table, ring, values, keys, rows == sequences)  # fmt: skip
            for j in range(count):
                these, sums = sees + 8 * ROWS * j, found + j * area_bytes
                last = get_i32(these + 8 * ROWS - 4)
                start, stop = max(segment, low, get_i32(these)), min(segment + SEGMENT, high, last)
                if start < stop:
                    asking = places + 8 * ROWS * j if LATENT else queries + j * area_bytes
                    score_keys(scores, asking, these, head_dim, start, stop,
                               pages, page_bytes, page_positions, table, ring, keys, across, rows == sequences)  # fmt: skip
                    soften_scores(scores, start, stop, sums, row_bytes)
                    sum_segment(scores, sums + HEAD, row_bytes, padded, across, start, stop,
                                pages, page_bytes, page_positions, table, ring, values, keys, rows == sequences)  # fmt: skip
                    if splits == 1 and (stop == last or stop % PART == 0):
                        merge_sums(whole + j * area_bytes, sums, row_bytes)
                        clear_sums(sums, row_bytes)
            segment += SEGMENT
        counter = counters + 8 * which
        is_last = splits == 1
        if not is_last and atomic_add(counter, 1) == splits - 1:
            atomic_store(counter, 0)
            is_last = True
            for j in range(splits):
                merge_sums(whole, found + (j - split) * area_bytes, row_bytes)
        if is_last:
            first = block * each * ROWS
            for t in range(min(count * ROWS, queries_of - first)):
                r = first + t
                query = head * group + r % group
                target = out + (begin + r // group) * out_stride + query * head_dim * 4
                if LATENT:
                    target = out + (query * rows + begin + r // group) * out_stride
                sums = whole + t // ROWS * area_bytes
                finish(target, sums, t % ROWS, row_bytes, value_dim, padded, sinks + 4 * query if sinks else 0)
        item += 1
        if item == after:
            run = take(team)
            item, after = run, run + 1
            if splits > 1:
                item, after = (
                    run_from(run, pieces_of_work * splits, threads),
                    run_from(run + 1, pieces_of_work * splits, threads),
                )
    if MATRIX:
        attention_matrix.release_registers()


def _tile_rows(rows: int, tiles: tuple[int, ...]) -> int:
    """The size of tile of which so many rows take the least time: a tile takes that of its rows and of some more."""
    return min(tiles, key=lambda t: (-(-rows // t) * (t + 3), -t))


@maker
def attention_op(
    rows: int, element: str = "bf16", value_dim: int = USUAL_HEAD, latent: Any = None, products: str = "f32"
) -> Op:
    """The operation `attention` for so many rows (heads that share keys, times tokens; any large number for many), over caches of
    this element. It is the same for every value_dim up to USUAL_HEAD.

    Args:
        latent: what scores keys that lie in rows, of which values are the beginnings, see `latent`.
        products: "bf16" rounds queries and the softmax's shares to bfloat16, where the cache is bfloat16 and the path multiplies
            these faster; "i16" rounds them to 16 bits, where the cache is of 8 bits; "f32" never does.
    """
    widest = next(n for n in (USUAL_HEAD, attention_bytes.MOST_SUMMED, MAX_HEAD) if value_dim <= n)
    paired = products == "bf16" and element == "bf16" and HAS_PAIRS and latent is None
    by_matrix = paired and ACTIVE.matrix_registers
    size = _tile_rows(rows, attention_matrix.TILES if by_matrix else VECTOR_TILES)
    panels = next(n for n in (4, 2, 1) if size * n <= max(ACTIVE.sums, size))
    constants = {
        "ROWS": size, "PLACES": places_of(size), "PANELS": panels, "GROUP": max(panels, 2) * LANES, "BOTH": size * panels,
        "WIDTH": ELEMENTS[element], "SCALE": SCALES.get(element, 0), "ELEMENT": "f32" if element == "q8" else element,
        "PRODUCTS": "bf16" if paired else "f32",
        "STEP": 2 if paired else 1, "SIZE": 2 if paired else 4, "LATENT": int(latent is not None), "LONGEST": 2 * widest,
        "MATRIX": int(by_matrix), "AREA": HEAD + size * widest * 4, "QUERIES": places_of(size) * widest * 4,
        "SCORES": size * STRIDE + by_matrix * SEGMENT * widest * 2,
        "SPOTS": 8 * MOST_TILES * size,
        "load_value": load_bf16 if element == "bf16" else load_floats,
    }  # fmt: skip
    if by_matrix:
        constants |= {"PANELS": 2, "GROUP": attention_matrix.BLOCK}
    suffix = f"{size}_{element}{'_pairs' if paired else ''}"

    def compiled(function: Any, **more: Any) -> Any:
        name = "_".join([function.__name__, *map(str, more.values()), suffix])
        return inner(specialize(function, name, **constants, **more))

    if element == "q8":
        kind = "i16" if products == "i16" and widest <= attention_bytes.MOST_SUMMED else "f32"
        chosen = attention_bytes.byte_steps(constants, widest, kind)
        constants |= {"PRODUCTS": kind, "QUERIES": constants["QUERIES"] + 64}
    elif by_matrix:
        chosen = attention_matrix.matrix_steps(constants)
    else:
        several, two, one = (compiled(steps.add_columns, VECTORS=n) for n in (panels, 2, 1))
        sums = {"add_several": several, "add_two": two, "add_one": one}
        chosen = {
            "prepare_queries": compiled(steps.prepare),
            "score_keys": compiled(latent or steps.scores_of),
            "sum_segment": inner(specialize(steps.sum_values, f"sum_values_{suffix}", **constants, **sums)),
        }
    return Op(
        attention, **constants, **chosen, soften_scores=compiled(steps.soften), clear_sums=compiled(steps.clear),
        merge_sums=compiled(steps.merge), finish=compiled(steps.finish_row), parts_that_fit_in=compiled(parts_that_fit),
        tiles_of=compiled(tiles_of_all), run_from=compiled(first_of_run),
    )  # fmt: skip


def attention_scratch(pieces: int, value_dim: int) -> dict[str, Any]:
    """Memory for attention, as the kernels' arguments of these names: an area and a counter for each of so many pieces of
    work. Kernels divide where it is enough, and nowhere else: neither how many rows their tiles have nor how long sequences
    are is to be reckoned by who calls them."""
    rows = max(attention_matrix.TILES if ACTIVE.matrix_registers else map(places_of, VECTOR_TILES))
    each = HEAD // 4 + rows * -(-value_dim // LANES) * LANES
    areas, counters = np.zeros((pieces, each), np.float32), np.zeros(pieces, np.int64)
    return {"areas": areas, "area_bytes": areas.strides[0], "counters": counters, "pieces": pieces}
