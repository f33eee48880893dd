"""Two checkpoints with equal tensors that are not one model: what differs is named, and nothing that only describes."""

import json
import shutil
from pathlib import Path

import pytest
from edits import copy_with, put, sentencepiece, swap_merges, swap_tokens
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.models import open_checkpoint
from oss_tools.resources import resource
from oss_tools.verify import compare_said, verify
from oss_tools.verify.differences import in_words, same

TINY = resource("tiny/checkpoint")
QUESTION = "{% for m in messages %}{{ m.content }}{% endfor %}"


def differences(a: Path, b: Path) -> dict[str, tuple[str | None, str | None]]:
    with open_checkpoint(a) as one, open_checkpoint(b) as two:
        return {d.name: (d.a, d.b) for d in compare_said(one, two).differences}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as GGUF."""
    target = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    done = CliRunner().invoke(app, ["convert", str(TINY), str(target), "-q"])
    assert done.exit_code == 0, done.output
    return target


# ---- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        (["sliding_window"], 64, "sliding_window"),
        (["num_experts_per_tok"], 1, "num_experts_per_tok"),
        (["rms_norm_eps"], 1e-6, "rms_norm_eps"),
        (["swiglu_limit"], 6.5, "swiglu_limit"),
        (["rope_theta"], 10000.0, "rope"),
        (["rope_scaling", "factor"], 16.0, "rope"),
    ],
)
def test_a_changed_configuration_is_named(
    tiny_gpt_oss: Path, tmp_path: Path, path: list[str], value: float, name: str
) -> None:
    def edit(config: dict) -> None:
        put(*path, value=value)(config)
        config["experts_per_token"] = config["num_experts_per_tok"]  # another name of the same

    found = differences(tiny_gpt_oss, copy_with(tiny_gpt_oss, tmp_path / "b", "config.json", edit))
    assert len(found) == 1
    (field, (_, b)), *_ = found.items()
    assert field.startswith(f"config.{name}")
    assert in_words(value) in str(b)


def test_what_only_describes_does_not_count(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    def edit(config: dict) -> None:
        config |= {"torch_dtype": "float32", "_name_or_path": "elsewhere", "transformers_version": "0.1", "use_cache": False}

    other = copy_with(tiny_gpt_oss, tmp_path / "b", "config.json", edit)
    (other / "README.md").write_text("---\nlicense: mit\n---\nAnother card.\n")
    assert differences(tiny_gpt_oss, other) == {}


def test_numbers_are_compared_as_gguf_holds_them() -> None:
    assert same(1e-5, 9.999999747378752e-06)
    assert same(7, 7.0)
    assert not same(1e-5, 1.0001e-5)
    assert not same(16_777_216, 16_777_217)
    assert not same(True, 1)
    assert same([1, (2.0, 3)], (1, [2, 3.0]))
    assert not same({"factor": 8.0}, {"factor": 8.0, "truncate": True})


# ---- tokenizer ------------------------------------------------------------------------------------------------------


def test_two_tokens_that_changed_places_are_named(tmp_path: Path) -> None:
    vocab = json.loads((TINY / "tokenizer.json").read_text())["model"]["vocab"]
    changed = copy_with(TINY, tmp_path / "b", "tokenizer.json", swap_tokens("a", "z"))
    found = differences(TINY, changed)
    assert found == {f"tokenizer.token {vocab['a']}": ("'a'", "'z'"), f"tokenizer.token {vocab['z']}": ("'z'", "'a'")}


def test_merges_in_another_order_are_a_difference(tmp_path: Path) -> None:
    (name, (a, b)), *more = differences(TINY, copy_with(TINY, tmp_path / "b", "tokenizer.json", swap_merges(3, 4))).items()
    assert (name, more) == ("tokenizer.merges", [])
    assert "number 3" in str(a)
    assert a != b


def test_merges_as_texts_and_as_pairs_are_one(tmp_path: Path) -> None:
    def edit(content: dict) -> None:
        content["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]

    assert differences(TINY, copy_with(TINY, tmp_path / "b", "tokenizer.json", edit)) == {}


def test_all_pairs_of_a_token_or_one_are_the_same_merges(tmp_path: Path) -> None:
    """As transformers and tiktoken write one vocabulary: every pair that makes a token, at that token's rank."""

    def edit(content: dict) -> None:
        vocab, merges = content["model"]["vocab"], content["model"]["merges"]
        made = dict.fromkeys("".join(m if isinstance(m, list) else m.split(" ")) for m in merges)
        every = [[t[:i], t[i:]] for t in made for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab]
        assert len(every) > len(merges)
        content["model"]["merges"] = every

    found = differences(TINY, copy_with(TINY, tmp_path / "b", "tokenizer.json", edit))
    assert found == {}


