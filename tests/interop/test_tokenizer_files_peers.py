"""Tokenizers as folders keep them: the same tokens as SentencePiece, transformers and llama.cpp give for the same files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gguf_tokenizer_peers import (
    ARCHITECTURE,
    TEXTS,
    llama_tokenizer,
    mixed_texts,
    sentencepiece,
    smollm2,
    trained,
    write_vocabulary,
)

import oss_tools
from oss_tools.checkpoints import Contents, Metadata
from oss_tools.checkpoints.companions import read_metadata
from oss_tools.checkpoints.gguf import GgufReader
from oss_tools.checkpoints.gguf_splitters import splitter_named
from oss_tools.checkpoints.gguf_tokenizer import remarks_on_writing
from oss_tools.checkpoints.gguf_writer import GgufWriter
from oss_tools.checkpoints.tokenizers.sentencepiece_model import parse_model, tokenizer_of_model
from oss_tools.engine import o200k
from oss_tools.engine.text import Text

pytestmark = pytest.mark.peers
CONFIG = {
    "model_type": "llama",
    "vocab_size": 2000,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trains a tokenizer.model, once for each set of options."""
    spm = pytest.importorskip("sentencepiece")
    place = tmp_path_factory.mktemp("sentencepiece")
    (place / "corpus.txt").write_text("\n".join(TEXTS * 3 + mixed_texts(200) + [Path(__file__).read_text()]))
    made: dict[str, Path] = {}

    def make(**options: Any) -> tuple[Path, Any]:
        name = str(len(made))
        path = made.setdefault(json.dumps(options, sort_keys=True), place / f"{name}.model")
        if not path.exists():
            spm.SentencePieceTrainer.train(
                input=str(place / "corpus.txt"),
                model_prefix=str(path.with_suffix("")),
                vocab_size=900,
                hard_vocab_limit=False,
                minloglevel=2,
                **options,
            )
        return path, spm.SentencePieceProcessor(model_file=str(path))

    return make


def text_of(path: Path) -> Text:
    return Text(Metadata({}, tokenizer=tokenizer_of_model(parse_model(path.read_bytes(), str(path)))))


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"byte_fallback": True, "normalization_rule_name": "identity"},
    "as Llama 2": {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
    },
    "no prefix": {"byte_fallback": True, "normalization_rule_name": "identity", "add_dummy_prefix": False},
    "normalizing": {"byte_fallback": True, "normalization_rule_name": "nmt_nfkc"},
    "unknown characters": {"normalization_rule_name": "nmt_nfkc"},
}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("name", OPTIONS)
def test_sentencepiece_gives_the_same_tokens(models: Any, kind: str, name: str) -> None:
    path, peer = models(model_type=kind, **OPTIONS[name])
    text = text_of(path)
    texts = [*TEXTS, *mixed_texts(200), "", " ", "  a "]
    if kind == "unigram":  # of several best ways to cut "aaaa…" either program takes another
        texts = [t for t in texts if "a" * 20 not in t]
    for given_text in texts:
        ids = peer.encode(given_text)
        assert text.encode(given_text, special=False) == ids, repr(given_text)
        if peer.unk_id() not in ids:
            assert text.decode(ids) == peer.decode(ids)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_gives_any_tokens_the_same_text(models: Any, kind: str, data: st.DataObject) -> None:
    """Bytes in any order among words, which make no UTF-8: as many U+FFFD, and nothing else lost."""
    path, peer = models(model_type=kind, **OPTIONS["as Llama 2"])
    text = text_of(path)
    first = data.draw(st.integers(260, peer.get_piece_size() - 1))
    tokens = [first, *data.draw(st.lists(st.integers(3, peer.get_piece_size() - 1), max_size=12))]
    assert text.decode(tokens) == peer.decode(tokens)
    stream = text.stream()
    assert "".join([*map(stream.add, tokens), stream.flush()]) == peer.decode(tokens)


