"""The models of a server."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from oss_tools.chat.chat_template import ChatTemplate, chat_template, has_chat_template
from oss_tools.engine.engine import Engine
from oss_tools.engine.scheduling import Scheduler
from oss_tools.engine.turns import Turns
from oss_tools.errors import BadRequest
from oss_tools.guesses import none_named
from oss_tools.serve.settings import Settings


@dataclass(frozen=True, eq=False)
class Served:
    """A model that is served.

    Attributes:
        name: by which clients ask for it.
        engine: which belongs to the scheduler's thread; its tokenizer may be used by all.
        template: how it is spoken to; None for a model that only continues texts.
        scheduler: works on requests.
        created: when it was loaded, seconds since 1970.
    """

    name: str
    engine: Engine
    template: ChatTemplate | None
    scheduler: Scheduler
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, name: str, engine: Engine, settings: Settings, turns: Turns, positions: int | None = None) -> Served:
        """Serves a loaded model. Raises BadCheckpoint if it has no tokenizer."""
        template = chat_template(engine.metadata, engine.text) if has_chat_template(engine.metadata, engine.text) else None
        return cls(name, engine, template, Scheduler(engine, settings.parallel, settings.queue, positions, turns))

    @property
    def speaker(self) -> ChatTemplate:
        """How it is spoken to. Raises BadRequest if it cannot be."""
        if self.template is None:
            raise BadRequest(
                f"{self.name} has no chat template: it continues texts (/v1/completions), it answers no messages"
            )
        return self.template


@dataclass(frozen=True, eq=False)
class State:
    """What the APIs share: the models by name, and the settings."""

    models: dict[str, Served]
    settings: Settings

    def model(self, name: str | None) -> Served:
        """The model of this name; the first one where none is named. Raises UnknownModel."""
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UnknownModel(none_named("model", name, self.models))
        return self.models[name]


class UnknownModel(BadRequest):
    """A name that no model has."""
