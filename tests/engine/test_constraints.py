"""Constraints in the engine: what is generated keeps to them, alone and in a batch, drawn and greedy."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest

from oss_tools.chat.chat_template import chat_template
from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.structured import Form, constraint_for, plain_constraint
from oss_tools.engine.constraints import Grammars
from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request
from oss_tools.engine.sampling import Sampler, Sampling
from oss_tools.engine.text import Text
from oss_tools.errors import BadRequest
from oss_tools.resources import resource

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "maximum": 999, "minimum": -999}, "y": {"enum": ["up", "down"]}},
    "required": ["x", "y"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(resource("tiny/checkpoint"), context=2048) as engine:
        yield engine


def request(engine: Engine, form: Form, sampling: Sampling, **fields: Any) -> Request:
    tokens = engine.text.encode("The point is ")
    return Request(tokens, 200, sampling, constraint=plain_constraint(engine.grammars, form), **fields)


def text_of(engine: Engine, asked: Request) -> str:
    return "".join(token.text for token in engine.generate(asked))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.5, seed=1),
        Sampling(temperature=2.0, seed=2, top_k=3),
        Sampling(temperature=1.0, seed=3, top_p=0.5, min_p=0.1, repetition_penalty=1.3),
    ],
)
def test_every_rule_of_sampling_keeps_to_the_schema(engine: Engine, sampling: Sampling) -> None:
    jsonschema.validate(json.loads(text_of(engine, request(engine, Form.json_schema(POINT), sampling))), POINT)


def test_requests_of_a_batch_have_constraints_of_their_own(engine: Engine) -> None:
    """And are answered as if each were alone."""
    forms = [Form.json_schema(POINT), Form.regex("(yes|no){1,3}"), Form.json_schema(POINT), Form.json_object()]
    asked = [request(engine, form, Sampling(temperature=1.2, seed=i)) for i, form in enumerate(forms)]
    asked.append(Request(engine.text.encode("The point is "), 20, Sampling()))
    texts = [""] * len(asked)
    for i, token in engine.generate_batch(asked):
        texts[i] += token.text
    assert texts == [text_of(engine, one) for one in asked]


def test_log_probabilities_are_the_model_s_before_the_constraint(engine: Engine) -> None:
    held = next(engine.generate(request(engine, Form.json_schema(POINT), Sampling(), logprobs=1)))
    free = next(engine.generate(Request(engine.text.encode("The point is "), 1, logprobs=2000)))
    assert held.logprob == dict(free.top)[held.id]
    assert held.top[0] == free.top[0]
    assert held.id != free.top[0][0]


def test_a_text_ends_with_its_form_where_a_model_has_no_token_for_the_end(engine: Engine) -> None:
    asked = request(engine, Form.regex("[0-9]{3}"), Sampling(), stop_tokens=frozenset())
    tokens = list(engine.generate(asked))
    assert len("".join(token.text for token in tokens)) == 3
    assert tokens[-1].finish == "stop"


def test_a_backend_that_chooses_tokens_itself_is_given_none_that_are_held(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU keeps its logits, and cannot know what is allowed."""

    def refuse(*_: object) -> np.ndarray:
        pytest.fail("the backend was asked to choose")

    monkeypatch.setattr(engine.backend, "likeliest", refuse)
    monkeypatch.setattr(engine.backend, "drawn", refuse, raising=False)
    monkeypatch.setattr(type(engine.backend), "draws", True)
    for sampling in (Sampling(), Sampling(temperature=1.0, seed=1)):
        jsonschema.validate(json.loads(text_of(engine, request(engine, Form.json_schema(POINT), sampling))), POINT)


def test_the_sampler_never_takes_what_has_no_probability() -> None:
    logits = np.full(50, -np.inf, np.float32)
    logits[[7, 9]] = 1.0, 2.0
    for seed in range(50):
        for sampling in (Sampling(temperature=1, seed=seed), Sampling(temperature=1, seed=seed, top_k=20)):
            sampler = Sampler(sampling)
            sampler._random = _Always(seed % 2 * (1 - 2**-53))  # type: ignore[assignment]
            assert sampler(logits) in (7, 9)


