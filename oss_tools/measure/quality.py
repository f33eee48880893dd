"""What rounding costs in quality, by format and by way of rounding: `python -m oss_tools.measure.quality BASE…`.

BASE is one of `quality_bases` (tiny, smollm2, smollm2-moe). A row is a format and a way: ours by plain rounding, by the search
for scales, by the search weighted by importance, by GPTQ; llama.cpp's with and without the same importance; torchao's. Each is
held against the base over held-out text that travels with the program (`evals/`: a travel book, questions of mathematics,
health and tools), which no calibration reads. Embedding and output are Q8_0 (where the container has it) in every row, the router
stays. Files are dequantized and computed in float32, whoever wrote them: so the weights alone make the difference.

A row is kept in FOLDER passage by passage; the next run goes on behind it. `--record` writes results/quality-BASE.json of all
that is there, `--table` prints records as Markdown, `--figure FILE` draws them.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
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
from oss_tools.measure.divergence import Base, Passages, Predictions, head_of, predict
from oss_tools.measure.identity import model_sha256
from oss_tools.measure.overlay import Overlay
from oss_tools.measure.quality_bases import BASES, make_base
from oss_tools.measure.quality_record import kept_file, record
from oss_tools.measure.quality_shown import figure, table
from oss_tools.measure.quality_ways import OURS, TORCHAO, Row, WayFailed, make_llama_cpp, make_ours, rows, torchao_rounding
from oss_tools.models import Checkpoint, open_checkpoint
from oss_tools.models.entries import chunks
from oss_tools.resources import resource

TOKENS = 24576  # that GPTQ reads
SIZE, CONTEXT = 512, 64  # tokens of a passage, and of those that are not scored
TEXTS = {"text": "text", "math": "question", "health": "question", "tool_use": "question"}  # of evals/, and the field


def held_out(text: Text) -> Passages:
    """The text that rows are measured on, in passages."""
    parts = [
        "\n\n".join(doc[field] for doc in read_jsonl(resource(f"evals/{suite}/smoke.jsonl")))
        for suite, field in TEXTS.items()
    ]
    return Passages.of(text.encode("\n\n".join(parts)), SIZE, CONTEXT, text.encode(""))


class Measurement:
    """A base, opened, and what it says on the held-out text; rows are measured against it, passage by passage.

    Attributes:
        order: the passages, in the order in which they are measured: so that the first few are spread over the text.
    """

    def __init__(self, name: str, folder: Path, importance: Path | None, tokens: int) -> None:
        self.name, self.folder, self.importance, self.tokens = name, folder, importance, tokens
        self.path = make_base(name, folder)
        self.checkpoint = open_checkpoint(self.path)
        self.sha256 = model_sha256(self.checkpoint.reader.files())
        self.passages = held_out(Text(self.checkpoint.metadata()))
        self.order = spread(len(self.passages.sequences))
        self.kept = folder / f"rows-{name}"
        self.kept.mkdir(parents=True, exist_ok=True)
        self._head = head_of(self.checkpoint)

    def about(self) -> dict[str, Any]:
        """What figures of different rows must have in common."""
        sequences = self.passages.sequences
        text = hashlib.sha256(np.concatenate(sequences).astype("<i8").tobytes()).hexdigest()
        return {
            "base": {"name": self.name, "sha256": self.sha256, "parameters": self.checkpoint.parameters},
            "text": {"passages": len(sequences), "size": SIZE, "context": CONTEXT, "sha256": text},
        }

    def row(self, row: Row, count: int) -> None:
        """Measures a row on the first `count` passages, those that are not kept yet. Raises WayFailed, MissingPackage."""
        file = kept_file(self.name, self.folder, row)
        known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"passages": {}}
        missing = [number for number in self.order[:count] if str(number) not in known["passages"]]
        if not missing:
            return
        if row.way == TORCHAO:
            facts: dict[str, Any] = {"bits": None, "bytes": None}
            found = self.measure(self.rounded_by_torchao(row.format), missing)
        else:
            made = self.make(row)
            with open_checkpoint(made) as checkpoint:
                facts = self.facts_of(checkpoint)
                if known.get("content", facts["content"]) != facts["content"]:
                    known = {"passages": {}}  # the program makes another file now
                    missing = self.order[:count]
                found = self.same(facts["content"], missing) or self.measure(checkpoint, missing)
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        kept = (
            self.about()
            | {"format": row.format, "way": row.way}
            | ({"gptq_tokens": self.tokens} if row.way == "gptq" else {})
            | facts
            | {"passages": known["passages"] | found}
        )
        replace_file(file, json_text(kept, indent=1) + "\n")
        kld = [passage["kld"] for passage in kept["passages"].values()]
        bits = f"{facts['bits']:.2f} bits, " if facts["bits"] else ""
        error = np.std(kld, ddof=1) / len(kld) ** 0.5 if len(kld) > 1 else np.nan
        say(f"{self.name}: {row.name}: {bits}KLD {np.mean(kld):.4f} ± {error:.4f} ({len(kld)} passages)")

    def rounded_by_torchao(self, format: str) -> Overlay:
        """The base, whose matrices are rounded by torchao where they are read."""
        rounding, f32 = torchao_rounding(format), get_format("f32")
        wide = [n for n, e in self.checkpoint.entries.items() if e.spec.role.startswith(("attention", "mlp", "experts"))]
        return Overlay(self.checkpoint, {n: lambda values, _: f32.quantize(rounding(values)) for n in wide})

    def facts_of(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """How large the file of a row is, and what it holds."""
        return {
            "bits": 8 * checkpoint.nbytes / self.checkpoint.parameters,
            "bytes": checkpoint.nbytes,
            "formats": formats_of(checkpoint),
            "content": content_hash(checkpoint),
        }

    def same(self, digest: str, numbers: Sequence[int]) -> dict[str, Any] | None:
        """The passages of a kept row whose tensors are the same."""
        for file in self.kept.glob("*.json"):
            kept: dict[str, Any] = json.loads(file.read_text())
            if kept.get("content") == digest and {str(n) for n in numbers} <= set(kept["passages"]):
                return {str(number): kept["passages"][str(number)] for number in numbers}
        return None

    def make(self, row: Row) -> Path:
        if row.wants_importance and self.importance is None:
            raise WayFailed("no --importance was given")
        if row.way in OURS:
            return make_ours(row, self.path, self.kept, self.importance, self.tokens)
        gguf = self.folder / f"{self.name}-bf16.gguf"
        if not gguf.exists():
            from oss_tools.convert.pipeline import Options, run
            from oss_tools.convert.plan import make_plan

            run(make_plan(self.checkpoint, "gguf", load_recipe("bf16")), gguf, Options())
        known = imatrix.read_gguf(self.importance) if row.wants_importance and self.importance else {}
        return make_llama_cpp(row, gguf, self.kept, {name: means.values for name, means in known.items()})

    def measure(self, checkpoint: Checkpoint, numbers: Sequence[int]) -> dict[str, Any]:
        """The means over each of these passages."""
        passages = self.passages.only(numbers)
        base = Base(Predictions(self.base_hidden(numbers), self._head), passages.came)
        found = base.compare(predict(checkpoint, passages))
        ends = np.cumsum(passages.counts)[:-1]
        fields = {"kld": found.kld, "same_top": found.same_top, "nll": found.nll, "base_nll": found.base_nll}
        means = {name: [float(part.mean()) for part in np.split(values, ends)] for name, values in fields.items()}
        return {str(number): {name: values[i] for name, values in means.items()} for i, number in enumerate(numbers)}

    def base_hidden(self, numbers: Sequence[int]) -> np.ndarray:
        """The base's final hidden states on these passages, which are kept in files."""
        files = {number: self.kept / f"base-{self.sha256[:12]}-{number}.npy" for number in numbers}
        if missing := [number for number, file in files.items() if not file.exists()]:
            passages = self.passages.only(missing)
            hidden = np.split(predict(self.checkpoint, passages).hidden, np.cumsum(passages.counts)[:-1])
            for number, values in zip(missing, hidden, strict=True):
                np.save(files[number], values)
        return np.concatenate([np.load(file) for file in files.values()])


