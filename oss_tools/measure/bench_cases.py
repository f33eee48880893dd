"""What a benchmark times, and how: prompts and generation, behind other tokens, in several sequences."""

from __future__ import annotations

from dataclasses import dataclass

LOOKUP = 512  # tokens of a text that repeats itself


@dataclass(frozen=True)
class Case:
    """One thing to time: `prompt` tokens at once, or `generate` steps of `batch` sequences, behind `depth` tokens."""

    kind: str
    tokens: int
    depth: int = 0
    batch: int = 1

    @property
    def label(self) -> str:
        name = f"pp{self.tokens}" if self.kind == "prompt" else f"tg{self.tokens}"
        return name + (f" @ {self.depth}" if self.depth else "") + (f" × {self.batch}" if self.batch > 1 else "")


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        prompt, generate: tokens; 0 leaves that out.
        depths, batches: each combined with each (prompts with depths only).
        threads: 0 for every core.
        repeat: timed rounds; the first run of each case in a process is not timed.
        peers: other programs, of `PEERS`.
        backend, activations, load, memory, trace_experts, cache: as for the engine; cuda runs on the GPU, timed by its events.
        speculate: whether to time what guessing tokens from the text so far gains, too.
    """

    prompt: int = 512
    generate: int = 128
    depths: tuple[int, ...] = (0,)
    batches: tuple[int, ...] = (1,)
    threads: int = 0
    repeat: int = 5
    peers: tuple[str, ...] = ()
    backend: str = "numba"
    activations: str = "int8"
    load: str = "mapped"
    memory: int | None = None
    trace_experts: str | None = None
    speculate: bool = False
    cache: str | None = None

    def cases(self) -> list[Case]:
        prompts = [Case("prompt", self.prompt, d) for d in self.depths if self.prompt]
        return prompts + [Case("generate", self.generate, d, b) for d in self.depths for b in self.batches if self.generate]

    @property
    def context(self) -> int:
        repeated = LOOKUP + self.generate if self.speculate else 0
        return max(max(self.depths) + max(self.prompt, self.generate), repeated)