def test_symbols_that_users_defined(models: Any) -> None:
    path, peer = models(model_type="bpe", byte_fallback=True, user_defined_symbols=["<sep>", "[x]"])
    text = text_of(path)
    for given_text in (*TEXTS, "a<sep>b [x]c", "one[x]two<sep><sep>three"):
        if "  [x]" not in given_text and " [x]" not in given_text:  # the space before a symbol goes here
            assert text.encode(given_text, special=False) == peer.encode(given_text), repr(given_text)
    control, _ = models(model_type="bpe", byte_fallback=True, control_symbols=["<sep>"])
    assert text_of(control).special["<sep>"] == text.encode("a<sep>", special=False)[-1]


def test_a_space_goes_before_a_text_that_begins_with_one(tmp_path: Path, models: Any) -> None:
    """Beside symbols that users defined too (as Mistral's v3 has them), and when the tokenizer comes back from GGUF."""
    path, peer = models(model_type="bpe", user_defined_symbols=["[x]"], **OPTIONS["as Llama 2"])
    text = text_of(path)
    metadata = Metadata({"vocab_size": peer.vocab_size()}, tokenizer=tokenizer_of_model(parse_model(path.read_bytes(), "m")))
    gguf = write_vocabulary(tmp_path / "gguf", metadata)
    with GgufReader(gguf) as reader:
        back = Text(reader.metadata({"vocab_size": peer.vocab_size()}))
    (remark,) = remarks_on_writing(metadata)
    assert "llama.cpp puts one behind added tokens too" in remark
    for given_text in (" a", "  two", " ", "\n a", " one[x] two", *TEXTS, *mixed_texts(100)):
        assert text.encode(given_text, special=False) == peer.encode(given_text), repr(given_text)
        assert back.encode(given_text, special=False) == peer.encode(given_text), repr(given_text)


def test_a_sentencepiece_model_through_gguf(tmp_path: Path, models: Any) -> None:
    """llama.cpp cuts text as SentencePiece does where nothing is normalized; where it is, that is said, and read back."""
    for name in ("as Llama 2", "normalizing"):
        path, peer = models(model_type="bpe", **OPTIONS[name])
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        shutil.copy(path, folder / "tokenizer.model")
        (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
        source = read_metadata(folder, {"vocab_size": peer.get_piece_size() + 4})
        assert len(remarks_on_writing(source)) == (name == "normalizing")
        file = write_vocabulary(folder / "gguf", source)
        llama = llama_tokenizer(file)
        with GgufReader(file) as reader:
            back = Text(reader.metadata({}))
        for given_text in [*TEXTS, *mixed_texts(100)]:
            wanted = [1, *peer.encode(given_text)]
            assert back.encode(given_text) == Text(source).encode(given_text) == wanted
            if name == "as Llama 2":
                assert llama.tokenize(given_text.encode(), add_bos=True, special=False) == wanted


# ---- transformers ----------------------------------------------------------------------------------------------------


def folder_of(place: Path, tokenizer: dict[str, Any], config: dict[str, Any], **files: Any) -> Path:
    place.mkdir()
    for name, content in {"tokenizer.json": tokenizer, "tokenizer_config.json": config, "config.json": CONFIG}.items():
        (place / name).write_text(json.dumps(content))
    for name, content in files.items():
        (place / f"{name}.json").write_text(json.dumps(content))
    return place


def gpt2_like() -> dict[str, Any]:
    splitter = splitter_named("gpt-2")
    assert splitter
    found = trained(splitter, ["<|start|>"], 700)
    for token in found["added_tokens"]:  # inside the vocabulary, as most published ones are
        found["model"]["vocab"][token["content"]] = token["id"]
    return found


FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
BESIDE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "decoder": ({"added_tokens_decoder": {"701": {"content": "<b>", **FLAGS, "special": True}}}, {}),
    "decoder that strips": (
        {"added_tokens_decoder": {"701": {"content": "<b>", **FLAGS, "lstrip": True, "rstrip": True, "special": False}}},
        {},
    ),
    "decoder and an older file": (
        {"added_tokens_decoder": {"701": {"content": "<b>", **FLAGS, "special": True}}},
        {"added_tokens": {"<c>": 702}},
    ),
    "older file": ({}, {"added_tokens": {"<b>": 701, "<c>": 702}}),
    "older file, special": ({"additional_special_tokens": ["<c>"]}, {"added_tokens": {"<b>": 701, "<c>": 702}}),
    "map": ({}, {"special_tokens_map": {"pad_token": "<b>", "additional_special_tokens": ["<c>"]}}),
    "names": ({"pad_token": "<b>", "eos_token": "<|start|>", "image_token": "<c>"}, {}),
    "extra": ({"extra_special_tokens": ["<b>", "<c>"]}, {}),
    "extra by name": ({"extra_special_tokens": {"b_token": "<b>"}}, {}),
    "number with a gap": ({"added_tokens_decoder": {"750": {"content": "<b>", **FLAGS, "special": True}}}, {}),
}


