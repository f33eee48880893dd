"""What a tokenizer.json may ask for: it is a stranger's program too, and the library that carries it out has no limits.

Held against the file before anything is built of it: how much its steps may make of a letter, how many there are, whether its
regular expressions end, and what makes the library panic or end the process.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from oss_tools.checkpoints.tokenizers import charsmap as charsmaps
from oss_tools.checkpoints.tokenizers.expressions import fault_of
from oss_tools.errors import BadCheckpoint

MAX_GROWTH = 4096  # letters that the steps of a tokenizer.json may make of one
MAX_AROUND = 64  # tokens that it may put around a text
MAX_STEPS = 32  # of one part: the longest published ones have some ten
MAX_DEPTH = 16  # of sequences in sequences
MAX_PIECE = 512  # characters of a piece of a Unigram model, all of which are sought at every letter
MAX_WORD = 1000  # characters of a word that WordPiece cuts up: the work grows with their square
MAX_AFFIX = 256  # characters of what continues or ends a word
MAX_ADDED = 1 << 18  # added tokens
MAX_ADDED_CHARACTERS = 1 << 21  # of all of them together
MAX_NORMALIZED = 1 << 24  # the same, where they are normalized, as their normalizer may leave them
LISTS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
GROWING = {"ByteLevel": 4}  # letters that a step may make of one: bytes of UTF-8
ENDS = ("sep", "cls")  # of BertProcessing and RobertaProcessing


def check_limits(tokenizer: Mapping[str, Any]) -> None:
    """Raises BadCheckpoint if a tokenizer.json would take more time or memory than it may."""
    growth = {part: _check_part(tokenizer, part) for part in LISTS}
    _check_around(tokenizer)
    _check_model(tokenizer.get("model"))
    _check_added(tokenizer.get("added_tokens"), growth["normalizer"])


def _refuse(what: str) -> BadCheckpoint:
    return BadCheckpoint(f"tokenizer.json: {what}")


def _steps(part: Any, key: str, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The steps of a part, those of sequences in it included. Raises BadCheckpoint for one that is too deep."""
    if depth > MAX_DEPTH:
        raise _refuse(f"its {key} are more than {MAX_DEPTH} sequences deep")
    if not isinstance(part, Mapping):
        return
    inner = part.get(key)
    if part.get("type") == "Sequence" and isinstance(inner, list):
        for step in inner:
            yield from _steps(step, key, depth + 1)
    else:
        yield part


