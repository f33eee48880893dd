"""How long GPTQ takes, and how much memory: some layers of a shape are made, rounded, and what all layers take is said from them.

    python -m oss_tools.measure.compensation gpt-oss-20b FOLDER --layers 2 --tokens 65536 --json

A process of its own rounds and writes the file; its resident memory at the highest is the record's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from oss_tools.calibration.compensation import DAMPING, Compensation
from oss_tools.calibration.texts import sample, sources_of
from oss_tools.convert.options import Options
from oss_tools.convert.pipeline import run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import load_recipe
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.machine.description import machine, versions
from oss_tools.measure.peak import own_peak
from oss_tools.models import open_checkpoint


def made(shape: str, layers: int, folder: Path) -> Path:
    """A checkpoint in bf16 of so many layers of a shape, in a folder where it stays for the next time."""
    place = folder / f"{shape}-{layers}"
    if not place.exists():
        synthesize(plan_synthesis(load_shape(shape).with_layers(layers), "hf", load_recipe("bf16")), place)
    return place


def compensate(model: Path, recipe: str, tokens: int, length: int) -> dict[str, Any]:
    """Rounds a model and writes it. Returns seconds in all, those of each layer's rounding with its products before, bytes."""
    seconds: dict[str, float] = {}
    ends: dict[str, float] = {}
    began = time.perf_counter()

    def progress(stage: str, name: str, done: int) -> None:
        if stage == "round" and (layer := re.search(r"layers\.(\d+)\.", name)):
            ends[layer[1]] = time.perf_counter()

    with open_checkpoint(model) as checkpoint:
        plan = make_plan(checkpoint, "hf", load_recipe(recipe))
        vocabulary = next(entry.spec.shape[0] for entry in checkpoint.entries.values() if entry.spec.role == "embedding")
        text = sample(plan.metadata, sources_of((), ()), tokens, length, vocabulary)
        options = Options(overwrite=True, rounding=Compensation(text, DAMPING))
        run(plan, model.with_name(f"{model.name}-{recipe}"), options, progress)
    last = began
    for layer, end in ends.items():
        seconds[layer], last = end - last, end
    return {"seconds": time.perf_counter() - began, "layer_seconds": seconds, "peak_bytes": own_peak()}


def measure(shape: str, folder: Path, layers: int, recipe: str, tokens: int, length: int) -> dict[str, Any]:
    """The record. Raises CalledProcessError with what the process said."""
    model = made(shape, layers, folder)
    command = [
        sys.executable, "-P", "-m", "oss_tools.measure.compensation", shape, str(folder), "--layers", str(layers),
        "--recipe", recipe, "--tokens", str(tokens), "--sequence", str(length), "--within",
    ]  # fmt: skip
    load = os.getloadavg()[0]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    count = load_shape(shape).config["num_hidden_layers"]
    return {
        "kind": "compensation",
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "shape": shape,
        "layers": layers,
        "recipe": recipe,
        "tokens": tokens,
        "sequence": length,
        "blas": {name: value for name, value in os.environ.items() if name.startswith("OPENBLAS_")},
        "machine": machine(),
        "versions": versions("numpy", "numba", "llvmlite"),
        "load": load,
        **found,
        "source_bytes": sum(file.stat().st_size for file in model.glob("*.safetensors")),
        "extrapolated": {
            "layers": count,
            "seconds": count * sum(found["layer_seconds"].values()) / len(found["layer_seconds"]),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help="a shape's name")
    parser.add_argument("folder", type=Path, help="the folder in which to make models")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--recipe", default="mxfp4")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of a line")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.within:
        model = made(given.shape, given.layers, given.folder)
        print(json.dumps(compensate(model, given.recipe, given.tokens, given.sequence)))
        return
    try:
        record = measure(given.shape, given.folder, given.layers, given.recipe, given.tokens, given.sequence)
    except subprocess.CalledProcessError as error:
        sys.exit(error.stderr.strip())
    if given.json:
        print(json.dumps(record, indent=1))
        return
    layers = ", ".join(f"{seconds:.1f}" for seconds in record["layer_seconds"].values())
    whole = record["extrapolated"]
    print(
        f"{given.shape}: layers {layers} s, {whole['seconds'] / 60:.0f} min for {whole['layers']} layers, "
        f"at most {record['peak_bytes'] / 1e9:.2f} GB of memory"
    )


if __name__ == "__main__":
    main()