@pytest.mark.parametrize("name", BESIDE)
def test_added_tokens_as_transformers_adds_them(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config, files = BESIDE[name]
    tokenizer = gpt2_like()
    folder = folder_of(tmp_path / "m", tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast", **config}, **files)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Text(read_metadata(folder, dict(CONFIG)))
    for given_text in ("a <b> b<c>c <|start|> d", "<b>\n<c> ", "x<b><b>", *TEXTS[:4]):
        ids = theirs(given_text).input_ids
        assert ours.encode(given_text) == ids, repr(given_text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("vocabulary", ["byte-level", "byte fallback"])
@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("template", [True, False])
def test_bos_as_transformers_puts_it(tmp_path: Path, kind: str, vocabulary: str, wanted: bool, template: bool) -> None:
    """tokenizer.json decides, whatever tokenizer_config.json says beside it: in the folder, and in the GGUF file made of it."""
    transformers = pytest.importorskip("transformers")
    content = sentencepiece()
    processor, bos = content["post_processor"], "<s>"
    if vocabulary == "byte-level":
        content, bos = gpt2_like(), "<|start|>"
        number = content["model"]["vocab"][bos]
        processor = json.loads(json.dumps(processor).replace("<s>", bos).replace('"ids": [1]', f'"ids": [{number}]'))
    content["post_processor"] = processor if template else None
    config = {"tokenizer_class": kind, "bos_token": bos, "eos_token": bos, "add_bos_token": wanted, "add_eos_token": wanted}
    folder = folder_of(tmp_path / "m", content, config)
    metadata = read_metadata(folder, dict(CONFIG))
    path = write_vocabulary(tmp_path / "gguf", metadata)
    with GgufReader(path) as reader:
        through = Text(reader.metadata({})).encode("ab")
    ids = transformers.AutoTokenizer.from_pretrained(folder)("ab").input_ids
    assert Text(metadata).encode("ab") == through == ids
    assert bool(metadata.remarks) == (
        wanted or template
    )  # the end of text is never as the configuration wants it, if it does


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_vocab_and_merges_as_transformers_reads_them(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = gpt2_like()
    config = {"tokenizer_class": kind, "eos_token": "<|start|>", "unk_token": "<|start|>", "bos_token": "<|start|>"}
    folder = folder_of(tmp_path / "m", tokenizer, config, vocab=tokenizer["model"]["vocab"])
    (folder / "tokenizer.json").unlink()
    merges = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Text(read_metadata(folder, dict(CONFIG)))
    for given_text in [*TEXTS, "<|start|>a", *mixed_texts(50)]:
        assert ours.encode(given_text) == theirs(given_text).input_ids, repr(given_text)


@pytest.mark.parametrize(
    "config", [{"legacy": False}, {"add_prefix_space": False}, {"legacy": False, "add_eos_token": True}], ids=str
)
def test_a_sentencepiece_model_as_transformers_reads_it(tmp_path: Path, models: Any, config: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("google.protobuf")
    path, _ = models(model_type="bpe", **OPTIONS["as Llama 2"])
    folder = folder_of(tmp_path / "m", {}, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **config})
    (folder / "tokenizer.json").unlink()
    shutil.copy(path, folder / "tokenizer.model")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Text(read_metadata(folder, dict(CONFIG)))
    for given_text in [*TEXTS, "<s>hello</s> x", *mixed_texts(100)]:
        assert ours.encode(given_text) == theirs(given_text).input_ids, repr(given_text)


# ---- llama.cpp -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-bpe", "gpt-2", "qwen2", "gpt-4o"])
def test_without_a_name_for_the_splitter(tmp_path: Path, name: str) -> None:
    splitter = splitter_named(name)
    assert splitter
    metadata = Metadata({"vocab_size": 1600}, tokenizer=trained(splitter, []))
    writer = GgufWriter(tmp_path, Contents("old", [], metadata, ARCHITECTURE))
    (path,) = writer.finish()
    writer.close()
    path.write_bytes(path.read_bytes().replace(b"tokenizer.ggml.pre", b"tokenizer.ggml.prx"))
    llama = llama_tokenizer(path)
    with GgufReader(path) as reader:
        metadata = reader.metadata({})
    assert "tokenizer.ggml.pre is missing" in metadata.remarks[0]
    (metadata.tokenizer or {})["normalizer"] = None
    text = Text(metadata)
    for given_text in [*TEXTS, *mixed_texts(100)]:
        ours = text.encode(given_text, special=False)
        assert ours == llama.tokenize(given_text.encode(), add_bos=False, special=False), repr(given_text)


def test_ends_of_turns_that_a_file_types_as_text(tmp_path: Path) -> None:
    """llama.cpp takes them for control tokens by their names: a template's marks are one token each, and generation stops."""
    llama_cpp = pytest.importorskip("llama_cpp")
    splitter = splitter_named("gpt-2")
    assert splitter
    tokenizer = trained(splitter, [])
    for name in ("<|im_end|>", "<end_of_turn>", "<|end|>", "<|fim_pad|>"):
        tokenizer["model"]["vocab"][name] = len(tokenizer["model"]["vocab"])
    path = write_vocabulary(tmp_path, Metadata({"vocab_size": 1600}, tokenizer=tokenizer))
    llama = llama_tokenizer(path)
    with GgufReader(path) as reader:
        text = Text(reader.metadata({}))
    for name in ("<|im_end|>", "<end_of_turn>", "<|end|>"):
        prompt = f"a{name}\nb"
        assert text.encode(prompt, special=False) == llama.tokenize(prompt.encode(), add_bos=False, special=True)
    vocab = llama_cpp.llama_model_get_vocab(llama._model.model)
    theirs = {n for n in range(1600) if llama_cpp.llama_vocab_is_eog(vocab, n)}
    assert text.stop_tokens == theirs - {11}  # llama.cpp takes token 11 for the end where a file names none


@pytest.mark.parametrize("name", ["tiny", pytest.param("o200k", marks=pytest.mark.slow)])
def test_published_vocabularies_stream_as_the_library_decodes(name: str) -> None:
    """The embedded model's, and gpt-oss's: any tokens, most of them no text."""
    tokenizers = pytest.importorskip("tokenizers")
    if name == "o200k":
        pytest.importorskip("bpe_openai")
        content = o200k.tokenizer_json()
    else:
        content = json.loads((Path(oss_tools.__file__).parent / "tiny" / "checkpoint" / "tokenizer.json").read_text())
    text, peer = Text(Metadata({}, tokenizer=content)), tokenizers.Tokenizer.from_str(json.dumps(content))

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.integers(0, peer.get_vocab_size() - 1), max_size=24))
    def check(tokens: list[int]) -> None:
        stream = text.stream()
        assert "".join([*map(stream.add, tokens), stream.flush()]) == text.decode(tokens) == peer.decode(tokens)

    check()


BUFFER = 32  # bytes of a token that llama-cpp-python's `detokenize` has room for


def test_a_real_vocabulary_streams() -> None:
    """SmolLM2's: any bytes of its tokens, against llama.cpp's bytes."""
    llama = llama_tokenizer(smollm2())
    with GgufReader(smollm2()) as reader:
        text = Text(reader.metadata({}))

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.integers(0, 49151), max_size=16))
    def check(tokens: list[int]) -> None:
        tokens = [n for n in tokens if n not in text.special.values() and len(text.decode([n]).encode()) <= BUFFER]
        data = b"".join(llama.detokenize([n]) for n in tokens)
        stream = text.stream()
        assert "".join([*map(stream.add, tokens), stream.flush()]) == text.decode(tokens) == data.decode("utf-8", "replace")

    check()
