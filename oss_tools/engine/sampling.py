"""How the next token is chosen from logits."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from oss_tools.errors import BadRecipe

FEW = 2048  # tokens that are sorted first when the likeliest are looked for


@dataclass(frozen=True)
class Sampling:
    """The rule for choosing tokens. The steps are applied in the order of the attributes.

    Attributes:
        repetition_penalty: logits of tokens already in the text are divided by it if positive, else multiplied
            (https://arxiv.org/abs/1909.05858); 1 is off.
        temperature: divides the logits; 0 chooses the likeliest token.
        top_k: only so many of the likeliest; 0 is off.
        top_p: only the likeliest that together reach this probability (https://arxiv.org/abs/1904.09751); 1 is off.
        min_p: only tokens at least this probable relative to the likeliest (https://arxiv.org/abs/2407.01082); 0 is off.
        seed: the same seed gives the same tokens; None draws one.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("repetition_penalty", self.repetition_penalty, 1e-3, 1e3),
            ("temperature", self.temperature, 0, 1e3),
            ("top_k", self.top_k, 0, 1 << 31),
            ("top_p", self.top_p, 0, 1),
            ("min_p", self.min_p, 0, 1),
        ):
            if not low <= value <= high:
                raise BadRecipe(f"sampling: {name} is {value}, outside {low:g}..{high:g}")


@dataclass
class Sampler:
    """A rule with the state that one sequence needs: its random numbers and the tokens seen."""

    sampling: Sampling
    seen: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.sampling.seed)

    def __call__(self, logits: np.ndarray) -> int:
        """The next token from logits float32 [vocabulary], which are not changed."""
        s = self.sampling
        if s.repetition_penalty != 1.0 and self.seen:
            logits = penalized(logits, self.seen, s.repetition_penalty)
        if s.temperature == 0:
            token = int(logits.argmax())
        else:
            candidates, shares = distribution(logits, s)
            token = int(candidates[min(int(np.searchsorted(shares.cumsum(), self._random.random())), len(shares) - 1)])
            if np.isneginf(logits[token]):  # drawn at the very border of the shares; it may not be chosen at all
                token = int(logits.argmax())
        self.seen.add(token)
        return token


def penalized(logits: np.ndarray, seen: set[int], penalty: float) -> np.ndarray:
    """A copy of logits in which the tokens seen are less likely."""
    logits = logits.copy()
    index = np.fromiter(seen, np.int64)
    logits[index] = np.where(logits[index] > 0, logits[index] / penalty, logits[index] * penalty)
    return logits


def distribution(logits: np.ndarray, s: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be drawn and their probabilities (float64, sum 1), likeliest first where top_k or top_p asks for
    an order, else by number. Needs a temperature > 0."""
    weights = np.exp((logits - logits.max()) / np.float32(s.temperature)).astype(np.float64)
    tokens = np.arange(len(logits))
    if s.top_k:
        tokens = likeliest(weights, s.top_k)
    if s.top_p < 1:
        tokens = _nucleus(weights, tokens, s)
    if s.min_p > 0:
        tokens = tokens[weights[tokens] >= s.min_p * weights.max()]
    shares = weights[tokens]
    return tokens, shares / shares.sum()


def likeliest(weights: np.ndarray, count: int) -> np.ndarray:
    """The `count` tokens of largest weight, largest first, the lower number first among equals."""
    count = min(count, len(weights))
    border = np.partition(weights, -count)[-count]
    tokens = np.flatnonzero(weights >= border)  # more than `count` if several lie on the border
    return tokens[np.argsort(-weights[tokens], kind="stable")][:count]


def _nucleus(weights: np.ndarray, tokens: np.ndarray, s: Sampling) -> np.ndarray:
    """Of the tokens (ordered if top_k has cut them) the likeliest that together reach top_p of their weight."""
    wanted = s.top_p * weights[tokens].sum()
    count = len(tokens) if s.top_k else min(FEW, len(tokens))
    while True:  # nearly always few tokens hold nearly all weight: no need to sort the whole vocabulary
        ordered = tokens if s.top_k else likeliest(weights, count)
        reached = weights[ordered].cumsum()
        if reached[-1] >= wanted or count == len(tokens):
            return ordered[: int(np.searchsorted(reached, wanted)) + 1]
        count = len(tokens)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of the probabilities, float32 [..., vocabulary]."""
    rows = logits.reshape(-1, logits.shape[-1])
    return np.array([row - row.max() - _log_total(row) for row in rows], np.float32).reshape(logits.shape)


def log_probability(logits: np.ndarray, token: int) -> np.float32:
    """The natural logarithm of one token's probability, from logits float32 [vocabulary]: `log_softmax` at that token, bit for
    bit."""
    return np.float32(logits[token] - logits.max() - _log_total(logits))


def _log_total(row: np.ndarray) -> np.float32:
    """ln Σ e^(logit − largest). Row by row, so that the order of the sum does not depend on how many rows there are."""
    return np.float32(np.log(np.exp(row - row.max()).sum(dtype=np.float64)))
