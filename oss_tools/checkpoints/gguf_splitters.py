"""How a byte-level BPE splits text before it merges: what GGUF calls by a name, and tokenizer.json spells out.

Names and expressions after llama.cpp (`src/llama-vocab.cpp`), which follows the published tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oss_tools.errors import BadCheckpoint

PRE_HINT = "gguf_pre"  # in tokenizer_config.json: the name of the splitter, where several mean the same or none is known

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
TEKKEN = rf"{_LOWER}|{_UPPER}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
O200K = rf"{_LOWER}{CONTRACTIONS}?|{_UPPER}{CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    + _TAIL
)
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CASED = (  # the letters with an upper and a lower case, which DeepSeek LLM names one by one
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)


@dataclass(frozen=True)
class Splitter:
    """How a byte-level BPE splits text before it merges.

    Attributes:
        names: what GGUF calls it; the first is the one that is written.
        steps: regular expressions (Oniguruma), each of which cuts the pieces of the one before into matches and what lies
            between them.
        ignore_merges: whether a piece that is a token is taken whole, whatever the merges say.
        nfc: whether published tokenizers with it normalize text to NFC first. llama.cpp never does.
    """

    names: tuple[str, ...]
    steps: tuple[str, ...]
    ignore_merges: bool = False
    nfc: bool = False

    def pre_tokenizer(self) -> dict[str, Any]:
        """As tokenizer.json says it."""
        if self.steps[-1] == GPT2:
            digits = [{"type": "Digits", "individual_digits": True} if s == DIGIT else _split(s) for s in self.steps[:-1]]
            parts = [*digits, byte_level(use_regex=True)]
        else:
            parts = [*map(_split, self.steps), byte_level(use_regex=False)]
        return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


SPLITTERS = (
    Splitter(
        (
            *("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum"),
            *("modern-bert", "mpt", "olmo", "jais", "trillion", "granite-docling"),
        ),
        (GPT2,),
    ),
    Splitter(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), (DIGIT, GPT2)),
    Splitter(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        (LLAMA3,),
        ignore_merges=True,
    ),
    Splitter(("smaug-bpe", "dbrx"), (LLAMA3,)),
    Splitter(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (O200K,)),
    Splitter(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open", "megrez"), (QWEN2,), nfc=True
    ),
    Splitter(
        ("deepseek-llm",),
        (
            r"[\r\n]",
            rf"\s?[{_CASED}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            CJK,
            DIGIT,
        ),
    ),
    Splitter(("deepseek-coder",), (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, DIGIT)),
    Splitter(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
        (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", DEEPSEEK3),
    ),
    Splitter(("tekken",), (TEKKEN,), ignore_merges=True),
    Splitter(("default",), (r"[\p{P}\$\+<=>\^~\|]+", GPT2.removesuffix(r"|\s+"), r"\p{N}+", "[0-9][0-9][0-9]")),
)


def splitter_named(name: str) -> Splitter | None:
    """The splitter that GGUF calls so, or None."""
    return next((s for s in SPLITTERS if name in s.names), None)


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _steps_of(pre_tokenizer: Any) -> tuple[str, ...] | None:
    """The regular expressions that a byte-level pre-tokenizer of tokenizer.json amounts to; None for other kinds."""
    parts = [pre_tokenizer]
    steps: list[str] = []
    encodes = False
    while parts:
        part = parts.pop(0)
        kind = part.get("type") if isinstance(part, Mapping) else None
        if encodes or kind is None:
            return None
        if kind == "Sequence" and isinstance(part.get("pretokenizers"), list):
            parts = part["pretokenizers"] + parts
        elif kind == "Digits" and part.get("individual_digits"):
            steps.append(DIGIT)
        elif kind == "Split" and _regex_of(part):
            steps.append(_regex_of(part))
        elif kind == "ByteLevel" and not part.get("add_prefix_space", True):
            encodes = True
            steps += [GPT2] if part.get("use_regex", True) else []
        else:
            return None
    return tuple(steps) if encodes else None


def _regex_of(part: Mapping[str, Any]) -> str:
    """The regular expression by which a Split isolates its matches, in one spelling of several; "" for other splits."""
    pattern = part.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    if not isinstance(regex, str) or (part.get("behavior"), part.get("invert", False)) not in (
        ("Isolated", False),
        ("Removed", True),  # drops what lies between matches; these expressions match everything
    ):
        return ""
    regex = regex.replace("\r", r"\r").replace("\n", r"\n")
    for spelling in (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", r"'(?i:[sdmt]|ll|ve|re)"):
        regex = regex.replace(spelling, CONTRACTIONS)
    for greedy in ("?", "+"):  # possessive; what follows it in these expressions cannot match what it has taken
        regex = regex.replace(f"]{greedy}+", f"]{greedy}")
    return regex


def pre_name(tokenizer: Mapping[str, Any], hint: Any) -> str:
    """What GGUF calls the way in which a byte-level BPE splits text. Raises BadCheckpoint if it has no name."""
    steps = _steps_of(tokenizer.get("pre_tokenizer"))
    ignores = bool(tokenizer["model"].get("ignore_merges"))
    same = [s for s in SPLITTERS if s.steps == steps]
    exact = [s for s in same if s.ignore_merges == ignores or s.steps == (O200K,)]  # o200k's merges reach every token
    if isinstance(hint, str) and hint and (splitter_named(hint) is None or splitter_named(hint) in exact):
        return hint
    if not exact:
        what = f"model.ignore_merges {ignores} beside this pre_tokenizer is" if same else "this pre_tokenizer is"
        raise BadCheckpoint(
            f"tokenizer.json: {what} nothing that llama.cpp is known to have a name for; if you know its name, set "
            f'"{PRE_HINT}" to it in tokenizer_config.json'
        )
    return exact[0].names[0]
