"""What `convert`, `requantize` and `merge` share: the run with its progress, and the plan's table."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oss_tools.cli._conversion_options import FILES, TargetOptions, WritingOptions
from oss_tools.cli._gptq import print_cost
from oss_tools.cli._options import format_size
from oss_tools.cli._output import print_facts, print_json, print_table, progress, remark, remark_reading

if TYPE_CHECKING:
    from oss_tools.convert.manifest import Manifest
    from oss_tools.convert.options import Rounding
    from oss_tools.convert.pipeline import Options
    from oss_tools.convert.plan import Plan
    from oss_tools.convert.recipe import Recipe
    from oss_tools.models import Checkpoint


SHOWN = 8  # tensors that a remark names


@dataclass(frozen=True)
class Outcome:
    """A finished conversion: its plan, the plan as JSON, the manifest beside the output, the time it took, and whether it was
    finished before."""

    plan: Plan
    record: dict[str, Any]
    manifest: Manifest
    seconds: float
    before: bool


def carry_out(
    source: Path,
    destination: Path,
    target: TargetOptions,
    writing: WritingOptions,
    *,
    quiet: bool,
    as_json: bool,
    planned: Callable[[Checkpoint, str, Recipe], Plan] | None = None,
    rounding: Callable[[Plan], Rounding] | None = None,
) -> Outcome | None:
    """Plans, prints the plan and stops (dry run), or writes, with a progress bar for writing and one for reading back.

    An empty container means: that of the destination's extension, else the source's own folder layout, else hf. `planned` makes
    the plan of the open source, the container and the recipe; `make_plan` unless given. `rounding` makes what rounds its tensors
    beforehand.
    """
    from oss_tools.convert import pipeline
    from oss_tools.convert.importance import load_importance
    from oss_tools.convert.plan import make_plan
    from oss_tools.models import open_checkpoint

    recipe, options, importance = target.chosen_recipe(), writing.options(), target.importance
    with open_checkpoint(source) as checkpoint:
        container = target.container or _usual_container(checkpoint, destination)
        plan = (planned or make_plan)(checkpoint, container, recipe)
        if importance:
            options = replace(options, importance=load_importance(importance, checkpoint))
        if rounding:
            options = replace(options, rounding=rounding(plan))
        pipeline.check(plan, destination, options)
        record = plan_record(plan, destination)
        if importance:
            record["importance_of_their_layer"] = unreached_experts(plan, options)
        if writing.dry_run:
            remark_plan(plan, importance, options)
            if options.rounding:
                record["rounding"] = options.rounding.takes(plan)
            print_json(record) if as_json else print_plan(plan, destination)
            if options.rounding and not as_json:
                print_cost(record["rounding"])
            return None
        totals = {"write": plan.source_bytes}
        if options.rounding:
            totals = {"round": sum(step.source.nbytes for step in plan.steps if step.rounds)} | totals
        if options.verify:
            totals["verify"] = sum(step.target.nbytes for step in plan.steps)
        start = time.perf_counter()
        with progress(totals, quiet=quiet) as advance:

            def report(stage: str, tensor: str, nbytes: int) -> None:
                advance(stage, nbytes)

            manifest = pipeline.finished(plan, destination, options, report)
            before = manifest is not None
            if manifest is None:
                remark_plan(plan, importance, options)
                remark_fallbacks(plan)
                manifest = pipeline.write(plan, destination, options, report)
        if before:
            remark(f"{destination} is finished already: made of this source by this plan, so there is nothing left to do")
        return Outcome(plan, record | {"finished_before": before}, manifest, time.perf_counter() - start, before)


def _usual_container(source: Checkpoint, destination: Path) -> str:
    return FILES.get(destination.suffix) or (source.container if source.container not in FILES.values() else "hf")


def remark_plan(plan: Plan, importance: Path | None, options: Options) -> None:
    """Says on stderr what a user should know: how the source was read, what the target cannot say, what it means to round it."""
    from oss_tools.checkpoints.gguf_tokenizer import remarks_on_writing

    remark_reading(plan.source, plan.metadata)
    of_tokenizer = remarks_on_writing(plan.metadata) if plan.container == "gguf" else ()
    for text in (*plan.remarks, *of_tokenizer):
        remark(text)
    if plan.rounded_before:
        remark(f"{rounded_before(plan)}: the errors are against it, not against what it was made of")
    rounded = [step.name for step in plan.steps if step.rounds]
    missing = [name for name in rounded if name not in (options.importance or {})]
    if importance and missing:
        remark(
            f"{importance}: holds no weights for {len(missing)} of {len(rounded)} tensors that are rounded ({missing[0]}, …)"
        )
    if importance and (unreached := unreached_experts(plan, options)):
        count = sum(map(len, unreached.values()))
        named = "; ".join(f"{name}: {', '.join(map(str, matrices))}" for name, matrices in list(unreached.items())[:SHOWN])
        more = f"; and in {len(unreached) - SHOWN} more tensors" if len(unreached) > SHOWN else ""
        remark(
            f"{importance}: its text never reached {count} experts, which have the weights of their layer ({named}{more})"
        )


def unreached_experts(plan: Plan, options: Options) -> dict[str, list[int]]:
    """The experts of each rounded tensor whose importance is not their own but their layer's."""
    found: dict[str, list[int]] = getattr(options.importance, "unreached", {})
    return {step.name: found[step.name] for step in plan.steps if step.rounds and step.name in found}


