"""Time prompt processing and token generation.

Each model runs in a process of its own, so the peak memory that is measured is its own. --peer llama.cpp also runs the
model through llama.cpp, with the same weights and the same number of threads, in turns (A B A B), and prints the ratio of
the speeds. Models that are not GGUF files are first converted to GGUF for that. --peer ik_llama.cpp does the same with
llama.cpp's fork for CPUs. Both may be given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._engine import LoadOptions, TraceExperts
from oss_tools.cli._groups import options
from oss_tools.cli._options import JsonFlag, QuietFlag, format_size, model_path
from oss_tools.cli._output import print_json, print_table, remark, remark_reading, remark_unless
from oss_tools.escapes import in_a_line

if TYPE_CHECKING:
    from oss_tools.measure.bench_cases import Settings

EXAMPLES = """
oss-tools bench model.gguf
oss-tools bench gpt-oss-20b/ --prompt 512 --gen 128 --depth 0,4096 --batch 1,4
oss-tools bench model.gguf --peer llama.cpp --repeat 3 --json > record.json
oss-tools bench gpt-oss-20b/ --device cuda --depth 0,4096
"""
STREAMING = ("hits", "read/token", "waiting", "faults/token", "of disk")  # columns of models that stream
DEPTH = "of depth 0"  # a column where cases lie behind other tokens
BATCH = "× one"  # and one where several sequences generate together: how many times the tokens of one they write
HEADERS = ("model", "program", "test", "tokens/s", "range", "p50 ms", "p95 ms", "of memory", "of matvec")


@options
class TimingOptions:
    """What is timed."""

    prompt: Annotated[
        int, typer.Option("--prompt", "-p", min=0, help="How many tokens the prompt has; 0 times no prompt.")
    ] = 512
    generate: Annotated[
        int, typer.Option("--gen", "-n", min=0, help="How many tokens to generate; 0 times no generation.")
    ] = 128
    depth: Annotated[
        str, typer.Option("--depth", "-d", metavar="LIST", help="How many tokens come before; a list such as 0,4096.")
    ] = "0"
    batch: Annotated[
        str, typer.Option("--batch", "-b", metavar="LIST", help="How many sequences generate together; a list such as 1,8.")
    ] = "1"
    repeat: Annotated[
        int, typer.Option("--repeat", "-r", min=1, help="How many timed rounds to run, after one that is not timed.")
    ] = 5
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer", metavar="PROGRAM", help="Compare with this program, llama.cpp or ik_llama.cpp; may be repeated."
        ),
    ] = None
    speculate: Annotated[
        bool,
        typer.Option("--speculate/--no-speculate", help="Also time what guessing tokens gains where a text repeats itself."),
    ] = False

    def __post_init__(self) -> None:
        if not self.prompt and not self.generate:
            raise typer.BadParameter("with --prompt 0 and --gen 0 there is nothing to time")

    def settings(self, how: LoadOptions, trace_experts: Path | None, say: Callable[[str], None]) -> Settings:
        """Raises BadParameter for lists that are none and peers that there are not, and what `backend_for` raises."""
        from oss_tools.engine.backend import backend_for, check_cache
        from oss_tools.measure.bench_cases import Settings
        from oss_tools.measure.peer import PEERS

        peers = tuple(dict.fromkeys(self.peer or ()))
        if unknown := set(peers).difference(PEERS):
            raise typer.BadParameter(f"{unknown.pop()!r} is not one of {', '.join(PEERS)}", param_hint="--peer")
        depths, batches = _numbers(self.depth, "--depth", 0), _numbers(self.batch, "--batch", 1)
        backend = backend_for(how.device, how.backend, say)
        check_cache(how.cache, backend)
        return Settings(
            self.prompt, self.generate, depths, batches, how.threads, self.repeat, peers, backend, how.activations,
            how.load, how.memory, str(trace_experts) if trace_experts else None, self.speculate, how.cache,
        )  # fmt: skip


def run(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL",
            parser=model_path,
            help="Checkpoints: a path, the owner/name of a download, or tiny (the embedded model).",
        ),
    ],
    *,
    timing: TimingOptions,
    how: LoadOptions,
    trace_experts: TraceExperts = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    from oss_tools.measure.bench import measure
    from oss_tools.models import open_checkpoint

    say = remark_unless(quiet)
    settings = timing.settings(how, trace_experts, say)
    if not quiet:
        for path in models:
            with open_checkpoint(path) as checkpoint:
                remark_reading(checkpoint)
    with tempfile.TemporaryDirectory(prefix="oss-tools-bench-") as folder:
        record = measure(models, settings, lambda path: as_gguf(path, Path(folder), quiet), say)
    if as_json:
        print_json(record)
    else:
        print_record(record, markdown)


def _numbers(text: str, option: str, least: int) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0,4096", param_hint=option) from None
    if min(numbers) < least:
        raise typer.BadParameter(f"{min(numbers)} is less than {least}", param_hint=option)
    return numbers


def as_gguf(path: Path, folder: Path, quiet: bool) -> Path:
    """The path, or a GGUF file made of it, format by format as it is."""
    from oss_tools.models import open_checkpoint

    with open_checkpoint(path) as checkpoint:
        if checkpoint.container == "gguf":
            return path
        target = folder / f"{path.name}.gguf"
        if not quiet:
            remark(f"{path} is converted to GGUF for llama.cpp, in a folder that is removed afterwards")
        convert_to_gguf(checkpoint, target)
    return target


def convert_to_gguf(checkpoint: Any, target: Path) -> None:
    """Writes a checkpoint as GGUF, every tensor in its own format."""
    from oss_tools.convert.output import said_of
    from oss_tools.convert.pipeline import Options
    from oss_tools.convert.pipeline import run as carry_out
    from oss_tools.convert.plan import make_plan
    from oss_tools.convert.recipe import KEEP_ALL

    with said_of(checkpoint.path, target):
        carry_out(make_plan(checkpoint, "gguf", KEEP_ALL), target, Options(verify=False))


def print_record(record: dict[str, Any], markdown: bool) -> None:
    """The figures as a table, and what else there is to say of each model below it."""
    rows, notes, peers = [], [], record["settings"]["peers"]
    results = [r for entry in record["models"] for c in entry["contenders"].values() for r in c["results"]]
    streams = any("streaming" in result for result in results)
    deep = any("share_of_depth_0" in result for result in results)
    wide = any("gain_over_one" in result for result in results)
    shown = [name for name, is_shown in ((DEPTH, deep), (BATCH, wide)) if is_shown]
    headers = (*HEADERS, *shown, *(STREAMING if streams else ()), *(f"× {peer}" for peer in peers))
    for entry in record["models"]:
        for program, contender in entry["contenders"].items():
            rows += [_row(entry["model"], program, result, peers, shown, streams) for result in contender["results"]]
            notes.append(_note(entry, program, contender))
    if markdown:
        from tabulate import tabulate

        from oss_tools.report.markdown import escaped

        cells = [[escaped(cell) for cell in row] for row in rows]
        print(tabulate(cells, headers=[*map(escaped, headers)], tablefmt="github", disable_numparse=True))
    else:
        print_table(rows, headers, right=range(3, len(headers)))
    print()
    notes.append(f"machine: {record['machine']['cpu']}, {record['machine']['cores']} cores")
    print("\n".join(map(escaped if markdown else in_a_line, notes)))


def _row(
    model: str, program: str, result: dict[str, Any], peers: Sequence[str], shown: Sequence[str], streams: bool
) -> tuple[str, ...]:
    low, high = result["tokens_per_second_range"]
    ratios, shares = result.get("ratios", {}), result.get("shares", {})
    return (
        model,
        program,
        result["case"],
        f"{result['tokens_per_second']:.1f}",
        f"{low:.1f}–{high:.1f}",
        f"{1000 * result.get('step_seconds_p50', result.get('time_to_first_token', 0)):.1f}",
        f"{1000 * result['step_seconds_p95']:.1f}" if "step_seconds_p95" in result else "",
        *(f"{shares[name]['median']:.0%}" if name in shares else "" for name in ("read", "multiply")),
        *([_percent(result.get("share_of_depth_0"))] if DEPTH in shown else ()),
        *([f"{gain['median']:.2f}" if (gain := result.get("gain_over_one")) else ""] if BATCH in shown else ()),
        *(_streaming(result) if streams else ()),
        *(_ratio(ratios[peer]) if peer in ratios else "" for peer in peers),
    )


def _streaming(result: dict[str, Any]) -> tuple[str, ...]:
    """Experts found in memory, bytes read for a token, share of the time that was spent waiting for them, pages waited for, and
    what share of the disk's speed that was."""
    faults = f"{result['major_faults_per_token']:.1f}"
    if not (said := result.get("streaming")):
        return "", "", "", faults, ""
    hits, waiting, share = said["hit_rate"], said["wait_share"], said["share_of_bound"]["median"]
    return f"{hits:.0%}", format_size(said["bytes_read_per_token"]), f"{waiting:.0%}", faults, f"{share:.0%}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _ratio(ratio: dict[str, Any]) -> str:
    low, high = ratio["range"]
    return f"{ratio['median']:.2f} ({low:.2f}–{high:.2f})"


