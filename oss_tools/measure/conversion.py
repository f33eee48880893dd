"""How fast conversion is, beside `cp` and llama.cpp's quantizer: `python -m oss_tools.measure.conversion --help`.

Every figure is the median of interleaved runs (A B A B …) of whole child processes, files flushed to disk, sources dropped
from the page cache beforehand; peak memory is the operating system's own accounting of the child. Ours read their output back,
and prove it, before they end. GB/s are of the source's bytes, for `cp` too, which writes as many as it reads.

With --append, rounds are added to those of an earlier record of the same machine and settings: a measurement may be done
in several turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numba_kernels.parallel import cores
from oss_tools.checkpoints.files import replace_file
from oss_tools.machine.description import machine, versions

SCHEMA = 2

LLAMA_QUANTIZE = """
import ctypes, sys, llama_cpp
source, target, file_type, threads = sys.argv[1:]
llama_cpp.llama_log_set(ctypes.cast(None, llama_cpp.llama_log_callback), None)
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.nthread, parameters.ftype = int(threads), int(file_type)
status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters))
with open(target, "rb") as file:
    import os
    os.fsync(file.fileno())
sys.exit(status)
"""
LLAMA_FILE_TYPES = {"mxfp4-q8": 38, "q8_0": 7, "q4_0": 2, "q4_k_m": 15}  # llama_ftype: MOSTLY_MXFP4_MOE, MOSTLY_Q8_0, …
PLAIN = {"mxfp4-q8": ["floor", "plain"]}  # the plain rules of a recipe's formats, where they are not `plain` alone


@dataclass(frozen=True)
class Run:
    """One child process: wall seconds and peak resident bytes."""

    seconds: float
    peak_bytes: int


def child(command: list[str]) -> Run:
    """Runs a command to its end. Raises CalledProcessError with what it printed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr
    printed = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=printed.decode(errors="replace"))
    return Run(time.perf_counter() - began, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def forget(path: Path) -> None:
    """Drops a file's, or a folder's files', pages from the page cache, so that every run reads from the disk."""
    for file in [path] if path.is_file() else [f for f in path.iterdir() if f.is_file()]:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.with_name(path.name + ".manifest.json").unlink(missing_ok=True)


def interleaved(runs: dict[str, Callable[[], Run]], repeat: int, before: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """A B C A B C …: so that a machine that slows down slows all of them. `before`: earlier rounds, which come first."""
    results: dict[str, list[Run]] = {name: list(before.get(name, [])) for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            results[name].append(run())
            print(f"  {name}: {results[name][-1].seconds:.1f} s", file=sys.stderr)
    return results


def earlier(record: dict[str, Any]) -> dict[str, list[Run]]:
    """The rounds that a part of a record holds."""
    return {
        name: [Run(seconds, round(peak * 2**30)) for seconds, peak in zip(f["seconds"], f["peaks_GiB"], strict=True)]
        for name, f in record.items()
        if isinstance(f, dict) and "seconds" in f
    }


def figures(runs: list[Run], gigabytes: float) -> dict[str, Any]:
    seconds = [run.seconds for run in runs]
    return {
        "seconds": [round(s, 2) for s in seconds],
        "median_GBps": round(gigabytes / statistics.median(seconds), 3),
        "spread_GBps": [round(gigabytes / max(seconds), 3), round(gigabytes / min(seconds), 3)],
        "peaks_GiB": [round(run.peak_bytes / 2**30, 3) for run in runs],
        "peak_GiB": round(max(run.peak_bytes for run in runs) / 2**30, 3),
    }


def ratios(of: list[Run], to: list[Run]) -> dict[str, Any]:
    """How many times as fast, pair by pair, with the median."""
    pairs = [b.seconds / a.seconds for a, b in zip(of, to, strict=True)]
    return {"pairs": [round(p, 2) for p in pairs], "median": round(statistics.median(pairs), 2)}


def copied(source: Path, target: Path) -> Run:
    """`cp` of a file or a folder, and `sync` of the copy."""
    forget(source)
    run = child(
        [
            "sh",
            "-c",
            f'cp -r "{source}" "{target}" && if [ -d "{target}" ]; then sync "{target}"/*; else sync "{target}"; fi',
        ]
    )
    remove(target)
    return run


def tool(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "oss_tools", *arguments]


def measure_container(scratch: Path, shape: str, layers: int | None, repeat: int, before: dict[str, Any]) -> dict[str, Any]:
    """A synthetic checkpoint from Hugging Face's layout to GGUF, MXFP4 moved, beside `cp` of the same bytes."""
    source, target = scratch / "source", scratch / "target.gguf"
    _synthesize(shape, layers, source, [])
    size = sum(f.stat().st_size for f in source.glob("*.safetensors"))

    def convert(*options: str) -> Run:
        forget(source)
        run = child(tool("convert", str(source), str(target), "--container", "gguf", "--quiet", *options))
        remove(target)
        return run

    contenders = {"cp": lambda: copied(source, scratch / "copy"), "convert": lambda: convert("--no-verify")}
    runs = interleaved(contenders | {"convert and verify": convert}, repeat, earlier(before))
    result = {"bytes": size} | {name: figures(r, size / 1e9) for name, r in runs.items()}
    return result | {f"{name} / cp": ratios(runs[name], runs["cp"]) for name in ("convert", "convert and verify")}


def measure_ready(scratch: Path, shape: str, layers: int | None, repeat: int) -> dict[str, Any]:
    """A synthetic checkpoint to a run-ready file and back, from GGUF and from Hugging Face's layout, beside `cp` of the same
    bytes. `back is equal`: whether `verify` finds what came back to be the same, value by value."""
    found: dict[str, Any] = {}
    for container, name in (("gguf", "source.gguf"), ("hf", "source")):
        source, ready, back, copy = (scratch / n for n in (name, "target.ready", f"back{Path(name).suffix}", "copy"))
        options = ["--recipe", "mxfp4-q8"] if container == "gguf" else []
        _synthesize(shape, layers, source, options)
        size = source.stat().st_size if source.is_file() else sum(f.stat().st_size for f in source.glob("*.safetensors"))

        def convert(a: Path, b: Path) -> Run:
            remove(b)
            forget(a)
            return child(tool("convert", str(a), str(b), "--no-verify", "--quiet"))

        def cp(source: Path = source, copy: Path = copy) -> Run:
            forget(source)
            files = f'"{copy}"' if source.is_file() else f'"{copy}"/*'
            run = child(["sh", "-c", f'cp -r "{source}" "{copy}" && sync {files}'])
            remove(copy)
            return run

        runs = interleaved(
            {
                "cp": cp,
                "to ready": partial(convert, source, ready),
                "from ready": partial(convert, ready, back),
            },
            repeat,
            {},
        )
        equal = json.loads(subprocess.run(tool("verify", str(source), str(back), "--json"), capture_output=True).stdout)[
            "equal"
        ]
        result = {"bytes": size, "back is equal": equal} | {way: figures(r, size / 1e9) for way, r in runs.items()}
        result |= {f"{way} / cp": ratios(runs[way], runs["cp"]) for way in ("to ready", "from ready")}
        found[container] = result
        for path in (source, ready, back):
            remove(path)
    return found


def measure_quantization(
    scratch: Path, shape: str, layers: int, repeat: int, threads: int, recipes: list[str], before: dict[str, Any]
) -> dict[str, Any]:
    """Requantizing a GGUF of 16-bit floats, plain rule and search, beside llama.cpp's `llama_model_quantize` and `cp`."""
    source, target = scratch / "source.gguf", scratch / "target.gguf"
    result: dict[str, Any] = {**before, "threads": threads}
    _synthesize(shape, layers, source, ["--container", "gguf", "--format", "bf16"])
    size = source.stat().st_size

    def ours(recipe: str, rules: list[str]) -> Run:
        forget(source)
        command = ["requantize", str(source), str(target), "--recipe", recipe, "--jobs", str(threads)]
        options = [word for rule in rules for word in ("--rule", rule)]
        run = child(tool(*command, *options, "--quiet"))
        remove(target)
        return run

    def llama(recipe: str) -> Run:
        forget(source)
        command = [str(source), str(target), str(LLAMA_FILE_TYPES[recipe]), str(threads)]
        run = child([sys.executable, "-P", "-c", LLAMA_QUANTIZE, *command])
        remove(target)
        return run

    def measured(recipe: str, plain: list[str]) -> dict[str, Any]:
        contenders = {
            "llama.cpp": lambda: llama(recipe),
            "plain": lambda: ours(recipe, plain),
            "search": lambda: ours(recipe, ["search"]),
            "cp": lambda: copied(source, scratch / "copy.gguf"),
        }
        runs = interleaved(contenders, repeat, earlier(before.get(recipe, {})))
        found = {name: figures(r, size / 1e9) for name, r in runs.items()}
        return found | {
            f"{name} / {peer}": ratios(runs[name], runs[peer])
            for name in ("plain", "search")
            for peer in ("llama.cpp", "cp")
        }

    result["bytes"] = size
    for recipe in recipes:
        print(f"requantize to {recipe}", file=sys.stderr)
        result[recipe] = measured(recipe, PLAIN.get(recipe, ["plain"]))
    return result


def _synthesize(shape: str, layers: int | None, target: Path, options: list[str]) -> None:
    if target.exists():  # of an earlier turn, with --models
        return
    print(f"synthesize {shape}", file=sys.stderr)
    child(tool("synth", shape, str(target), "--quiet", *(["--layers", str(layers)] if layers else []), *options))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m oss_tools.measure.conversion", description=__doc__)
    parser.add_argument("--shape", default="gpt-oss-20b", help="a shape of configs/models")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has, for the container part")
    parser.add_argument(
        "--quantize-layers", type=int, default=1, help="how many layers the 16-bit model has that is requantized"
    )
    parser.add_argument("--repeat", type=int, default=3, help="how often each program runs")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path(),
        help="the folder for temporary checkpoints, which take twice the shape's size",
    )
    parser.add_argument("--skip", choices=["container", "quantization", "ready"], action="append", default=[])
    parser.add_argument(
        "--recipes", nargs="+", choices=LLAMA_FILE_TYPES, default=list(LLAMA_FILE_TYPES), help="the recipes to requantize to"
    )
    parser.add_argument("--output", type=Path, help="also write the record to this file")
    parser.add_argument(
        "--models", type=Path, help="make the sources in this folder, or use those that are there, and keep them"
    )
    parser.add_argument("--append", action="store_true", help="add rounds to the record in --output")
    options = parser.parse_args()
    if options.append and not options.output:
        parser.error("--append needs --output")
    record: dict[str, Any] = {"schema": SCHEMA, "kind": "conversion", "shape": options.shape, "layers": options.layers}
    record |= {"machine": machine(), "versions": versions("numpy", "numba", "gguf", "llama-cpp-python")}
    before = json.loads(options.output.read_text()) if options.append and options.output.exists() else {}
    if before and any(before.get(key) != record[key] for key in ("schema", "shape", "layers", "machine")):
        parser.error(f"{options.output}: a record of another machine or of other settings")
    record |= {part: before[part] for part in ("hf to gguf", "requantize") if part in before}
    with tempfile.TemporaryDirectory(prefix="conversion-", dir=options.scratch) as folder:
        scratch = options.models or Path(folder)
        if "container" not in options.skip:
            arguments = (scratch, options.shape, options.layers, options.repeat, record.get("hf to gguf", {}))
            record["hf to gguf"] = measure_container(*arguments)
        if "ready" not in options.skip:
            record["ready"] = measure_ready(scratch, options.shape, options.layers, options.repeat)
        if "quantization" not in options.skip:
            before = record.get("requantize", {})
            settings = (options.quantize_layers, options.repeat, options.threads, options.recipes, before)
            record["requantize"] = measure_quantization(scratch, options.shape, *settings)
    text = json.dumps(record, indent=1)
    if options.output:
        replace_file(options.output, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
