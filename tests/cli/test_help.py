"""The help of every verb reads well: whole words, sentences, names for values, and the same option told alike by all verbs."""

import os
import re
import subprocess
import sys
from functools import cache

import pytest

from oss_tools.cli import main as cli

WIDTHS = (60, 120)
SHARED = ("threads", "device", "backend", "activations", "seed", "quiet", "as_json", "temperature", "memory", "speculate")


@cache
def shown(verb: str, width: int) -> str:
    command = [sys.executable, "-m", "oss_tools", *verb.split(), "--help"]
    environment = {**os.environ, "COLUMNS": str(width), "TERMINAL_WIDTH": str(width)}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("verb", cli.verbs())
def test_no_word_is_broken_and_no_line_is_too_long(verb: str, width: int) -> None:
    text = shown(verb, width).partition("\n  Examples:")[0]
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if re.search(r"\w-$", line)]
    assert "\u2011" not in text


def test_the_list_of_verbs_is_whole_in_a_narrow_terminal() -> None:
    text = " ".join(shown("", 60).split())
    for verb, file in cli.verbs().items():
        assert f"{verb} {cli.summary(file)}" in text


@pytest.mark.parametrize("verb", cli.verbs())
def test_values_have_names_and_helps_are_sentences(verb: str) -> None:
    text = shown(verb, 120)
    assert not re.findall(r"<\w+|\bINTEGER\b|\bFLOAT\b|x>=", text)
    for parameter in cli.load(verb).params:
        if parameter.name == "help":
            continue
        told = re.sub(r"\s*\[default:.*\]$", "", parameter.help)
        assert told.endswith("."), f"{parameter.name}: {told}"
        assert not told.startswith(("Of ", "To ", "And ", "[")), f"{parameter.name}: {told}"


def test_an_option_that_several_verbs_have_is_named_and_told_alike() -> None:
    found: dict[str, set[tuple[tuple[str, ...], str]]] = {name: set() for name in SHARED}
    for verb in set(cli.verbs()) - {"compare", "eval", "synth", "bench", "fit"}:  # where some of them mean something else
        for parameter in cli.load(verb).params:
            if parameter.name in found:
                found[parameter.name].add((tuple(parameter.opts), parameter.help))
    assert {name: len(told) for name, told in found.items() if len(told) != 1} == {}


def test_usage_names_arguments_as_people_write_them() -> None:
    assert shown("merge", 120).startswith("Usage: oss-tools merge [OPTIONS] BASE ADAPTER... DST\n")
    assert shown("models", 120).startswith("Usage: oss-tools models [OPTIONS] [rm NAME...]\n")