def test_another_way_to_split_texts_is_shown_by_a_text(tmp_path: Path) -> None:
    splitter = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    found = differences(TINY, copy_with(TINY, tmp_path / "b", "tokenizer.json", put("pre_tokenizer", value=splitter)))
    assert len(found) == 1
    assert next(iter(found)).startswith("tokenizer.splitting of ")


def test_a_flag_of_an_added_token_counts(tmp_path: Path) -> None:
    edit = put("added_tokens", 5, "special", value=False)  # no token that tokenizer_config.json names, or that ends a turn
    (name, words), *more = differences(TINY, copy_with(TINY, tmp_path / "b", "tokenizer.json", edit)).items()
    assert name.startswith("tokenizer.kind of token")
    assert words == ("special", "added, not special")
    assert more == []


def test_padding_and_truncation_do_not_count(tmp_path: Path) -> None:
    def edit(content: dict) -> None:
        content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}

    found = differences(TINY, copy_with(TINY, tmp_path / "b", "tokenizer.json", edit))
    assert not [name for name in found if not name.startswith("tokenizer.splitting")]  # as far as the program obeys it


def test_an_end_token_that_is_missing_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    a = copy_with(tiny_llama, tmp_path / "a", "generation_config.json", put("eos_token_id", value=[273, 271]))
    b = copy_with(tiny_llama, tmp_path / "b", "generation_config.json", put("eos_token_id", value=[273]))
    ends = {name: words for name, words in differences(a, b).items() if "end token" in name}
    assert list(ends.values()) == [("ends an answer", None)]


def test_a_token_before_every_text_counts(tiny_llama: Path, tmp_path: Path) -> None:
    def edit(content: dict) -> None:
        token = {"id": "<s>", "type_id": 0}
        number = next(t["id"] for t in content["added_tokens"] if t["content"] == "<s>")
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": token}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [number], "tokens": ["<s>"]}},
        }

    found = differences(tiny_llama, copy_with(tiny_llama, tmp_path / "b", "tokenizer.json", edit))
    assert found == {"tokenizer.tokens before a text": (None, "['<s>']")}


def test_a_tokenizer_that_is_missing_is_told_from_another_one(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").unlink()
    ((name, (a, b)),) = differences(tiny_llama, tmp_path / "b").items()
    assert (name, b) == ("tokenizer.tokenizer", None)
    assert "tokens" in str(a)


def test_a_folder_and_its_own_gguf_are_one_model(gguf: Path) -> None:
    with open_checkpoint(TINY) as a, open_checkpoint(gguf) as b:
        found = verify(a, b)
        assert found.equal, found.said
        assert found.remarks == ()


def test_a_gguf_of_another_tokenizer_is_found(gguf: Path, tmp_path: Path) -> None:
    changed = copy_with(TINY, tmp_path / "b", "tokenizer.json", swap_tokens("0", "1"))
    assert len(differences(changed, gguf)) == 2
    assert len(differences(copy_with(TINY, tmp_path / "c", "tokenizer.json", swap_merges(0, 1)), gguf)) == 1


@pytest.fixture(scope="module")
def spaced(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with a tokenizer of SentencePiece's kind, and the GGUF file made of it."""
    folder = tmp_path_factory.mktemp("spaced")
    model = copy_with(tiny_llama, folder / "model", "config.json", put("eos_token_id", value=2))
    (model / "tokenizer.json").write_text(json.dumps(sentencepiece()))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (model / "tokenizer_config.json").write_text(json.dumps(names))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    done = CliRunner().invoke(app, ["convert", str(model), str(folder / "model.gguf"), "-q"])
    assert done.exit_code == 0, done.output
    return model, folder / "model.gguf"


def test_merges_and_the_scores_that_gguf_has_of_them_are_one(spaced: tuple[Path, Path]) -> None:
    with open_checkpoint(spaced[0]) as a, open_checkpoint(spaced[1]) as b:
        found = verify(a, b)
    assert found.equal, found.said
    assert found.remarks == ()


def test_merges_in_another_order_than_gguf_has_them_are_found(spaced: tuple[Path, Path], tmp_path: Path) -> None:
    changed = copy_with(spaced[0], tmp_path / "b", "tokenizer.json", swap_merges(0, 1))
    assert list(differences(changed, spaced[1])) == ["tokenizer.merges"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put("added_tokens", 2, "rstrip", value=True), "'</s>' takes spaces"),
        (
            lambda c: c.update(
                normalizer=None,
                pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
            ),
            "puts a space before texts",
        ),
    ],
    ids=["stripped spaces", "spaces at the beginning"],
)
def test_what_gguf_cannot_say_is_a_remark(spaced: tuple[Path, Path], tmp_path: Path, edit, words: str) -> None:
    changed = copy_with(spaced[0], tmp_path / "b", "tokenizer.json", edit)
    with open_checkpoint(changed) as a, open_checkpoint(spaced[1]) as b:
        said = compare_said(a, b)
    assert said.differences == ()
    (remark,) = said.remarks
    assert words in remark
    assert differences(changed, spaced[0]) != {}  # which a folder can say


