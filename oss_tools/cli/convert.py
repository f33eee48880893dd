"""Move a checkpoint into another container or number format.

Tensors are streamed, so memory stays flat whatever the model's size. An interrupted run goes on with --resume. The output
gets its final name only when it is complete and has been read back. A manifest beside it has the hash of every tensor
before and after. --dry-run prints the plan, and refuses at once whatever the run would refuse.

Without --format or --recipe every tensor keeps its format, and no value changes.
"""

from __future__ import annotations

from oss_tools.cli import _conversion as shared
from oss_tools.cli._conversion_options import Destination, Source, TargetOptions, WritingOptions
from oss_tools.cli._conversion_options import help_lists as help_lists
from oss_tools.cli._options import JsonFlag, QuietFlag, format_size
from oss_tools.cli._output import print_facts, print_json

EXAMPLES = """
oss-tools convert gpt-oss-20b/ gpt-oss-20b.gguf
oss-tools convert gpt-oss-20b.gguf gpt-oss-20b-original/ --container original
oss-tools convert fine-tune-bf16/ fine-tune-mxfp4/ --recipe mxfp4
oss-tools convert gpt-oss-20b/ smaller.gguf --recipe mxfp4-q8 --dry-run
"""


def run(
    source: Source,
    destination: Destination,
    *,
    target: TargetOptions,
    writing: WritingOptions,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:

    done = shared.carry_out(
        source,
        destination,
        target,
        writing,
        quiet=quiet,
        as_json=as_json,
    )
    if done is None:
        return
    plan, tensors = done.plan, done.manifest.tensors
    moved, decoded, rounded = (sum(t.action == action for t in tensors) for action in ("move", "decode", "quantize"))
    if as_json:
        counts = {"tensors_moved": moved, "tensors_decoded": decoded, "tensors_rounded": rounded}
        print_json(done.record | {"seconds": done.seconds} | counts)
        return
    if done.before:
        return
    print_facts(
        {
            "made": destination,
            "container": f"{plan.source.container} → {plan.container}",
            "bytes": f"{format_size(plan.source_bytes)} → {format_size(plan.target_bytes)}",
            "tensors": f"{len(tensors)}: {moved} moved as they are, {decoded} decoded without loss, {rounded} rounded",
            "read back": "every hash as written, by way of the system's cache" if writing.verify else "no",
            "time": f"{done.seconds:.1f} s, {format_size(plan.source_bytes / done.seconds)}/s of input",
        }
    )
