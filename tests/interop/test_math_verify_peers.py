"""Our judgement of mathematical answers beside that of math-verify, which builds on sympy."""

import importlib.util
from pathlib import Path

import pytest

from oss_tools.harness.equivalence import equivalent

pytestmark = pytest.mark.peers
TABLE = Path(__file__).parents[1] / "harness" / "math_answers.py"
# math-verify accepts these: lists are sets to it, words are products of letters, bases are not read
LOOSER = {("1,2,2", "1,2"), ("cat", "act"), ("1011_2", "1011_3")}


def table() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    spec = importlib.util.spec_from_file_location("math_answers_for_peers", TABLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SAME, module.DIFFERENT


def math_verify(answer: str, key: str) -> bool:
    from math_verify import parse, verify

    def latex(text: str) -> str:
        return text if text.startswith(("$", "\\(", "\\[")) else f"${text}$"

    return bool(
        verify(parse(latex(key), parsing_timeout=None), parse(latex(answer), parsing_timeout=None), timeout_seconds=None)
    )


def test_what_math_verify_accepts_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    same, different = table()
    huge = [
        pair for pair in different if "9^{9" in pair[0] or "100000!" in pair[0] or "!!!" in pair[0]
    ]  # sympy computes these
    pairs = [pair for pair in [*same, *different] if pair not in huge]
    agree, only_theirs, only_ours = 0, [], []
    for answer, key in pairs:
        ours, theirs = equivalent(answer, key), math_verify(answer, key)
        agree += ours == theirs
        if theirs and not ours:
            only_theirs.append((answer, key))
        if ours and not theirs:
            only_ours.append((answer, key))
    with capsys.disabled():
        print(
            f"\n{len(pairs)} pairs: {agree} judged alike, {len(only_ours)} accepted by us alone, {len(only_theirs)} by them alone"
        )
    assert set(only_theirs) <= LOOSER
    assert agree > 0.8 * len(pairs)
