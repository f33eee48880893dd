"""What a model is calibrated on: the mixture that travels with the program, or the user's texts and conversations; as tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from oss_tools.calibration.chats import LARGEST, read_chats
from oss_tools.chat import harmony
from oss_tools.chat.chat_template import ChatTemplate, HarmonyTemplate, chat_template, has_chat_template
from oss_tools.chat.harmony import Special
from oss_tools.chat.messages import Conversation
from oss_tools.checkpoints import Metadata
from oss_tools.engine.text import Text
from oss_tools.errors import BadCheckpoint, BadRequest, OssToolsError
from oss_tools.texts import read_words

MIXTURE = Path(__file__).parent / "mixture"
SHARES = {  # of the mixture's tokens
    "books.txt": 0.24,
    "prose.txt": 0.12,
    "code.txt": 0.18,
    "mathematics.txt": 0.12,
    "health.txt": 0.12,
    "chats.jsonl": 0.22,
}
NAME = "oss-tools calibration mixture"
MOMENT = datetime(2025, 1, 1)
TOKENS, SEQUENCE = 65536, 512  # by default
SHORTEST = 8  # tokens of a sequence


@dataclass(frozen=True)
class Source:
    """Texts of one kind, or conversations.

    Attributes:
        name: the file's.
        share: of all tokens, beside the other sources' shares; None for as much as there is.
        text: or None.
        chats: or none.
        ours: whether it travels with the program, so that it may be told in plain words to a model that cannot be spoken to.
    """

    name: str
    share: float | None = None
    text: str | None = None
    chats: tuple[Conversation, ...] = ()
    ours: bool = False


@dataclass(frozen=True)
class Sample:
    """Tokens to calibrate on.

    Attributes:
        sequences: int64 [length] each.
        length: of a sequence, but where the text is shorter than one.
        names: of the sources.
        shares: tokens by source.
        left: sequences that there would have been beyond those asked for.
    """

    sequences: list[np.ndarray]
    length: int
    names: tuple[str, ...]
    shares: dict[str, int]
    left: int

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))

    @property
    def digest(self) -> str:
        """A hash of all tokens and of where sequences end."""
        found = hashlib.sha256()
        for sequence in self.sequences:
            found.update(len(sequence).to_bytes(8, "little") + sequence.astype("<i8").tobytes())
        return found.hexdigest()


def mixture() -> list[Source]:
    """What travels with the program."""
    return [
        Source(name, share, chats=tuple(read_chats(MIXTURE / name)), ours=True)
        if name.endswith(".jsonl")
        else Source(name, share, read_words(MIXTURE / name, LARGEST), ours=True)
        for name, share in SHARES.items()
    ]


def sources_of(texts: Sequence[Path], chats: Sequence[Path]) -> list[Source]:
    """The user's files; the mixture if there are none. Raises BadRequest."""
    if not texts and not chats:
        return mixture()
    of_texts = [Source(path.name, text=read_words(path, LARGEST)) for path in texts]
    return of_texts + [Source(path.name, chats=tuple(read_chats(path))) for path in chats]


