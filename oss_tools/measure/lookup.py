"""What prompt lookup gains, on texts that repeat what stands before them and on texts that do not, beside llama.cpp's.

python -m oss_tools.measure.lookup MODEL [--rounds 5] [--tokens 300] [--output FILE]

Each round continues every text, by at most so many tokens, without guesses and with them, in turns with llama-cpp-python, which
has the same method with a fixed number of guesses. MODEL is a GGUF file with a
tokenizer. Our tokens must be the same both times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numba_kernels.parallel import cores
from oss_tools.machine.description import machine, versions
from oss_tools.measure.identity import model_sha256
from oss_tools.measure.worker import Child

CONTEXT = 2048
CODE = '''def total(orders, rate):
    """The sum of all orders that were paid, with tax."""
    paid = [order for order in orders if order.status == "paid"]
    amounts = [order.amount * (1 + rate) for order in paid]
    return round(sum(amounts), 2)


def overdue(orders, today):
    """Orders that should have been paid by now, the oldest first."""
    late = [order for order in orders if order.status == "open" and order.due < today]
    return sorted(late, key=lambda order: order.due)


def by_customer(orders):
    """Orders in lists by the name of the customer."""
    found = {}
    for order in orders:
        found.setdefault(order.customer, []).append(order)
    return found
'''
TALE = (
    "The harbour lay still under a grey sky. Nets hung from the rails of the boats, and the smell of tar came up from the slip "
    "where two men were at work on a keel. Nobody spoke. A dog slept on a coil of rope, and over the water a single bell counted "
    "the hours for a town that had stopped listening to it long ago. When the mail boat came round the point, late as ever, the "
    "older of the men put down his brush and looked at it for a while, as if it might bring something other than bills."
)
RECORD = (
    '{{"id": {0}, "name": "sensor-{0}", "kind": "temperature", "unit": "celsius", '
    '"place": {{"floor": {1}, "room": {2}}}, "active": true}}'
)
EDITED = (
    CODE.replace("paid = [", "settled = [").replace("in paid]", "in settled]").replace("the oldest first", "oldest first")
)
RECORDS = [RECORD.format(n, n % 3, 100 + n) for n in range(1, 17)]


@dataclass(frozen=True)
class Case:
    """A text to be continued.

    Attributes:
        prompt: what stands before.
        answer: what is to be said, or "" for what the model says by itself. A small model does not do what it is asked to, so the
            answer of one that does is prescribed: every other token is ruled out where it is chosen.
        temperature: of what the model says by itself.
    """

    prompt: str
    answer: str = ""
    temperature: float = 0.9


CASES = {
    "editing code": Case(f"Give the list of paid orders in this module another name:\n\n{CODE}\nThe module:\n\n", EDITED),
    "quoting": Case(f"{TALE}\n\nRepeat this paragraph word for word.\n\n", TALE),
    "writing JSON": Case("[\n" + ",\n".join(RECORDS[:6]) + ",\n", ",\n".join(RECORDS[6:12])),
    "a story": Case(TALE + "\n\n"),
    "a list of facts": Case("Ten things that few people know about the sea:\n\n1."),
    "an explanation": Case("How does a refrigerator keep food cold? To begin with,"),
}


def measure(model: str, threads: int, rounds: int, tokens: int, peer_rounds: int = 3) -> dict[str, Any]:
    """The record. The first `peer_rounds` have llama.cpp in them. Raises ContenderFailed, BadCheckpoint."""
    times: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    ways: list[tuple[str, str, Any]] = [("oss-tools", "without", False), ("oss-tools", "with", True)]
    if peer_rounds:
        ways += [("llama.cpp", "without", None), ("llama.cpp", "2 guesses", 2), ("llama.cpp", "10 guesses", 10)]
    with ExitStack() as stack:
        programs = {
            name: stack.enter_context(Child(f"{name}, lookup", model=model, threads=threads, context=CONTEXT))
            for name in dict.fromkeys(name for name, *_ in ways)
        }
        for number in range(rounds + 1):  # the first is not timed
            for title, case in CASES.items():
                for name, way, guesses in ways if number % 2 else [*ways[1::-1], *ways[2:]]:
                    if name == "llama.cpp" and not 0 < number <= peer_rounds:
                        continue
                    found = programs[name].ask("run", count=tokens, seed=number, guesses=guesses, **asdict(case))
                    if number:
                        times.setdefault((title, name, way), []).append(found)
        facts = {name: program.ready["facts"] for name, program in programs.items()}
    return {
        "kind": "lookup",
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions("numpy", "numba", "llvmlite", "llama-cpp-python"),
        "load": os.getloadavg()[0],
        "model": Path(model).name,
        "sha256": model_sha256([Path(model)], remember=False, say=lambda line: None),
        "settings": {"threads": threads, "rounds": rounds, "peer_rounds": peer_rounds, "tokens": tokens},
        "programs": facts,
        "texts": {title: _figures(title, ways, times) for title in CASES},
    }


def _figures(title: str, ways: list[tuple[str, str, Any]], times: dict[tuple[str, str, str], list[dict[str, Any]]]) -> Any:
    """A text's tokens/s by program and way, and the gain over no guesses round by round."""
    found: dict[str, Any] = {**asdict(CASES[title]), "programs": {}}
    for name, way, _ in ways:
        runs, plain = times[title, name, way], times[title, name, "without"]
        rates = [(len(run["tokens"]) - 1) / run["seconds"] for run in runs]
        entry: dict[str, Any] = {"tokens_per_second": statistics.median(rates), "rounds": rates}
        if way != "without":
            gains = [one["seconds"] / other["seconds"] for one, other in zip(plain, runs, strict=True)]
            entry["gain"] = {"median": statistics.median(gains), "range": [min(gains), max(gains)]}
            same = [one["tokens"] == other["tokens"] for one, other in zip(plain, runs, strict=True)]
            entry["same_tokens"] = all(same)
        if way == "with":
            entry |= {word: sum(run[word] for run in runs) for word in ("guessed", "right")}
        found["programs"].setdefault(name, {})[way] = entry
    return found


def lines(record: dict[str, Any]) -> list[str]:
    """The record as a table."""
    found = []
    for title, text in record["texts"].items():
        for name, ways in text["programs"].items():
            for way, entry in ways.items():
                gain = ""
                if "gain" in entry:
                    low, high = entry["gain"]["range"]
                    gain = f"{entry['gain']['median']:6.2f} × ({low:.2f}–{high:.2f})"
                    gain += "" if entry["same_tokens"] else ", other tokens"
                if "guessed" in entry:
                    gain += f", {entry['right']} of {entry['guessed']} right"
                found.append(f"{title:20s} {name:10s} {way:10s} {entry['tokens_per_second']:8.1f} tokens/s {gain}".rstrip())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--threads", type=int, default=0, help="threads to use; 0 means every core")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--peer-rounds", type=int, default=3, help="how many of the rounds include llama.cpp; 0 for none")
    parser.add_argument("--output", type=Path, help="write the record to this file, as JSON")
    given = parser.parse_args()
    record = measure(given.model, given.threads or cores(), given.rounds, given.tokens, given.peer_rounds)
    print("\n".join(lines(record)))
    if given.output:
        given.output.write_text(json.dumps(record, indent=1) + "\n")
    if not all(text["programs"]["oss-tools"]["with"]["same_tokens"] for text in record["texts"].values()):
        sys.exit("the tokens are not the same with guesses as without")


if __name__ == "__main__":
    main()
