"""An estimate as `fit` prints it: the table of formats, the machine, the choice, and what would stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oss_tools.cli._options import format_size
from oss_tools.cli._output import print_facts, print_table

if TYPE_CHECKING:
    from oss_tools.fit.estimate import Choice, Estimate, Row
    from oss_tools.fit.machine import Machine
    from oss_tools.fit.streaming import Streaming


def print_estimate(estimate: Estimate, machine: Machine, choice: Choice) -> None:
    """The rows as a table, the machine and the choice in words."""

    def there(name: str, size: float | None, unit: str = "") -> str | None:
        found = " (found)" if name in machine.detected else " (given)"
        return None if size is None else format_size(size) + unit + found

    print_facts(
        {
            "model": f"{estimate.model}, {estimate.rows[0].parameters:,} parameters",
            "use": f"context of {estimate.use.context} tokens, {estimate.use.batch} at a time"
            + ("" if estimate.use.cache == "bf16" else f", KV cache in {estimate.use.cache}"),
            "memory": there("ram", machine.ram),
            "graphics card": there("vram", machine.vram),
            "disk": there("disk", machine.disk),
            "memory speed": there("bandwidth", machine.bandwidth, "/s"),
            "disk speed": there("disk_speed", machine.disk_speed, "/s"),
        }
    )
    print_rows(estimate, machine, choice)
    print()
    print_facts({"choice": f"{choice.row.name}: {choice.reason}" if choice.row else choice.reason})
    for line in choice.limits:
        print_facts({"limit ": line})


PARTS = ("weights", "KV cache", "prompts", "work", "program")  # of the memory


def print_rows(estimate: Estimate, machine: Machine, choice: Choice) -> None:
    """A row for each choice of formats. In a narrow terminal the parts of the memory are told of the choice alone."""
    from oss_tools.tables import grid, screen_width, widest

    card = ("on card",) if machine.vram else ()
    ends = ("memory", "fits", *card, "tokens/s")
    headers = ("format", "files", "bits", *PARTS, *ends)
    rows = [_shown(row, machine) for row in estimate.rows]
    print()
    if widest(grid(rows, headers)) <= screen_width():
        print_table(rows, headers, right=(*range(1, 9), len(headers) - 1))
        return
    after = 3 + len(PARTS)
    first = 3 if widest(grid([[*row[:3], *row[after:]] for row in rows], (*headers[:3], *ends))) <= screen_width() else 2
    main = [[*row[:first], *row[after:]] for row in rows]
    print_table(main, (*headers[:first], *ends), right=(*range(1, first + 1), len(ends) + first - 1))
    chosen = estimate.rows.index(choice.row or estimate.rows[0])
    parts = ", ".join(f"{part} {size}" for part, size in zip(PARTS, rows[chosen][3:after], strict=True))
    print()
    print_facts({"memory": f"of {rows[chosen][0]}: {parts}; a terminal of 120 columns shows it for every row"})


def _shown(row: Row, machine: Machine) -> list[str]:
    """The cells of a row, each size in the unit that suits it."""
    from oss_tools.report.metrics import format_number

    m = row.memory
    parts = [format_size(size) for size in (m.weights, m.cache, m.prefixes, m.activations, m.program, m.total)]
    fits = machine.memory_verdict(m.total) + ("" if machine.disk_holds(row.file_bytes) else ", no disk")
    card = [machine.device_verdict(m.on_device)] if machine.vram else []
    speed = "–".join(format_number(rate) for rate in row.speed(machine.bandwidth)) if machine.bandwidth else ""
    name = f"{row.name} *" if row.published else row.name
    return [name, format_size(row.file_bytes), f"{row.bits_per_weight:.2f}", *parts, fits, *card, speed]


def streaming_record(row: Row | None, streaming: Streaming | None, machine: Machine) -> dict[str, Any] | None:
    """What --json says of streaming; None where nothing streams."""
    from oss_tools.fit.streaming import to_record

    if not row or not streaming:
        return None
    speed = row.speed(machine.bandwidth) if machine.bandwidth else None
    return {"format": row.name, **to_record(streaming, machine.disk_speed, speed)}


def print_streaming(row: Row, streaming: Streaming, machine: Machine) -> None:
    """What would stay, what would stream and how fast, in words."""
    from oss_tools.fit.streaming import sentences

    print()
    print_facts({"stream": f"{row.name} with --memory {format_size(streaming.memory).replace(' ', '')}"})
    if not streaming.works:
        print(f"        no: at least {format_size(streaming.least)} are needed")
        return
    for line in sentences(streaming, machine.disk_speed, row.speed(machine.bandwidth) if machine.bandwidth else None):
        print_facts({"      ": line})
    if machine.disk_speed is None:
        print("        the disk's speed is not known: --disk 2GB/s says it")