# ---- chat templates -------------------------------------------------------------------------------------------------


def test_a_changed_template_is_shown_where_it_parts(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "b")
    file = tmp_path / "b" / "chat_template.jinja"
    file.write_text(file.read_text().replace("assistant", "Assistant", 1))
    ((name, (a, b)),) = differences(TINY, tmp_path / "b").items()
    assert name == "template.default"
    assert "assistant" in str(a)
    assert "Assistant" in str(b)
    assert "line" in str(b)


def test_line_ends_are_no_difference_and_inline_is_the_same_template(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "b")
    file = tmp_path / "b" / "chat_template.jinja"
    template = file.read_text()
    file.write_bytes(template.replace("\n", "\r\n").encode())
    assert differences(TINY, tmp_path / "b") == {}
    inline = copy_with(TINY, tmp_path / "c", "tokenizer_config.json", put("chat_template", value=template))
    (inline / "chat_template.jinja").unlink()
    assert differences(TINY, inline) == {}


def test_a_named_template_of_one_only_is_missing_in_the_other(tiny_llama: Path, tmp_path: Path) -> None:
    named = [{"name": name, "template": QUESTION} for name in ("default", "tool_use")]
    a = copy_with(tiny_llama, tmp_path / "a", "tokenizer_config.json", put("chat_template", value=named))
    b = copy_with(tiny_llama, tmp_path / "b", "tokenizer_config.json", put("chat_template", value=named[:1]))
    assert list(differences(a, b).items()) == [("template.tool_use", (f"{len(QUESTION)} characters", None))]


# ---- the verb -------------------------------------------------------------------------------------------------------


def run(*arguments: object, status: int) -> str:
    done = CliRunner().invoke(app, ["verify", *map(str, arguments), "-q"])
    assert done.exit_code == status, done.output
    return done.stdout


def test_the_verb_names_what_differs_and_only_leaves_parts_out(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    other = copy_with(tiny_gpt_oss, tmp_path / "b", "config.json", put("sliding_window", value=64))
    text = run(tiny_gpt_oss, other, status=1)
    assert "sliding_window" in text
    assert "NOT equal" in text
    record = json.loads(run(tiny_gpt_oss, other, "--json", status=1))
    assert record["differences"] == []
    (found,) = record["model_differences"]
    assert found["what"].startswith("sliding_window")
    assert {**found, "what": ""} == {"part": "config", "what": "", "a": "16", "b": "64", "missing_in": None}
    assert "equal" in run(tiny_gpt_oss, other, "--only", "tensors", status=0)
    assert "tensors" not in run(tiny_gpt_oss, other, "--only", "tokenizer", "--only", "template", status=0)
    run(tiny_gpt_oss, other, "--only", "config", status=1)
    assert CliRunner().invoke(app, ["verify", str(TINY), str(TINY), "--only", "weights"]).exit_code == 2
