"""Programs that guess tokens from the text so far, asked by lines (`oss_tools.measure.worker`)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import Any

import numpy as np


def seconds_between(tokens: Iterable[int], count: int) -> tuple[float, list[int]]:
    """Seconds from the first of `count` tokens to the last, and the tokens."""
    began = 0.0
    found: list[int] = []
    for token in tokens:
        if not found:
            began = time.perf_counter()
        found.append(int(token))
        if len(found) == count:
            break
    return time.perf_counter() - began, found


class Prescribed:
    """A constraint that lets one text come and no other."""

    ended = False

    def __init__(self, tokens: list[int]) -> None:
        self._tokens, self._at = tokens, 0

    def mask(self, logits: np.ndarray) -> None:
        """Leaves the next token alone possible."""
        token = self._tokens[self._at]
        chance = logits[token]
        logits[:] = -np.inf
        logits[token] = chance

    def accept(self, token: int) -> None:
        self._at += 1


class OssTools:
    """Ours. What passes take is known from one text to the next, as it is in a server."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        from oss_tools.engine.engine import Engine

        self._engine = Engine.load(model, threads=threads, context=context, prefix_budget=0)
        self._pace = self._engine.pace

    def facts(self) -> dict[str, Any]:
        return self._engine.backend.facts()

    def run(self, prompt: str, answer: str, temperature: float, count: int, seed: int, guesses: bool) -> dict[str, Any]:
        """Continues a text, see `lookup.Case`."""
        from oss_tools.engine.requests import Request
        from oss_tools.engine.sampling import Sampling

        engine = self._engine
        engine.pace = self._pace if guesses else None
        said = engine.text.encode(answer) if answer else []
        request = Request(
            engine.text.encode(prompt),
            min(count, len(said)) if said else count,
            Sampling(temperature=0 if said else temperature, seed=seed),
            stop_tokens=frozenset(),
            constraint=(lambda: Prescribed(said)) if said else None,
        )
        count = request.max_tokens
        before = (engine.pace.figures.guessed, engine.pace.figures.right) if engine.pace else (0, 0)
        seconds, tokens = seconds_between((token.id for token in engine.generate(request)), count)
        after = (engine.pace.figures.guessed, engine.pace.figures.right) if engine.pace else (0, 0)
        return {"seconds": seconds, "tokens": tokens, "guessed": after[0] - before[0], "right": after[1] - before[1]}

    def close(self) -> None:
        self._engine.close()


class LlamaCpp:
    """llama-cpp-python, whose `LlamaPromptLookupDecoding` guesses a fixed number of tokens: the two that its manual names."""

    GUESSES = (2, 10)  # for a processor, for a GPU

    def __init__(self, model: str, threads: int, context: int) -> None:
        from llama_cpp import Llama
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        def load(guesses: int | None) -> Any:
            draft = LlamaPromptLookupDecoding(num_pred_tokens=guesses) if guesses else None
            return Llama(
                model,
                n_ctx=context,
                n_threads=threads,
                n_threads_batch=threads,
                logits_all=bool(guesses),  # else there is room for the logits of a batch only
                draft_model=draft,
                verbose=False,
            )

        self._models = {guesses: load(guesses) for guesses in (None, *self.GUESSES)}

    def facts(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"program": f"llama-cpp-python {version('llama-cpp-python')}"}

    def run(
        self, prompt: str, answer: str, temperature: float, count: int, seed: int, guesses: int | None
    ) -> dict[str, Any]:
        """Continues a text, see `lookup.Case`."""
        model = self._models[guesses]
        model.reset()
        model.set_seed(seed)
        tokens = model.tokenize(prompt.encode(), add_bos=False)
        said = model.tokenize(answer.encode(), add_bos=False) if answer else []
        count = min(count, len(said)) if said else count
        places = itertools.count()  # one for each token that is chosen

        def prescribe(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
            """Leaves the next token alone possible."""
            place = next(places)
            only = np.full_like(logits, -np.inf)
            only[said[place] if place < len(said) else 0] = 0
            return only

        rule = {"logits_processor": [prescribe]} if said else {}
        heat = 0.0 if said else temperature
        stream = model.generate(tokens, top_k=0, top_p=1.0, min_p=0.0, temp=heat, **rule)
        seconds, found = seconds_between(stream, count)
        return {"seconds": seconds, "tokens": found}

    def close(self) -> None:
        for model in self._models.values():
            model.close()