def remark_fallbacks(plan: Plan) -> None:
    """Says on stderr which tensors do not get what the recipe asks for, and why."""
    for row in plan.by_role():
        if row.note:
            remark(f"{row.tensors} × {row.role} in {row.target_format}: {row.note}")


def rounded_before(plan: Plan) -> str:
    """Says that the source was rounded before."""
    return f"{plan.source.path} was rounded already ({', '.join(plan.rounded_before)})"


def plan_record(plan: Plan, destination: Path) -> dict[str, Any]:
    """The plan as JSON."""
    rows = [vars(row) for row in plan.by_role()]
    return {
        "source": {"path": str(plan.source.path), "container": plan.source.container, "bytes": plan.source_bytes},
        "target": {"path": str(destination), "container": plan.container, "bytes": plan.target_bytes},
        "recipe": plan.recipe.name,
        "lossless": plan.lossless,
        "source_rounded_already": plan.rounded_before,
        "free_disk_bytes": free_disk(destination),
        "roles": rows,
    }


def print_plan(plan: Plan, destination: Path) -> None:
    """The plan as a table: per role the formats and bytes before and after."""
    rows: list[tuple[str, ...]] = [
        (
            row.role,
            f"{row.tensors:,}",
            row.source_format,
            row.target_format,
            row.action,
            f"{row.source_bytes:,}",
            f"{row.target_bytes:,}",
            row.note,
        )
        for row in plan.by_role()
    ]
    total = (sum(row.source_bytes for row in plan.by_role()), sum(row.target_bytes for row in plan.by_role()))
    rows.append(("total", f"{len(plan.steps):,}", "", "", "", f"{total[0]:,}", f"{total[1]:,}", ""))
    headers: tuple[str, ...] = ("role", "tensors", "from", "to", "action", "bytes before", "bytes after", "note")
    if not any(row[-1] for row in rows):
        rows, headers = [row[:-1] for row in rows], headers[:-1]
    print_facts(
        {
            "source": f"{plan.source.path} ({plan.source.container})",
            "target": f"{destination} ({plan.container})",
            "recipe": f"{plan.recipe.name}: {plan.recipe.description}" if plan.recipe.description else plan.recipe.name,
        }
    )
    print_table(rows, headers, title="Plan", right=(1, 5, 6))
    print(f"\n{format_size(plan.target_bytes)} to write, {format_size(free_disk(destination))} free")


def free_disk(destination: Path) -> int:
    """Free bytes on the disk that the destination will lie on."""
    return shutil.disk_usage(next(p for p in destination.absolute().parents if p.exists())).free
