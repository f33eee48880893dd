"""Text to tokens and back: the checkpoint's own tokenizer, text as it streams, stop strings across token borders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from threading import Lock
from typing import Any

from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.templates import by_name
from oss_tools.checkpoints.tokenizers.end_tokens import END_NAMES, end_tokens
from oss_tools.checkpoints.tokenizers.folder import UNREAD, unread_vocabulary
from oss_tools.checkpoints.tokenizers.limits import check_limits
from oss_tools.engine import o200k
from oss_tools.engine.detokenizer import Detokenizer, library
from oss_tools.errors import BadCheckpoint

# Of training, not of the tokenizer: whoever saved a tokenizer.json may have left them switched on. transformers resets the first
# two at every call.
OF_TRAINING = ("truncation", "padding")
SIGN = re.compile(r"[^\w\s].*[^\w\s]", re.DOTALL)  # what a mark begins and ends with
MARK = re.compile(r"<[|\uff5c].*[|\uff5c]>")  # an added token that marks off, whether a file calls it special or not
MOST_SIGNS = 8192  # that are looked for in templates


class Text:
    """A tokenizer.

    Attributes:
        stop_tokens: ids that end a text: the checkpoint's eos_token_id and tokens known by name to end a turn.
        special: names of special tokens -> their ids.
        marks: the same of added tokens that mark turns, calls or reasoning and are not special: DeepSeek's `<｜User｜>`, and what
            stands in the chat template (`<tool_call>`).
    """

    def __init__(self, metadata: Metadata) -> None:
        """Raises BadCheckpoint if the checkpoint has no tokenizer, or a broken one. A gpt-oss without one gets its published
        one, for which MissingPackage is raised if it is not installed."""
        from tokenizers import Tokenizer

        content = metadata.tokenizer
        if content is None and o200k.belongs_to(metadata.config):
            content = o200k.tokenizer_json()
        if content is None and (name := unread_vocabulary(metadata.files)):
            raise BadCheckpoint(f"{name}: {UNREAD}")
        if content is None:
            raise BadCheckpoint("the checkpoint has no tokenizer (tokenizer.json); only token ids can be given to it")
        content = {**content, **dict.fromkeys(OF_TRAINING), "added_tokens": _ends_as_special(content.get("added_tokens"))}
        if isinstance(content.get("model"), dict) and content["model"].get("dropout"):
            content["model"] = {**content["model"], "dropout": None}  # merges left out by chance
        check_limits(content)
        marks = _marks_in(content["added_tokens"], by_name(metadata).values())
        with library("is damaged"):
            self._tokenizer = Tokenizer.from_str(json.dumps(_with_special(content, marks)))
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = {token.content: n for n, token in added.items() if token.special and token.content not in marks}
        self.marks = {token.content: number for number, token in added.items() if token.content in marks}
        self._detokenizer = Detokenizer(self._tokenizer, content.get("decoder"), self.special.values())
        self.stop_tokens = self._find_stop_tokens(metadata)
        self._lock = Lock()

    def _find_stop_tokens(self, metadata: Metadata) -> frozenset[int]:
        found: set[int] = set()
        for source in (metadata.generation_config, metadata.config):
            ids = source.get("eos_token_id")
            found |= {i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int}
        eos = token_text(metadata.tokenizer_config.get("eos_token"))
        number = self._tokenizer.token_to_id(eos) if isinstance(eos, str) else None
        named = set() if number is None else {number}
        return frozenset(found | named | set(end_tokens(self._tokenizer.token_to_id).values()))

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids. `special`: whether the tokenizer adds its own first tokens (a chat template writes them itself)."""
        with self._lock, library("cannot encode this text"):
            return list(self._tokenizer.encode(_encodable(text), add_special_tokens=special).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a stranger's text: what reads like a special token is encoded as the letters that it is."""
        with self._lock:  # the library has a switch, no argument
            self._tokenizer.encode_special_tokens = True
            try:
                with library("cannot encode this text"):
                    return list(self._tokenizer.encode(_encodable(text), add_special_tokens=False).ids)
            finally:
                self._tokenizer.encode_special_tokens = False

    def numbers(self) -> dict[str, int]:
        """Every token's id, those of added tokens included."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def token_bytes(self, token: int) -> bytes:
        """What a token is inside of a text; see `Detokenizer.token_bytes`."""
        return self._detokenizer.token_bytes(token)

    def decode(self, tokens: Iterable[int], skip_special: bool = True) -> str:
        """The text of tokens: what a stream of them gives in all."""
        return self._detokenizer.decode(tokens, skip_special)

    def stream(self, stop: Iterable[str] = ()) -> TextStream:
        """A decoder for tokens that come one at a time."""
        return TextStream(self._detokenizer, tuple(stop))


class StopStrings:
    """Text that comes in parts, up to the first stop string. What may be the beginning of one is held back until that is
    known."""

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.stopped_by: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was complete."""
        return self.stopped_by is not None

    def add(self, text: str) -> str:
        """The text that is certain after this part; sets `stopped_by` if a stop string is complete (it is cut off)."""
        self._held += text
        found = [(at, s) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            at, self.stopped_by = min(found)
            text, self._held = self._held[:at], ""
            return text
        keep = max((overlap(self._held, s) for s in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def flush(self) -> str:
        """What was held back, when the text ends without a stop string."""
        text, self._held = self._held, ""
        return text


class TextStream:
    """Tokens to text, one at a time, up to the first stop string."""

    def __init__(self, detokenizer: Detokenizer, stop: tuple[str, ...]) -> None:
        self._text = detokenizer.start()
        self._stop = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was complete."""
        return self._stop.stopped

    def add(self, token: int) -> str:
        """The text that is certain after this token."""
        return self._stop.add(self._text.add(token))

    def flush(self) -> str:
        """What was held back, when the text ends without a stop string."""
        return self._stop.add(self._text.flush()) + self._stop.flush()


def _ends_as_special(added: Any) -> Any:
    """Added tokens, those that end a turn special: a stranger's text must not end one, whatever a file says of such a token."""
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        return added if added is not None else []
    return [{**token, "special": True} if token.get("content") in END_NAMES else token for token in added]


def _marks_in(added: list[Any], templates: Iterable[str]) -> frozenset[str]:
    """The added tokens that mark off and are not special."""
    names = [t.get("content") for t in added if isinstance(t, dict) and not t.get("special")]
    signs = [name for name in names if isinstance(name, str) and SIGN.fullmatch(name)]
    sources = list(templates)
    written = {name for name in signs[:MOST_SIGNS] if any(name in source for source in sources)}
    return frozenset(name for name in signs if name in written or MARK.fullmatch(name))


def _with_special(content: dict[str, Any], marks: frozenset[str]) -> dict[str, Any]:
    """The tokenizer with these tokens special, so that `encode_plain` takes them for the letters that they are."""
    added = [
        {**t, "special": True} if isinstance(t, dict) and t.get("content") in marks else t for t in content["added_tokens"]
    ]
    return {**content, "added_tokens": added}


def _encodable(text: str) -> str:
    """The text without halves of surrogate pairs, which come from arguments that are no UTF-8 and from JSON escapes."""
    return text.encode("utf-8", "replace").decode()


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def token_text(token: Any) -> str | None:
    """A special token of tokenizer_config.json, which stands there as a string or as an object."""
    return token.get("content") if isinstance(token, dict) else token