def spread(count: int) -> list[int]:
    """Numbers below `count`, of which the first few are far from each other (multiples of the golden ratio)."""
    return sorted(range(count), key=lambda number: number * 0.6180339887498949 % 1)


def content_hash(checkpoint: Checkpoint) -> str:
    """Of all values, whatever the container and its names."""
    digest = hashlib.sha256()
    for name, entry in checkpoint.entries.items():
        digest.update(f"{name} {entry.format.name}\0".encode())
        for chunk in chunks([entry]):
            for plane in checkpoint.read(name, *chunk).planes.values():
                digest.update(np.ascontiguousarray(plane).view(np.uint8).data)
    return digest.hexdigest()


def formats_of(checkpoint: Checkpoint) -> dict[str, int]:
    """Parameters by format."""
    found: dict[str, int] = {}
    for entry in checkpoint.entries.values():
        found[entry.format.name] = found.get(entry.format.name, 0) + entry.spec.size
    return found


def chosen_rows(patterns: Sequence[str]) -> list[Row]:
    return [row for row in rows() if not patterns or any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]


def measure_base(
    name: str, folder: Path, importance: Path | None, patterns: Sequence[str], count: int | None, tokens: int
) -> None:
    """Measures what is not kept yet."""
    measurement = Measurement(name, folder, importance, tokens)
    for row in chosen_rows(patterns):
        try:
            measurement.row(row, count or len(measurement.order))
        except (WayFailed, MissingPackage) as error:
            say(f"{name}: {row.name}: {error}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m oss_tools.measure.quality", description=__doc__)
    parser.add_argument("bases", nargs="+", choices=BASES, metavar="BASE", help=", ".join(BASES))
    parser.add_argument(
        "--folder", type=Path, default=Path("build/quality"), help="the folder for bases, files and finished rows"
    )
    parser.add_argument(
        "--importance", type=Path, help="a GGUF importance matrix of the base, as `oss-tools calibrate` makes it"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="measure only these rows, such as q4_0/* or */gptq"
    )
    parser.add_argument("--passages", type=int, help="measure only on this many passages; a later run adds the others")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"how many tokens GPTQ reads [{TOKENS}]")
    parser.add_argument("--record", action="store_true", help="write results/quality-BASE.json and measure nothing")
    parser.add_argument("--table", action="store_true", help="print results/quality-BASE.json as Markdown")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw results/quality-BASE.json as SVG")
    options = parser.parse_args(arguments)
    files = {name: Path(f"results/quality-{name}.json") for name in options.bases}
    try:
        for name in options.bases:
            if options.record:
                replace_file(files[name], json_text(record(name, options.folder), indent=1) + "\n")
            elif options.table:
                print(f"{name}\n\n{table(json.loads(files[name].read_text()))}\n")
            elif not options.figure:
                measure_base(name, options.folder, options.importance, options.only, options.passages, options.tokens)
        if options.figure:
            replace_file(options.figure, figure([json.loads(file.read_text()) for file in files.values()]))
    except OssToolsError as error:
        say(str(error))
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
