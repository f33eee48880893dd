"""Text to tokens and back: the checkpoint's own tokenizer, text as it streams, stop strings across token borders."""

from __future__ import annotations

import json
from collections.abc import Iterable
from threading import Lock
from typing import Any

from oss_tools.checkpoints import Metadata
from oss_tools.engine import o200k
from oss_tools.errors import BadCheckpoint

# Names under which vocabularies hold the tokens that end a turn or a text
END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|return|>", "<|call|>", "<|endoftext|>", "<|end_of_text|>", "</s>")


class Text:
    """A tokenizer.

    Attributes:
        stop_tokens: ids that end a text: the checkpoint's eos_token_id and special tokens known to end a turn.
        special: names of special tokens -> their ids.
    """

    def __init__(self, metadata: Metadata) -> None:
        """Raises BadCheckpoint if the checkpoint has no tokenizer, or a broken one. A gpt-oss without one gets its published
        one, for which MissingPackage is raised if it is not installed."""
        from tokenizers import Tokenizer

        content = metadata.tokenizer
        if content is None and o200k.belongs_to(metadata.config):
            content = o200k.tokenizer_json()
        if content is None:
            raise BadCheckpoint("the checkpoint has no tokenizer (tokenizer.json); only token ids can be given to it")
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the library raises bare Exception
            raise BadCheckpoint(f"the checkpoint's tokenizer.json is damaged: {error}") from None
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = {token.content: number for number, token in added.items() if token.special}
        self.stop_tokens = self._find_stop_tokens(metadata)
        self._lock = Lock()

    def _find_stop_tokens(self, metadata: Metadata) -> frozenset[int]:
        found: set[int] = set()
        for source in (metadata.generation_config, metadata.config):
            ids = source.get("eos_token_id")
            found |= {i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)}
        names = [token_text(metadata.tokenizer_config.get("eos_token")), *END_TOKENS]
        special = {t.content: i for i, t in self._tokenizer.get_added_tokens_decoder().items()}
        return frozenset(found | {special[name] for name in names if name in special})

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids. `special`: whether the tokenizer adds its own first tokens (a chat template writes them itself)."""
        with self._lock:
            return list(self._tokenizer.encode(_encodable(text), add_special_tokens=special).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a stranger's text: what reads like a special token is encoded as the letters that it is."""
        with self._lock:  # the library has a switch, no argument
            self._tokenizer.encode_special_tokens = True
            try:
                return list(self._tokenizer.encode(_encodable(text), add_special_tokens=False).ids)
            finally:
                self._tokenizer.encode_special_tokens = False

    def numbers(self) -> dict[str, int]:
        """Every token's id, those of added tokens included."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def decode(self, tokens: Iterable[int], skip_special: bool = True) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special))

    def stream(self, stop: Iterable[str] = ()) -> TextStream:
        """A decoder for tokens that come one at a time."""
        return TextStream(self._tokenizer, tuple(stop))


class StopStrings:
    """Text that comes in parts, up to the first stop string. What may be the beginning of one is held back until that is
    known."""

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """The text that is certain after this part; sets `stopped` if a stop string is complete (it is cut off)."""
        self._held += text
        found = [at for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
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

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stop = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was complete."""
        return self._stop.stopped

    def add(self, token: int) -> str:
        """The text that is certain after this token."""
        return self._stop.add(self._decoder.step(self._tokenizer, token) or "")

    def flush(self) -> str:
        """What was held back, when the text ends without a stop string."""
        return self._stop.flush()


def _encodable(text: str) -> str:
    """The text without halves of surrogate pairs, which come from arguments that are no UTF-8 and from JSON escapes."""
    return text.encode("utf-8", "replace").decode()


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def token_text(token: Any) -> str | None:
    """A special token of tokenizer_config.json, which stands there as a string or as an object."""
    return token.get("content") if isinstance(token, dict) else token
