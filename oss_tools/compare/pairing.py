"""Whether a candidate is a quantization of the base: what else differs between them, and which tokens both have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oss_tools.checkpoints import Metadata
from oss_tools.compare.weights import require_same_tensors, rows_of_tokens
from oss_tools.engine.text import Text
from oss_tools.errors import BadCheckpoint, BadRequest
from oss_tools.models import Checkpoint, open_checkpoint
from oss_tools.report.comparison import Finding, ModelDifference
from oss_tools.verify import Difference, compare_said
from oss_tools.verify.vocabulary import another_vocabulary, table_of, with_tokenizer


@dataclass(frozen=True)
class Pairing:
    """What was found of a candidate beside its tensors.

    Attributes:
        differences: a is the base, b the candidate.
        remarks: what the figures are to be read with, a sentence each.
    """

    differences: tuple[Difference, ...] = ()
    remarks: tuple[str, ...] = ()

    def record(self) -> list[ModelDifference]:
        return [ModelDifference(d.part, d.what, d.a, d.b) for d in self.differences]

    def findings(self) -> list[Finding]:
        """One for each difference."""
        return [Finding(d.part, d.name, d.message) for d in self.record()]


def pair(base: Path, other: Path) -> Pairing:
    """Holds a candidate against the base. Headers and tokenizers only.

    Raises BadRequest if it is another model (architecture, vocabulary), BadCheckpoint if its tensors are others, or it has no
    tokenizer.
    """
    with open_checkpoint(base) as one, open_checkpoint(other) as two:
        ours, theirs = with_tokenizer(one.metadata()), with_tokenizer(two.metadata())
        for checkpoint, metadata in ((one, ours), (two, theirs)):
            _require_tokenizer(checkpoint, metadata)
        if sizes := another_vocabulary(ours, theirs):
            raise BadRequest(
                f"{other} has another tokenizer than {base} ({sizes[0]:,} and {sizes[1]:,} tokens);"
                " only quantizations of one model can be compared"
            )
        types = one.architecture.model_type, two.architecture.model_type
        if types[0] != types[1]:
            raise BadRequest(
                f"{other} is a {types[1]} model, {base} a {types[0]}; only quantizations of one can be compared"
            )
        require_same_tensors(one, two)
        said = compare_said(one, two)
        rows = rows_of_tokens(one), rows_of_tokens(two)
        if rows[0] == rows[1]:
            return Pairing(said.differences, said.remarks)
        common = min(rows)
        tokens = max(max(table_of(m).tokens, default=-1) + 1 for m in (ours, theirs))
        if tokens > common:
            raise BadRequest(f"{base} has {rows[0]:,} tokens and {other} {rows[1]:,}; of one of them some have no row")
        larger = base if rows[0] > rows[1] else other
        remark = (
            f"{larger} has {max(rows) - common} rows of padding more, which stand for no token;"
            f" the {common:,} rows of both are compared"
        )
        differences = tuple(d for d in said.differences if d.name != "config.vocab_size")
        return Pairing(differences, (*said.remarks, remark))


def _require_tokenizer(checkpoint: Checkpoint, metadata: Metadata) -> None:
    if metadata.tokenizer is None:
        raise BadCheckpoint(f"{checkpoint.path}: has no tokenizer, without which no text can be given to it")
    try:
        Text(metadata)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{checkpoint.path}: {error}") from None