class _Always:
    """Random numbers that are one number."""

    def __init__(self, number: float) -> None:
        self._number = number

    def random(self) -> float:
        return self._number


def test_a_tokenizer_whose_tokens_have_no_bytes_is_refused() -> None:
    from oss_tools.checkpoints import Metadata

    words = {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
        "pre_tokenizer": {"type": "Whitespace"},
    }
    with pytest.raises(BadRequest, match="does not say which text a token is"):
        Grammars(Text(Metadata({}, tokenizer=words)), 2)


def random_schema(draw: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema whose values are short."""
    kinds = ["string", "pattern", "integer", "number", "boolean", "null", "enum", "const", "format", "steps"]
    kinds += ["object", "object", "array", "any", "tuple"] * (depth > 0)
    kind = draw.choice(kinds)
    match kind:
        case "string":
            low = draw.randrange(3)
            return {"type": "string", "minLength": low, "maxLength": low + draw.randrange(6)}
        case "pattern":
            return {"type": "string", "pattern": draw.choice([r"^[a-z]{1,5}$", r"^\d{3}-\d{2}$", r"^(red|blue) \w{2}$"])}
        case "integer":
            low = draw.randrange(-1000, 1000)
            return {"type": "integer", "minimum": low, "maximum": low + draw.randrange(1, 5000)}
        case "number":
            return {"type": "number", "exclusiveMinimum": draw.randrange(-9, 0), "maximum": draw.randrange(1, 9)}
        case "boolean" | "null":
            return {"type": kind}
        case "enum":
            return {"enum": draw.sample(["a", "é\n", 7, 2.5, None, True, "long value", ["x"]], draw.randrange(1, 6))}
        case "const":
            return {"const": draw.choice(["fixed", 0, {"k": [1]}, False])}
        case "format":
            return {"type": "string", "format": draw.choice(["date", "uuid", "ipv4", "time"])}
        case "steps":
            return {"type": "integer", "multipleOf": draw.choice([3, 7, 10]), "minimum": 0, "maximum": 500}
        case "array":
            low = draw.randrange(3)
            return {
                "type": "array",
                "items": random_schema(draw, depth - 1),
                "minItems": low,
                "maxItems": low + draw.randrange(3),
            }
        case "tuple":
            items = [random_schema(draw, depth - 1) for _ in range(draw.randrange(1, 3))]
            return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        case "any":
            return {"anyOf": [random_schema(draw, depth - 1), random_schema(draw, depth - 1)]}
    names = draw.sample(["id", "name", "größe", "tags", "a b", 'quo"te', "z"], draw.randrange(1, 5))
    return {
        "type": "object",
        "properties": {name: random_schema(draw, depth - 1) for name in names},
        "required": [name for name in names if draw.random() < 0.7],
        "additionalProperties": False,
    }


@pytest.mark.slow
def test_a_thousand_answers_to_random_schemas_are_valid_at_a_high_temperature(engine: Engine) -> None:
    """Reasoning and answer in harmony, all drawn at temperature 1.5; jsonschema judges."""
    template, draw = chat_template(engine.metadata, engine.text), random.Random(7)
    conversation = Conversation((Message("user", "What is 47 + 38?"),), effort="low")
    prompt = template.encode(conversation)
    judge = jsonschema.Draft202012Validator
    schemas = [{"type": "object", "properties": {"v": random_schema(draw)}, "required": ["v"]} for _ in range(1000)]
    schemas = [{**schema, "additionalProperties": False} for schema in schemas]
    requests = [
        Request(
            prompt,
            1900,
            Sampling(temperature=1.5, seed=i),
            constraint=constraint_for(template, engine.grammars, conversation, Form.json_schema(schema)),
        )
        for i, schema in enumerate(schemas)
    ]
    tokens: list[list[int]] = [[] for _ in requests]
    cut = 0
    for i, token in engine.generate_batch(requests):
        tokens[i].append(token.id)
        cut += token.finish == "length"
    answers = [template.parse(said, conversation).final for said in tokens]
    wrong = [i for i, answer in enumerate(answers) if answer is None or not judge(schemas[i]).is_valid(json.loads(answer))]
    assert (wrong, cut) == ([], 0)
