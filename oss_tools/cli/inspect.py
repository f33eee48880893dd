"""Say what a checkpoint is: parameters, formats, sizes, tokenizer.

Only headers are read, so the answer comes at once, however large the files are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._options import JsonFlag, format_size, model_path
from oss_tools.cli._output import print_facts, print_json, print_table
from oss_tools.escapes import one_line

if TYPE_CHECKING:
    from oss_tools.models.summary import Share, Summary

EXAMPLES = """
oss-tools inspect gpt-oss-20b/
oss-tools inspect model.gguf --tensors
oss-tools inspect gpt-oss-20b/ --json | jq .bits_per_weight
"""


def run(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            parser=model_path,
            help="A checkpoint: its path, the owner/name of a download, or tiny (the embedded model).",
        ),
    ],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: JsonFlag = False,
) -> None:
    from oss_tools.models import open_checkpoint
    from oss_tools.models.summary import summarize

    with open_checkpoint(path) as checkpoint:
        found = summarize(checkpoint)
    if as_json:
        print_json(to_record(found, tensors))
    else:
        print_summary(found, tensors)


def to_record(found: Summary, tensors: bool) -> dict[str, Any]:
    """The summary as JSON: bytes and counts as plain numbers."""
    record: dict[str, Any] = {
        "path": str(found.path),
        "container": found.container,
        "model_type": found.model_type,
        "parameters": found.parameters,
        "active_parameters": found.active_parameters,
        "bytes": found.nbytes,
        "bits_per_weight": found.bits_per_weight,
        "formats": {s.name: _share(s) for s in found.by_format},
        "roles": {s.name: _share(s) for s in found.by_role},
        "config": found.config,
        "tokenizer": None,
        "chat_template": bool(found.chat_templates),
        "chat_templates": list(found.chat_templates),
        "files": [{"name": name, "bytes": nbytes} for name, nbytes in found.files],
        "remarks": list(found.remarks),
    }
    if found.tokenizer:
        t = found.tokenizer
        record["tokenizer"] = {"kind": t.kind, "vocabulary": t.vocabulary, "special": t.special}
    if tensors:
        record["tensors"] = [
            {"name": t.name, "role": t.role, "shape": list(t.shape), "format": t.format, "bytes": t.nbytes}
            for t in found.tensors
        ]
    return record


def _templates(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) > 1 else "yes" if names == ("default",) else f"only {names[0]}" if names else "no"


def _share(share: Share) -> dict[str, float]:
    return {
        "tensors": share.tensors,
        "parameters": share.parameters,
        "bytes": share.nbytes,
        "bits_per_weight": share.bits_per_weight,
    }


def print_summary(found: Summary, tensors: bool) -> None:
    """The summary as tables."""
    tokenizer = found.tokenizer
    print_facts(
        {
            "path": found.path,
            "container": f"{found.container}, {len(found.files)} file{'s' if len(found.files) != 1 else ''}",
            "architecture": found.model_type,
            "parameters": f"{found.parameters:,} ({found.active_parameters:,} active per token)",
            "tensor bytes": f"{found.nbytes:,} ({format_size(found.nbytes)}, {found.bits_per_weight:.2f} bits per weight)",
            "tokenizer": tokenizer
            and f"{tokenizer.kind}, {tokenizer.vocabulary:,} tokens, {tokenizer.special} of them special",
            "chat template": _templates(found.chat_templates),
        }
    )
    for title, shares in (("format", found.by_format), ("role", found.by_role)):
        rows = [
            (
                s.name,
                f"{s.tensors:,}",
                f"{s.parameters:,}",
                f"{s.nbytes:,}",
                f"{s.nbytes / found.nbytes:.1%}",
                f"{s.bits_per_weight:.2f}",
            )
            for s in shares
        ]
        headers = (title, "tensors", "parameters", "bytes", "share", "bits/weight")
        print_table(rows, headers, title=f"By {title}", right=(1, 2, 3, 4, 5))
    print_table(list(found.config.items()), ("field", "value"), title="Configuration", right=(1,))
    print_table([(n, f"{b:,}") for n, b in found.files], ("file", "bytes"), title="Files", right=(1,))
    if found.remarks:
        print("\nRemarks", *(f"- {one_line(text)}" for text in found.remarks), sep="\n")
    if tensors:
        listed = [(t.name, t.role, "×".join(map(str, t.shape)), t.format, f"{t.nbytes:,}") for t in found.tensors]
        print_table(listed, ("tensor", "role", "shape", "format", "bytes"), title="Tensors", right=(2, 4))
