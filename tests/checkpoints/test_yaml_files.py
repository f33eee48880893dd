"""YAML from strangers: what it costs is limited as it will be walked through, and what is wrong is one line with its place."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from oss_tools.checkpoints.companions import _front_matter
from oss_tools.checkpoints.yaml_files import MAX_DEPTH, MAX_VALUES, check_yaml, parse_yaml, read_yaml
from oss_tools.convert.recipe import load_recipe
from oss_tools.convert.synth import load_shape
from oss_tools.errors import BadCheckpoint, BadRecipe
from oss_tools.report.rules import load_gate
from oss_tools.resources import resource

TENFOLD = "v0: &v0 [o, o, o, o, o, o, o, o, o, o]\n" + "".join(
    f"v{i}: &v{i} [{', '.join([f'*v{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGED = "m0: &m0 {k: 1}\n" + "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}\n" for i in range(1, 12))
AS_KEYS = "k0: &k0 {a: b}\n" + "".join(f"k{i}: &k{i} {{x: *k{i - 1}, y: *k{i - 1}}}\n" for i in range(1, 40))
DEEPENED = "d0: &d0 [o]\n" + "".join(f"d{i}: &d{i} [*d{i - 1}]\n" for i in range(1, 3 * MAX_DEPTH))

REFUSED = [
    (TENFOLD, f"line 5: more than {MAX_VALUES} values"),
    (MERGED, "more than"),
    (AS_KEYS, "more than"),
    (f"x: [{'o, ' * (MAX_VALUES + 1)}]", "more than"),
    (DEEPENED, f"more than {MAX_DEPTH} lists and mappings in each other"),
    ("[" * 100_000, "in each other"),
    ("- " * 100_000 + "o", "in each other"),
    ("a: &a [o, *a]", "line 1: the alias .a stands within what it names"),
    ("a: 1\nb: &b\n  c: *b", "line 3: the alias .b"),
    ("a: 1\nb: 2\na: 3", "line 3: the key 'a' occurs twice"),
    ("t: {a: 1, 'a': 2}", "line 1: the key 'a' occurs twice"),
    ("timeout: 1:30", "line 1: '1:30' is a number to the base 60"),
    ("x: " + ":".join(["59"] * 200_000), "base 60"),
    ("x: 1:30.5", "base 60"),
    ("x: " + "9" * 10_000, "line 1: a number of 10000 digits"),
    ("x: 0x" + "f" * 10_000, "digits"),
    ("x: 0b" + "1" * 10_000, "digits"),
    ("x: 1.0e+999", "larger than any number"),
    ("x: !!int seven", "line 1: no such value: 'seven'"),
    ("x: !!bool perhaps", "no such value"),
    ("x: !!timestamp soon", "no such value"),
    ("x: 2026-02-31", "no such value"),
    ('x: "\\ud800"', "half a surrogate pair"),
    ("x: !!python/name:os.system", "could not determine a constructor"),
    ("x: !!python/object/new:os.system [id]", "could not determine a constructor"),
    ("? [a]\n: b", "unhashable"),
    ("a: 1\n---\nb: 2", "another document"),
    ("a: \x00", "special characters are not allowed"),
    ("a: *unknown", "undefined alias"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_is_refused_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, -2, 0x1f, 1_000, 2.5, 1.0e+3, yes, ~, 2026-01-31]\nb: 'text: with'\nc: .inf",
        "base: &base {x: 1, y: 2}\nmine: {<<: *base, x: 3}\nboth: [*base, *base]",
        "# only a remark",
        "'1:30'",
        "Zürich: [ö, 日本, 😀]",
    ],
)
def test_what_is_fine_is_read_as_pyyaml_reads_it(text: str) -> None:
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml(text, texts_only=True) == yaml.load(text, Loader=yaml.BaseLoader)


def test_the_files_that_travel_along_are_read_as_pyyaml_reads_them() -> None:
    files = sorted(resource("configs").glob("*/*.yaml"))
    assert len(files) > 10
    for file in files:
        assert read_yaml(file) == yaml.safe_load(file.read_text("utf-8")), file


@pytest.mark.parametrize("text", [TENFOLD, MERGED, "rules: 1:30", "rules: []\nrules: []", "x: " + "9" * 5000, DEEPENED])
@pytest.mark.parametrize(("load", "error"), [(load_recipe, BadRecipe), (load_gate, BadRecipe), (load_shape, BadCheckpoint)])
def test_every_file_that_a_user_hands_in_is_held_against_the_limits(
    tmp_path: Path, load: Any, error: type[Exception], text: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(error, match=r"mine\.yaml: cannot be read.*line ") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_file_is_a_regular_one_and_not_large(tmp_path: Path) -> None:
    device = tmp_path / "endless.yaml"
    device.symlink_to("/dev/zero")
    with pytest.raises(BadCheckpoint, match="not a regular file"):
        read_yaml(device)
    (tmp_path / "large.yaml").write_text("x" * 2000)
    with pytest.raises(BadRecipe, match="larger than the 1000 bytes"):
        read_yaml(tmp_path / "large.yaml", BadRecipe, 1000)


def test_files_of_other_programs_keep_their_tags_but_not_their_bombs(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text("process_docs: !function utils.docs")
    check_yaml(path, BadRecipe)
    path.write_text("process_docs: !function utils.docs\n" + TENFOLD)
    with pytest.raises(BadRecipe, match="line 6: more than"):
        check_yaml(path, BadRecipe)


def test_a_model_card_whose_front_matter_is_a_bomb_gives_no_facts() -> None:
    assert _front_matter(f"---\nlicense: mit\n{TENFOLD}\n---\n") == {}
    assert _front_matter("---\nlicense: mit\ntags: [a, b]\n---\n") == {"license": "mit", "tags": ["a", "b"]}
