"""What can be evaluated: a loaded engine, or a model behind an endpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from oss_tools.endpoints.endpoint import Endpoint
from oss_tools.endpoints.wire import Price
from oss_tools.engine.engine import Engine

if TYPE_CHECKING:
    from oss_tools.harness.answerer import Answerer
    from oss_tools.harness.endpoint_lm import EndpointLM
    from oss_tools.harness.lm import EngineLM


class Subject(Protocol):
    """A model as a run needs it."""

    def settings(self) -> dict[str, Any]:
        """On which answers depend, beside the run's own."""

    def facts(self) -> dict[str, Any]:
        """What the record says of it, at the end."""

    def model(self, *, batch: int, **how: Any) -> Answerer:
        """The model for lm-eval."""

    def prompt(self, task: str, doc: int) -> list[int] | None:
        """The tokens that a document's question became in the last run; None where the subject does not say."""


class EngineSubject:
    """A checkpoint that runs here."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lm: EngineLM | None = None

    def settings(self) -> dict[str, Any]:
        facts = self.engine.backend.facts()
        activations = facts.get("activations", "f32")
        usual = (None, "f32" if activations == "f32" else "bf16")
        kept = {"kv_cache": facts["kv_cache"]} if facts.get("kv_cache") not in usual else {}
        return {"backend": self.engine.backend.name, "activations": activations, **kept, "context": self.engine.context}

    def facts(self) -> dict[str, Any]:
        return self.engine.backend.facts()

    def model(self, *, batch: int, **how: Any) -> Answerer:
        from oss_tools.harness.lm import EngineLM

        self._lm = EngineLM(self.engine, batch=batch, **how)
        return self._lm

    def prompt(self, task: str, doc: int) -> list[int] | None:
        return self._lm.prompts.get((task, doc)) if self._lm else None


class EndpointSubject:
    """A model that answers over HTTP. `batch` has no meaning there: the endpoint says how many requests are under way."""

    def __init__(
        self, endpoint: Endpoint, price: Price | None = None, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.endpoint, self.price, self.say = endpoint, price, say
        self._lm: EndpointLM | None = None

    @property
    def described(self) -> dict[str, Any]:
        """What the record says of it beforehand. The hash is of its address and name: what runs there is not known."""
        return {"name": self.endpoint.name, "sha256": hashlib.sha256(self.endpoint.name.encode()).hexdigest()}

    def settings(self) -> dict[str, Any]:
        return {"backend": "endpoint"}

    def facts(self) -> dict[str, Any]:
        left_out = sorted(self._lm.client.unknown_fields) if self._lm else []
        return {"endpoint": True, "wire": self._lm.wire.to_json(self.price) if self._lm else {}, "left_out": left_out}

    def model(self, *, batch: int, **how: Any) -> Answerer:
        from oss_tools.harness.endpoint_lm import EndpointLM

        self._lm = EndpointLM(self.endpoint, say=self.say, **how)
        return self._lm

    def prompt(self, task: str, doc: int) -> list[int] | None:
        return None

    def measured(self) -> dict[str, Any] | None:
        """Every request's seconds and rates, and the sums; None before it was asked."""
        if self._lm is None:
            return None
        wire = self._lm.wire
        dollars = self.price.of(wire.prompt_tokens, wire.tokens) if self.price else None
        names = ("seconds", "rates", "prompt_tokens", "tokens", "truncated")
        return {**{name: getattr(wire, name) for name in names}, "dollars": dollars}

    def close(self) -> None:
        if self._lm is not None:
            self._lm.close()
