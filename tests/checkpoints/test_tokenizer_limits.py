"""tokenizer.json files that take all time, all memory or the process: refused before the library builds anything of them."""

import base64
import copy
import io
import json
from typing import Any

import pytest

from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.gguf_splitters import SPLITTERS
from oss_tools.checkpoints.tokenizers import charsmap
from oss_tools.checkpoints.tokenizers.byte_tokenizer import byte_tokenizer
from oss_tools.checkpoints.tokenizers.expressions import fault_of
from oss_tools.checkpoints.tokenizers.limits import check_limits
from oss_tools.engine.text import Text
from oss_tools.errors import BadCheckpoint

MADE = byte_tokenizer("llama", 300)
assert MADE
CONTENT = MADE.content
PLAIN = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None, "added_tokens": []}


def replacing(times: int, content: str, pattern: Any = None) -> list[dict[str, Any]]:
    return [{"type": "Replace", "pattern": pattern or {"Regex": "."}, "content": content}] * times


def sequence(key: str, steps: list[Any]) -> dict[str, Any]:
    return {"type": "Sequence", key: steps}


def nested(key: str, depth: int, step: dict[str, Any]) -> dict[str, Any]:
    for _ in range(depth):
        step = sequence(key, [step])
    return step


def splitting(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def template(single: list[Any], special: dict[str, Any], pair: list[Any] | None = None) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": single, "pair": pair or [], "special_tokens": special}


def mapping(data: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def added(count: int, content: str, **flags: bool) -> list[dict[str, Any]]:
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return [{"id": 300 + n, "content": f"{content}{n}", **usual, **flags} for n in range(count)]


MARK = {"SpecialToken": {"id": "a", "type_id": 0}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
MANY = {"a": {"id": "a", "ids": [1] * 50, "tokens": ["a"] * 50}}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
BERT = {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}
WORDS = {"type": "WordPiece", "unk_token": "u", "continuing_subword_prefix": "##", "vocab": {"u": 0, "a": 1}}
PIECES = {"type": "Unigram", "unk_id": 0, "byte_fallback": False}
MERGING = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "steps that multiply": ({"normalizer": sequence("normalizers", replacing(4, "a" * 1000))}, "its normalizer makes up to"),
    "a decoder that multiplies": ({"decoder": sequence("decoders", replacing(3, "a" * 2000))}, "its decoder makes up to"),
    "bytes of bytes": ({"normalizer": sequence("normalizers", [{"type": "ByteLevel"}] * 20)}, "its normalizer makes up to"),
    "bytes of bytes, when cut": (
        {"pre_tokenizer": sequence("pretokenizers", [BYTES] * 20)},
        "its pre_tokenizer makes up to",
    ),
    "a long beginning": ({"normalizer": {"type": "Prepend", "prepend": "a" * 10_000_000}}, "its normalizer makes up to"),
    "a text of no letters": (
        {"normalizer": replacing(1, "a" * 99, {"String": ""})[0]},
        "its normalizer replaces a text of no letters",
    ),
    "many steps": ({"normalizer": sequence("normalizers", [{"type": "NFC"}] * 100_000)}, "more than 32 steps"),
    "many cuts": ({"pre_tokenizer": sequence("pretokenizers", [splitting("a")] * 1000)}, "more than 32 steps"),
    "many ends": ({"post_processor": sequence("processors", [BERT] * 100_000)}, "more than 32 steps"),
    "many decoders": ({"decoder": sequence("decoders", [{"type": "Fuse"}] * 100_000)}, "more than 32 steps"),
    "sequences in sequences": ({"normalizer": nested("normalizers", 60, {"type": "NFC"})}, "more than 16 sequences deep"),
    "an expression without end": ({"pre_tokenizer": splitting("(a+)+$")}, "may never end"),
    "one in the normalizer": ({"normalizer": replacing(1, "b", {"Regex": "(?:a|a)*c"})[0]}, "may never end"),
    "one in the decoder": ({"decoder": replacing(1, "b", {"Regex": "(?=x*x*x*y)"})[0]}, "may never end"),
    "one deep inside": ({"pre_tokenizer": nested("pretokenizers", 9, splitting("(.*)*,"))}, "may never end"),
    "pieces of no length": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "pieces of no length"),
    "a long template": ({"post_processor": template([MARK] * 10 + [TEXT], MANY)}, "more than 64 tokens around a text"),
    "one in a sequence": (
        {"post_processor": nested("processors", 3, template([MARK, MARK, TEXT], MANY))},
        "more than 64 tokens around a text",
    ),
    "a template for pairs": ({"post_processor": template([TEXT], MANY, [MARK] * 1000)}, "more than 64 tokens around a text"),
    "a text that comes again": ({"post_processor": template([TEXT, TEXT], {})}, "repeats the text"),
    "a token of which nothing is said": ({"post_processor": template([MARK, TEXT], {})}, "of which it says nothing"),
    "a map of more than there is": (
        {"normalizer": mapping(b"\xff\xff\xff\xff" + bytes(99))},
        "its precompiled_charsmap is damaged",
    ),
    "a map of nothing": ({"normalizer": mapping(b"")}, "its precompiled_charsmap is damaged"),
    "a map that leads outside": (
        {"normalizer": mapping((1024).to_bytes(4, "little") + b"\xff\xff\xff\x7f" * 256 + b"a\0")},
        "leads nowhere",
    ),
    "a map that ends early": ({"normalizer": mapping((4).to_bytes(4, "little") + bytes(4) + b"a\0")}, "leads nowhere"),
    "no map": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "not base64"),
    "long words": (PLAIN | {"model": WORDS | {"max_input_chars_per_word": 10**9}}, "max_input_chars_per_word"),
    "a long prefix of parts": (
        PLAIN | {"model": WORDS | {"max_input_chars_per_word": 9, "continuing_subword_prefix": "#" * 99_999}},
        "continuing_subword_prefix has more than 256",
    ),
    "long pieces": (
        PLAIN | {"model": PIECES | {"vocab": [["u", 0.0]] + [["a" * n, -1.0] for n in range(1, 2000)]}},
        "more than 512 characters",
    ),
    "merges without the prefix that is cut off": (
        PLAIN | {"model": MERGING | {"continuing_subword_prefix": "x" * 99}},
        "continues a word without the prefix",
    ),
    "very many added tokens": ({"added_tokens": added(300_000, "a")}, "300000 added tokens"),
    "long added tokens": ({"added_tokens": added(2, "a" * 2_000_000)}, "2 added tokens of 4000002 characters"),
    "added tokens that grow": (
        {"added_tokens": added(300, "a" * 4000), "normalizer": replacing(1, "b" * 4000)[0]},
        "characters when they are normalized",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_take_all_is_refused(name: str) -> None:
    changes, message = HOSTILE[name]
    with pytest.raises(BadCheckpoint, match=rf"\Atokenizer\.json: [^\n]*{message}[^\n]*\Z") as caught:
        Text(Metadata({}, tokenizer=copy.deepcopy(CONTENT) | changes))
    assert len(str(caught.value)) < 400


PUBLISHED = {  # of tokenizers beside those that GGUF has names for
    "EXAONE 4": r"(?:'[sS])|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s+(?!\S)",
    "digits from the right": r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
    "BLOOM": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]",
    "intersections": r"[\p{Lu}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re)?",
    "SentencePiece's": r"\A +| +\z| {2,}",
}


def test_published_expressions_are_fine() -> None:
    for splitter in SPLITTERS:
        for step in splitter.steps:
            assert fault_of(step) is None, (splitter.names, step)
    for name, expression in PUBLISHED.items():
        assert fault_of(expression) is None, name


@pytest.mark.parametrize(
    "expression",
    [
        *("(a+)+$", "(a|a)*b", "(?:a?){30}b", "((a?){5}){5}b", "(?:a{0,40}){0,40}b", "((a+))+(?!b)", "(?:(?:a+)+b)+"),
        *("a*a*b", "a*a*a*$", "(?=.*.*x)", "(?:x(?=(x*x*x*y)))+", "(?!a{1,99}a*c)", "a*(?:b|(?:c|a*d))"),
        *(r"(.*)\1", r"(?<x>\((?:[^()]|\g<x>)*\))", "(?(1)a|b)", "(?~a)b", "(" * 100 + "a" + ")" * 100, "a" * 100_000),
        *("a?" * 30 + "b", "(?:a?b?|c)" * 40 + "$", "(?:a?b?){16}c", "a{1,9}" * 9 + "$", "(?:a{0,4}){8}b"),
        *("a" + "{2}" * 5000, "a" + "*" * 9000, "a" + "?+" * 9000),
    ],
)
def test_expressions_that_may_never_end_are_known(expression: str) -> None:
    assert fault_of(expression)


def test_what_is_no_expression_is_the_librarys_to_say() -> None:
    for expression in ("(", ")", "[a", "[[a]", "a\\", "*", "(?#a", "a{99999999999}", "\\p{L", "", "|", "[]a]+", "(?<!a)b"):
        assert fault_of(expression) is None, expression


@pytest.mark.peers
@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc_cf"])
def test_sentencepieces_own_maps_are_sound_and_damaged_ones_are_not(rule: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    from oss_tools.checkpoints.tokenizers.sentencepiece_model import parse_model, tokenizer_of_model

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"a text about number {n}" for n in range(300)]),
        model_writer=file,
        vocab_size=50,
        normalization_rule_name=rule,
        minloglevel=3,
    )
    model = parse_model(file.getvalue(), "tokenizer.model")
    assert charsmap.fault_of(model.charsmap) is None
    assert charsmap.longest_text(model.charsmap) == 33  # U+FDFA
    check_limits(tokenizer_of_model(model))
    size = int.from_bytes(model.charsmap[:4], "little")
    moved = bytearray(model.charsmap)
    moved[6] |= 0xFF  # the root's children
    moved[7] |= 0x7F
    cut = (size - 1024).to_bytes(4, "little") + model.charsmap[4 : size - 1020] + model.charsmap[4 + size :]
    assert charsmap.fault_of(bytes(moved))
    assert charsmap.fault_of(cut)
    assert charsmap.fault_of(model.charsmap[: 4 + size] + b"\xff\0" * 99)


def test_a_usual_tokenizer_is_within_all_limits() -> None:
    check_limits(CONTENT)
    check_limits(json.loads(json.dumps(CONTENT)) | {"added_tokens": added(10_000, "<extra>")})