def steps_of(tokenizer: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    """The steps of a part of a tokenizer.json, in order. Raises BadCheckpoint for too many."""
    found: list[Mapping[str, Any]] = []
    for step in _steps(tokenizer.get(part), LISTS[part]):
        if len(found) == MAX_STEPS:
            raise _refuse(f"its {part} has more than {MAX_STEPS} steps")
        found.append(step)
    return found


def _check_part(tokenizer: Mapping[str, Any], part: str) -> int:
    """How many letters a part may make of one, at most. Raises BadCheckpoint."""
    growth = 1
    for step in steps_of(tokenizer, part):
        pattern = step.get("pattern")
        if isinstance(pattern, Mapping):
            _check_pattern(pattern, step, part)
        if step.get("type") == "FixedLength" and step.get("length") == 0:
            raise _refuse(f"its {part} cuts text into pieces of no length")
        growth *= _growth(step)
        if growth > MAX_GROWTH:
            raise _refuse(f"its {part} makes up to {growth} letters of one, more than {MAX_GROWTH}")
    return growth


def _check_pattern(pattern: Mapping[str, Any], step: Mapping[str, Any], part: str) -> None:
    regex = pattern.get("Regex")
    if isinstance(regex, str) and (fault := fault_of(regex)):
        raise _refuse(f"a regular expression of its {part}, {regex[:60]!r}, may never end: {fault}")
    if step.get("type") == "Replace" and "" in pattern.values():
        raise _refuse(f"its {part} replaces a text of no letters")


def _growth(step: Mapping[str, Any]) -> int:
    if step.get("type") == "Precompiled":
        return _growth_of_map(step.get("precompiled_charsmap"))
    texts = [len(step[name]) for name in ("content", "prepend") if isinstance(step.get(name), str)]
    return max(*texts, GROWING.get(str(step.get("type")), 1), 1)


def _growth_of_map(charsmap: Any) -> int:
    """The same of SentencePiece's character map. Raises BadCheckpoint for a damaged one."""
    try:
        data = base64.b64decode(charsmap, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise _refuse("its precompiled_charsmap is not base64") from None
    if fault := charsmaps.fault_of(data):
        raise _refuse(f"its precompiled_charsmap is {fault}")
    return charsmaps.longest_text(data)


def _check_around(tokenizer: Mapping[str, Any]) -> None:
    """Raises BadCheckpoint if a text would get very much around it, or come several times."""
    around = 0
    for step in steps_of(tokenizer, "post_processor"):
        special = step.get("special_tokens")
        entries = special if isinstance(special, Mapping) else {}
        for name in ("single", "pair") if step.get("type") == "TemplateProcessing" else ():
            pieces = step.get(name)
            pieces = pieces if isinstance(pieces, list) else []
            if len(pieces) > MAX_AROUND:
                raise _refuse(f"its post_processor puts more than {MAX_AROUND} tokens around a text")
            named = [piece.get("SpecialToken") for piece in pieces if isinstance(piece, Mapping)]
            ids = [entry.get("id") for entry in named if isinstance(entry, Mapping)]
            if unknown := [name for name in ids if name not in entries]:
                raise _refuse(f"its post_processor names the token {str(unknown[0])[:80]!r}, of which it says nothing")
            if len(pieces) - len(ids) > (1 if name == "single" else 2):
                raise _refuse("its post_processor repeats the text")
            around += sum(_ids_of(entries[name]) for name in ids) if name == "single" else 0
        around += sum(name in step for name in ENDS)
        if around > MAX_AROUND:
            raise _refuse(f"its post_processor puts more than {MAX_AROUND} tokens around a text")


def _ids_of(entry: Any) -> int:
    ids = entry.get("ids") if isinstance(entry, Mapping) else None
    return len(ids) if isinstance(ids, list) else 1


def _check_model(model: Any) -> None:
    """Raises BadCheckpoint for a model that would take very long, or make the library panic."""
    if not isinstance(model, Mapping):
        return
    vocab, limit = model.get("vocab"), model.get("max_input_chars_per_word")
    if isinstance(vocab, list) and any(isinstance(p, list) and p and _is_longer(p[0], MAX_PIECE) for p in vocab):
        raise _refuse(f"a piece of its vocabulary has more than {MAX_PIECE} characters")
    if isinstance(limit, int | float) and limit > MAX_WORD:
        raise _refuse(f"its words have up to {limit} characters (max_input_chars_per_word), more than {MAX_WORD}")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if _is_longer(model.get(name), MAX_AFFIX):
            raise _refuse(f"its {name} has more than {MAX_AFFIX} characters")
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if (
        isinstance(prefix, str) and prefix and isinstance(merges, list)
    ):  # the library cuts so many bytes off, whatever is there
        for merge in merges:
            right = (merge.split(" ") if isinstance(merge, str) else merge or [""])[-1]
            if not isinstance(right, str) or not right.startswith(prefix):
                raise _refuse(f"the merge {str(merge)[:80]!r} continues a word without the prefix {prefix!r}")


def _is_longer(text: Any, limit: int) -> bool:
    return isinstance(text, str) and len(text) > limit


def _check_added(added: Any, growth: int) -> None:
    """Raises BadCheckpoint for more added tokens than can be sought in a text."""
    if not isinstance(added, list):
        return
    tokens = [token for token in added if isinstance(token, Mapping) and isinstance(token.get("content"), str)]
    characters = sum(len(token["content"]) for token in tokens)
    if len(added) > MAX_ADDED or characters > MAX_ADDED_CHARACTERS:
        raise _refuse(
            f"{len(added)} added tokens of {characters} characters, at most {MAX_ADDED} of {MAX_ADDED_CHARACTERS} are allowed"
        )
    normalized = sum(len(token["content"]) for token in tokens if token.get("normalized", True))
    if normalized * growth > MAX_NORMALIZED:
        raise _refuse(f"its added tokens have up to {normalized * growth} characters when they are normalized")
