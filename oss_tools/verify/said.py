"""What two checkpoints say beside their tensors, held against each other: configuration, tokenizer, chat templates.

Only what decides about tokens and logits counts. Names, licences, number formats and the like are never compared.
"""

from __future__ import annotations

from collections.abc import Collection

from oss_tools.models import Checkpoint
from oss_tools.verify.configuration import compare_configurations
from oss_tools.verify.differences import PARTS, Difference, Said
from oss_tools.verify.templates import compare_templates
from oss_tools.verify.tokenizer import compare_tokenizers


def compare_said(a: Checkpoint, b: Checkpoint, parts: Collection[str] = PARTS) -> Said:
    """The differences of two checkpoints in these parts. Raises BadCheckpoint for a tokenizer that cannot be read,
    MissingPackage where the vocabulary of gpt-oss is wanted and not installed."""
    found: list[Difference] = []
    remarks: list[str] = []
    if "config" in parts:
        found += compare_configurations(a, b)
    if "tokenizer" in parts or "template" in parts:
        one, two = a.metadata(), b.metadata()
        if "tokenizer" in parts:
            said = compare_tokenizers(a, one, b, two)
            found += said.differences
            remarks += said.remarks
        if "template" in parts:
            said = compare_templates(a, one, b, two)
            found += said.differences
            remarks += said.remarks
    return Said(tuple(found), tuple(remarks))
