"""How near a candidate is to the base, as its record has it: weights, predictions, and predictions by depth of context."""

from __future__ import annotations

from dataclasses import dataclass

from oss_tools.statistics.figures import Estimate


@dataclass(frozen=True)
class Cell:
    """The weight error of the tensors of one role in one layer (None: outside the layers).

    Attributes:
        format: the candidate's; several are joined with "+".
        relative_error: ‖candidate − base‖ / ‖base‖, over all values of these tensors.
        values: how many.
        worst_slice: the largest relative error of one expert's part; of tensors without experts, of the whole.
        worst_tensor: its tensor's name, with "[expert]" behind where it is an expert's.
        suspicious: whether it lies far beyond what this format costs elsewhere in the model; see `Finding`.
    """

    layer: int | None
    role: str
    format: str
    relative_error: float
    values: int
    worst_slice: float
    worst_tensor: str
    suspicious: bool = False


@dataclass(frozen=True)
class WeightError:
    """How far a candidate's weights are from the base's: over all values that both have, and by layer and role."""

    relative_error: float
    cells: list[Cell]


@dataclass(frozen=True)
class Divergence:
    """KL(base ‖ candidate) of the next token's distribution, in nats, over the scored positions."""

    mean: float
    stderr: float | None
    low: float | None
    high: float | None
    median: float
    p90: float
    p95: float
    p99: float
    p99_9: float
    max: float


@dataclass(frozen=True)
class DeltaP:
    """The change of the probability of the token that came, candidate less base, in −1 … 1.

    Attributes:
        percentiles: by name ("p1", "p5", … "p99.9").
    """

    mean: float
    stderr: float | None
    rms: float
    rms_stderr: float | None
    min: float
    max: float
    percentiles: dict[str, float]


@dataclass(frozen=True)
class Fidelity:
    """Predictions over a text, token by token. Of the base: perplexity only.

    Attributes:
        text: its name; the first of a candidate's list is running text.
        sha256: of its tokens.
        tokens, positions, chunks: read, scored, and independent pieces.
        exact: whether the divergence is over the whole vocabulary at every scored position.
        log_perplexity_ratio: ln(candidate's perplexity / base's), paired by chunk.
        same_top: share of positions at which both hold the same token likeliest.
        kld_bound: where the divergence is from a pack, which keeps a part of what the base said: how far its mean may be from the
            exact one; None where it is exact.
    """

    text: str
    sha256: str
    tokens: int
    positions: int
    chunks: int
    perplexity: Estimate
    exact: bool = True
    log_perplexity_ratio: Estimate | None = None
    kld: Divergence | None = None
    same_top: Estimate | None = None
    delta_p: DeltaP | None = None
    kld_bound: float | None = None


@dataclass(frozen=True)
class DriftPoint:
    """The divergence of one run from another where so many tokens stand before what is predicted.

    Attributes:
        depth: tokens of context; positions: predictions; windows: independent places of the text.
        kld: mean KL divergence, nats; same_top: share of positions at which both hold the same token likeliest.
    """

    depth: int
    positions: int
    windows: int
    kld: Estimate
    same_top: Estimate


@dataclass(frozen=True)
class Drift:
    """The divergence by depth.

    Attributes:
        kind: what differs: "depth" (the checkpoint), "cache" (the format of the KV cache), "backends" (the program).
        reference, subject: the base and the candidate, or how the candidate was run twice.
    """

    kind: str
    reference: str
    subject: str
    points: list[DriftPoint]