def _note(entry: dict[str, Any], program: str, contender: dict[str, Any]) -> str:
    facts = contender["facts"]
    parts = [f"loaded in {contender['load_seconds']:.1f} s", f"peak memory {format_size(contender['peak_bytes'])}"]
    if facts.get("bytes_per_token"):
        parts.append(f"{format_size(facts['bytes_per_token'])} of weights per token")
    ceilings = next((r["ceilings"] for r in contender["results"] if "ceilings" in r), None)
    if ceilings:
        read, multiply = (format_size(ceilings[name]) for name in ("read", "multiply"))
        parts.append(f"memory reads {read}/s, matrix × vector {multiply}/s")
    if memory := contender.get("device_memory"):
        parts.append(f"{facts['device']}, driver {facts['driver']}")
        parts.append(f"GPU memory {format_size(memory['allocated'])} allocated, {format_size(memory['used'])} used")
    if streaming := facts.get("streaming"):
        parts.append(
            f"{format_size(streaming['resident_bytes'])} of weights stay, {streaming['slots']:,} experts of "
            f"{format_size(streaming['expert_bytes'])} kept, {format_size(streaming['streamed_bytes'])} of experts on the disk"
        )
    if lookup := contender.get("lookup"):
        rates = lookup["tokens_per_second"]
        parts.append(
            f"where a text repeats itself {rates['with']:.1f} tokens/s with guesses, {rates['without']:.1f} without: "
            f"{_ratio(lookup['gain'])} ×, {lookup['right']} of {lookup['guessed']} guesses right"
        )
    if program == "oss-tools":
        parts.append(facts["kernels"] + (f", {facts['threads']} threads" if facts["threads"] else ""))
    return f"{entry['model']}, {program}: {', '.join(parts)}"
