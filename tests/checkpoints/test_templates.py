"""Chat templates by name: where folders and GGUF files keep them, and that none is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oss_tools.checkpoints import Metadata, templates
from oss_tools.checkpoints.companions import companion_files, read_metadata
from oss_tools.errors import BadCheckpoint

BOTH = {"default": "{{ a }}", "tool_use": "{{ b }}"}
LISTED = [{"name": name, "template": text} for name, text in BOTH.items()]


def folder(path: Path, config: object = None, files: dict[str, str] | None = None) -> Path:
    (path / "additional_chat_templates").mkdir(parents=True)
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": config}))
    for name, content in (files or {}).items():
        (path / name).write_text(content)
    return path


FOLDERS = {
    "text": ("{{ a }}", {}, {"default": "{{ a }}"}),
    "list": (LISTED, {}, BOTH),
    "object": (BOTH, {}, BOTH),
    "file": (None, {"chat_template.jinja": "{{ f }}"}, {"default": "{{ f }}"}),
    "files": (
        None,
        {"chat_template.jinja": "{{ f }}", "additional_chat_templates/tool_use.jinja": "{{ g }}"},
        {"default": "{{ f }}", "tool_use": "{{ g }}"},
    ),
    "files before the list": (LISTED, {"chat_template.jinja": "{{ f }}"}, {"default": "{{ f }}"}),
    "only another": (None, {"additional_chat_templates/rag.jinja": "{{ r }}"}, {"rag": "{{ r }}"}),
    "a processor's": (None, {"chat_template.json": '{"chat_template": "{{ p }}"}'}, {"default": "{{ p }}"}),
    "none": (None, {}, {}),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_place_is_read_and_written_again(kind: str, tmp_path: Path) -> None:
    config, files, expected = FOLDERS[kind]
    source = folder(tmp_path / "a", config, files)
    metadata = read_metadata(source, {})
    assert templates.by_name(metadata) == expected
    assert metadata.chat_template == expected.get("default")
    assert "chat_template" not in metadata.tokenizer_config
    copy = folder(tmp_path / "b")
    for name, content in companion_files(metadata).items():
        (copy / name).write_bytes(content)
    again = read_metadata(copy, {})
    assert templates.by_name(again) == expected
    assert again.remarks == ()


@pytest.mark.peers
@pytest.mark.parametrize("kind", [kind for kind in FOLDERS if kind not in ("a processor's", "none")])
def test_transformers_takes_the_same_templates(kind: str, tmp_path: Path) -> None:
    """From the source and from our copy; chat_template.json is read by its processors only."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    config, files, expected = FOLDERS[kind]
    source = folder(tmp_path / "a", config, files)
    copy = folder(tmp_path / "b")
    for name, content in companion_files(read_metadata(source, {})).items():
        (copy / name).write_bytes(content)
    for path in (source, copy):
        tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(path / "tokenizer.json"))
        found = transformers.PreTrainedTokenizerFast.from_pretrained(path).chat_template
        assert ({"default": found} if isinstance(found, str) else found) == expected


def test_two_that_differ_are_told(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", "{{ a }}", {"chat_template.jinja": "{{ f }}"})
    (remark,) = read_metadata(source, {}).remarks
    assert "tokenizer_config.json holds other chat templates than chat_template.jinja" in remark
    same = folder(tmp_path / "b", "{{ f }}", {"chat_template.jinja": "{{ f }}"})
    assert read_metadata(same, {}).remarks == ()


@pytest.mark.parametrize("value", [7, ["{{ a }}"], [{"name": "default"}], {"default": None}, [{"name": 1, "template": "x"}]])
def test_what_is_no_template_is_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"tokenizer_config\.json: chat_template is neither a text nor a list"):
        read_metadata(folder(tmp_path / "a", value), {})


@pytest.mark.peers
def test_gguf_keys_are_those_of_gguf_py(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_chat_template([*LISTED, {"name": "rag-2", "template": "{{ c }}"}])
    theirs = {key: field.value for key, field in writer.kv_data[0].items() if "chat_template" in key}
    theirs["tokenizer.chat_templates"].sort()
    ours = templates.to_gguf(Metadata({}, **templates.fields(BOTH | {"rag-2": "{{ c }}"})))
    assert ours == theirs
    assert templates.of_gguf(ours, "a.gguf") == BOTH | {"rag_2": "{{ c }}"}


def test_a_key_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(BadCheckpoint, match=r"a\.gguf: key tokenizer\.chat_template\.x is of the wrong type"):
        templates.of_gguf({"tokenizer.chat_template.x": 1}, "a.gguf")
    with pytest.raises(BadCheckpoint, match="has no name for a chat template"):
        templates.of_gguf({"tokenizer.chat_template.../x": "t"}, "a.gguf")