def sample(metadata: Metadata, sources: Sequence[Source], tokens: int, length: int, vocabulary: int) -> Sample:
    """The first `tokens` tokens of the sources, in sequences of `length`, the sources in turn by their shares.

    Every sequence begins with what the model's tokenizer begins a text with, and with a conversation where it is of those.
    Args:
        vocabulary: rows of the embedding.
    Raises BadCheckpoint for a model without a tokenizer, BadRequest if there is too little text.
    """
    text = Text(metadata)
    spoken = has_chat_template(metadata, text)
    template = chat_template(metadata, text).at(MOMENT) if spoken else None
    first = _beginning(text)
    cut = {
        source.name: _in_pieces(text.encode_plain(source.text), length, first)
        if source.text is not None
        else _from_starts(_conversations(source, text, template, first), length)
        for source in sources
    }
    for name, found in cut.items():
        largest = max((int(s.max()) for s in found), default=0)
        if largest >= vocabulary:
            raise BadCheckpoint(f"the tokenizer gives token {largest} for {name}; the embedding has {vocabulary} rows")
    ordered = _in_turn(cut, {source.name: source.share for source in sources})
    wanted = max(tokens // length, 1)
    chosen = ordered[:wanted]
    if not chosen:
        raise BadRequest(f"the text has less than {SHORTEST} tokens; there is nothing to calibrate on")
    shares = {name: sum(len(s) for n, s in chosen if n == name) for name in cut}
    return Sample([s for _, s in chosen], length, tuple(cut), shares, len(ordered) - len(chosen))


def _conversations(source: Source, text: Text, template: ChatTemplate | None, first: list[int]) -> Iterator[list[int]]:
    """The tokens of each conversation. Raises BadCheckpoint if the model cannot be spoken to and they are not ours."""
    if template is None and not source.ours:
        raise BadCheckpoint("the model has no chat template, so it cannot be calibrated on conversations; give --text")
    for chat in source.chats:
        try:
            tokens = _complete(template, chat) if template else None
        except OssToolsError:
            if not source.ours:
                raise
            tokens = None  # a template that knows no tools, or no system message
        yield first + text.encode_plain(_plainly(chat)) if tokens is None else tokens


def _beginning(text: Text) -> list[int]:
    """What the tokenizer puts before a text."""
    plain, whole = text.encode("a", special=False), text.encode("a")
    return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(plain)] == plain), [])


def _complete(template: ChatTemplate, chat: Conversation) -> list[int]:
    """A conversation with its last answer and what was thought before it."""
    if not isinstance(template, HarmonyTemplate):
        return template.encode(chat)
    tokens: list[int] = []
    for piece in harmony.render(chat, template.preamble, complete=True):
        tokens += [template.text.special[piece]] if isinstance(piece, Special) else template.text.encode_plain(piece)
    return tokens


def _plainly(chat: Conversation) -> str:
    told = [chat.instructions] if chat.instructions else []
    return "\n\n".join([*told, *(message.content for message in chat.messages)]) + "\n\n"


def _in_pieces(tokens: list[int], length: int, first: list[int]) -> list[np.ndarray]:
    """A text in sequences of one length, each behind the tokenizer's first tokens; the last one is left out unless it is the only
    one."""
    size = length - len(first)
    pieces = [tokens[at : at + size] for at in range(0, len(tokens), size)]
    return [np.array(first + piece, np.int64) for piece in pieces if len(piece) == size or _is_only(piece, pieces)]


def _from_starts(documents: Iterator[list[int]], length: int) -> list[np.ndarray]:
    """Sequences of one length that begin with a document, and go on with the next; what does not fit is left out."""
    found: list[np.ndarray] = []
    rest: list[int] = []
    for document in documents:
        rest += document
        if len(rest) >= length:
            found.append(np.array(rest[:length], np.int64))
            rest = []
    return found or ([np.array(rest, np.int64)] if len(rest) >= SHORTEST else [])


def _is_only(piece: list[int], pieces: list[list[int]]) -> bool:
    return len(pieces) == 1 and len(piece) >= SHORTEST


def _in_turn(cut: dict[str, list[np.ndarray]], shares: dict[str, float | None]) -> list[tuple[str, np.ndarray]]:
    """All sequences, each time one of the source that is furthest behind its share; a source ends when it has no more."""
    weights = {name: shares[name] or sum(map(len, found)) for name, found in cut.items()}
    taken, waiting = dict.fromkeys(cut, 0), {name: iter(found) for name, found in cut.items()}
    ordered: list[tuple[str, np.ndarray]] = []
    while waiting:
        name = min(waiting, key=lambda n: (taken[n] + 1) / weights[n] if weights[n] else 0)
        sequence = next(waiting[name], None)
        if sequence is None:
            del waiting[name]
            continue
        taken[name] += len(sequence)
        ordered.append((name, sequence))
    return ordered
