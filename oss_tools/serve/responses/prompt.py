"""What a request and the responses that it goes on from ask: items and instructions to a conversation that fits the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oss_tools.chat.chat_template import ChatTemplate
from oss_tools.chat.messages import Conversation
from oss_tools.errors import BadRequest
from oss_tools.serve.history import History, own_names
from oss_tools.serve.protocol import ApiError
from oss_tools.serve.responses.items import Item, read_input, tell
from oss_tools.serve.responses.request import Prompted
from oss_tools.serve.responses.store import ResponseStore, Stored
from oss_tools.serve.responses.tools import Offer, read_tools

SPARE = 1024  # positions that a shortened conversation leaves for the answer, where the request names no number
SPARE_SHARE = 4  # one part in so many of the context at most


@dataclass(frozen=True)
class Prompt:
    """What is asked.

    Attributes:
        conversation: as the model is told of it.
        offer: the tools.
        given: the items of the request itself.
        previous: the response that it goes on from.
    """

    conversation: Conversation
    offer: Offer
    given: tuple[Item, ...]
    previous: Stored | None


def read_prompt(sent: Prompted, template: ChatTemplate, store: ResponseStore) -> Prompt:
    """The prompt of a request. Raises BadRequest and ApiError, which name the place."""
    sent.check()
    previous = None
    if sent.previous_response_id is not None:
        previous = store.get(sent.previous_response_id)
        if previous is None:
            raise ApiError(
                400,
                f"previous response {sent.previous_response_id!r} is not there: it was not stored, or it is forgotten",
                code="previous_response_not_found",
                parameter="previous_response_id",
            )
    given = tuple(read_input(sent.input, store.item))
    offer = read_tools(sent.tools or (), sent.tool_choice)
    if offer.schemas and not template.takes_tools:
        raise BadRequest("tools: this model's chat template has no place for them")
    items = (*(previous.items if previous else ()), *given)
    return Prompt(_conversation(items, sent, offer, template), offer, given, previous)


def _conversation(items: Sequence[Item], sent: Prompted, offer: Offer, template: ChatTemplate) -> Conversation:
    history = History(own_names(template, offer.schemas))
    if sent.instructions:
        history.tell(sent.instructions)
    tell(items, history)
    return history.conversation(offer.schemas, sent.effort(template.efforts))


def shortened(prompt: Prompt, sent: Prompted, template: ChatTemplate, context: int, answer: int | None) -> Conversation:
    """The conversation without its oldest turns, so that `answer` more tokens fit into the context: `truncation: auto`.

    What system and developer messages say stays. Where the last turn alone is too long, the engine will say so.
    """
    room = context - min(answer or SPARE, context // SPARE_SHARE)
    items = (*(prompt.previous.items if prompt.previous else ()), *prompt.given)
    turns = [number for number, item in enumerate(items) if _is(item, "user")]

    def from_turn(number: int) -> Conversation:
        start = turns[number]
        told = [item for item in items[:start] if _is(item, "system", "developer")]
        return _conversation((*told, *items[start:]), sent, prompt.offer, template)

    if not turns or len(template.encode(prompt.conversation)) <= room:
        return prompt.conversation
    low, high = 0, len(turns) - 1  # the first turn from which on it fits lies among these, if any does
    while low < high:
        middle = (low + high) // 2
        if len(template.encode(from_turn(middle))) <= room:
            high = middle
        else:
            low = middle + 1
    return from_turn(low)


def _is(item: Item, *roles: str) -> bool:
    return item["type"] == "message" and item["role"] in roles
