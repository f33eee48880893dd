"""Cases of two answers side by side: what is shown of them, and that damaged and hostile ones are refused or stay text."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from oss_tools.errors import BadRequest
from oss_tools.report.html import page
from oss_tools.report.markdown import markdown
from oss_tools.report.reading import load_sheets
from oss_tools.report.table import text

SAMPLE = Path(__file__).with_name("sample-case.json")
RAW = json.loads(SAMPLE.read_text(encoding="utf-8"))
HOSTILE = "</span><script>document.title='taken'</script>{{ 7 * 7 }}\x1b[31m"


def shown(html: str, kind: str) -> list[str]:
    """The texts of elements of a class."""
    return [unescape(found) for found in re.findall(rf'<span class="{kind}[^"]*"[^>]*>(.*?)</span>', html, re.DOTALL)]


def test_every_token_is_shown_with_its_level() -> None:
    html = page(load_sheets([SAMPLE]))
    said = [word for answer in RAW["answers"] for word in answer["texts"]]
    steps = 9
    assert len(shown(html, r"k\d")) == len(said) + steps
    assert "".join(shown(html, r"k\d")[: len(said)]) == "".join(said)
    assert len(re.findall(r'class="k\d parted"', html)) == 2
    hottest = [len([k for k in answer["kld"] if 1 <= k < 3]) for answer in RAW["answers"]]
    assert len(shown(html, "k7")) == sum(hottest) + 1


@pytest.mark.parametrize("show", [page, markdown, lambda sheets: text(sheets[0])])
def test_where_they_part_is_said(show: Callable[[Any], str]) -> None:
    said = show(load_sheets([SAMPLE]))
    place = RAW["parted"]
    assert f"same {place} tokens" in said
    assert "tiny-mxfp4" in said.replace("\\", "")


def test_figures_are_those_of_the_base_s_answer(tmp_path: Path) -> None:
    (sheet,) = load_sheets([SAMPLE])
    base, other = sheet.models
    kld = RAW["answers"][0]["kld"]
    assert base.is_base
    assert not base.figures
    assert other.figures["kld.mean"].value == pytest.approx(sum(kld) / len(kld))
    assert other.figures["kld.max"].value == max(kld)


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    record = copy.deepcopy(RAW)
    record["messages"][-1]["content"] = HOSTILE
    record["answers"][0] |= {"model": HOSTILE, "texts": [HOSTILE] * len(record["answers"][0]["texts"])}
    record["sampling"][HOSTILE] = HOSTILE
    file = tmp_path / "case.json"
    file.write_text(json.dumps(record))
    sheets = load_sheets([file])
    assert "<script" not in page(sheets)
    assert "{{ 7 * 7 }}" in page(sheets)
    for document in (markdown(sheets), text(sheets[0])):
        assert "\x1b" not in document
    assert not re.search(r"(?<!\\)<", markdown(sheets))  # a backslash makes it text


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "answers: two": lambda r: r["answers"].pop(),
    "one model": lambda r: r["answers"][0].update(model=r["answers"][1]["model"]),
    "kld: 37 values": lambda r: r["answers"][0]["kld"].pop(),
    "kld: a divergence": lambda r: r["answers"][0]["kld"].__setitem__(0, -1),
    "other_logprob: the logarithm": lambda r: r["answers"][0]["other_logprob"].__setitem__(0, 800),
    "other_top: a text": lambda r: r["answers"][0]["other_top"].__setitem__(0, []),
    "the answers part at 21": lambda r: r.update(parted=3),
    "is missing": lambda r: r.pop("sampling"),
    "text is wanted": lambda r: r["answers"][1]["texts"].__setitem__(2, 7),
    "tokens: 1 to": lambda r: [r["answers"][0][name].clear() for name, v in r["answers"][0].items() if isinstance(v, list)],
    "schema 2": lambda r: r.update(schema=2),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_cases_are_refused_by_the_place(message: str, tmp_path: Path) -> None:
    record = copy.deepcopy(RAW)
    DAMAGE[message](record)
    file = tmp_path / "case.json"
    file.write_text(json.dumps(record))
    with pytest.raises(BadRequest, match=message) as error:
        load_sheets([file])
    assert str(file) in str(error.value)
