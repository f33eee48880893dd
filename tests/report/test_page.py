"""The page, Markdown and JUnit: what they hold, and that hostile text stays text; the page in a real browser."""

import copy
import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from browser import Browser, find_chromium

from oss_tools.errors import BadRequest
from oss_tools.report.comparison import from_json
from oss_tools.report.gates import judge
from oss_tools.report.html import page
from oss_tools.report.junit import junit
from oss_tools.report.markdown import escaped, markdown
from oss_tools.report.reading import load_sheets
from oss_tools.report.rules import load_gate
from oss_tools.report.sheet import sheet_of

SAMPLE = Path(__file__).with_name("sample-comparison.json")
RAW = json.loads(SAMPLE.read_text(encoding="utf-8"))
HOSTILE = (
    "</pre></svg><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    "{{ 7 * 7 }}\x00\x1b[31m|"
)
BUILD = Path(__file__).parents[2] / "build"


def sheets_and_verdicts(raw=RAW):
    sheet = sheet_of(from_json(raw))
    return [sheet], [judge(load_gate("default"), sheet)]


def hostile_record():
    record = copy.deepcopy(RAW)
    record["model"] = HOSTILE
    worst = record["candidates"][4]
    worst["name"] = HOSTILE
    worst["changes"][0] |= {"prompt": HOSTILE, "answer": HOSTILE, "base_answer": HOSTILE * 200}
    worst["findings"][0]["message"] = HOSTILE
    worst["tasks"][0]["task"] = record["candidates"][0]["tasks"][0]["task"] = HOSTILE
    worst["weight_error"]["cells"][5] |= {"role": HOSTILE, "worst_tensor": HOSTILE}
    worst["fidelity"][0]["text"] = HOSTILE
    record["environment"]["settings"][HOSTILE] = HOSTILE
    return record


class Tags(HTMLParser):
    """Every tag and attribute of a page, and the text of its <pre>."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.pre: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "pre":
            self.pre.append("")

    def handle_data(self, data: str) -> None:
        if self.pre:
            self.pre[-1] += data


def test_the_page_is_one_file_with_all_plots_and_no_scripts() -> None:
    tags = Tags(page(*sheets_and_verdicts())).tags
    assert not {name for name, _ in tags} & {"script", "link", "img", "iframe", "object"}
    assert not [attributes for _, attributes in tags if {"src", "onload", "onclick"} & set(attributes)]
    assert all(attributes["href"].startswith("#") for name, attributes in tags if name == "a")
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {attributes["href"][1:] for name, attributes in tags if name == "a"} <= set(ids)
    assert sum(name == "svg" for name, _ in tags) == 4 + 1 + 1 + 4  # scatter plots, forest, scale, heat maps


def test_hostile_text_stays_text_on_the_page() -> None:
    shown = Tags(page(*sheets_and_verdicts(hostile_record())))
    assert not [name for name, _ in shown.tags if name in ("script", "img")]
    assert not [attributes for _, attributes in shown.tags if any(name.startswith("on") for name in attributes)]
    assert any(HOSTILE.replace("\x00", "")[:60] in text.replace("\x00", "") for text in shown.pre)
    assert not any("49" in text for text in shown.pre)


def test_hostile_text_stays_text_in_markdown_and_junit() -> None:
    sheets, verdicts = sheets_and_verdicts(hostile_record())
    text = markdown(sheets, verdicts)
    assert not re.search(r"(?<!\\)<(?!/?details|/?summary)", text)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "| ---" not in line]
    widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert widths == {4, len(re.findall(r"(?<!\\)\|", rows[-1]))}
    ET.fromstring(junit(sheets, verdicts))


MARKUP = [
    "*bold* __bold__ ~~gone~~ `code` $x^2$",
    "![picture](https://example.org/p.png) [link](javascript:alert(1)) <https://example.org> [^1]",
    "<img src=x onerror=alert(1)> </details> <!-- &lt;b&gt; -->",
    "one | two | three",
    "one\n\n# two\n\n```\nthree",
    "one\r\n===\r\n",
    "# heading",
    "1. list",
    "- [x] task",
    "> quote",
    "+ plus",
    "---",
    "| a |\n|---|\n| b |",
    "ends with \\\\",
    "\\\\| \\\\` \\\\<b>",
    "model_of_ _somebody_",
]
MENTIONS = "@octocat me@example.org #1 GH-2 octocat/repo#3 https://example.org www.example.org http://x.y"


@pytest.mark.parametrize("hostile", MARKUP)
@pytest.mark.parametrize("around", ["{}", "- {}: x", "- **{}**: x", "| a | {} |\n|---|---|\n| b | {} |", "## {}", "x {} x"])
def test_a_name_is_text_for_another_reader_of_markdown(hostile: str, around: str) -> None:
    """markdown-it, which knows nothing of ours: the same blocks and marks as around a harmless name, and the name as text."""
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

    def read(name: str) -> tuple[list[str], str]:
        blocks = reader.parse(around.replace("{}", name))
        kinds = [token.type for block in blocks for token in (block, *(block.children or ())) if token.type != "text"]
        said = "".join(token.content for block in blocks for token in block.children or () if token.type == "text")
        return [kind for kind in kinds if kind != "softbreak"], said

    kinds, said = read(escaped(hostile))
    assert kinds == read("harmless")[0]
    assert " ".join(hostile.split()) in said.replace("\u200b", "")


def test_nobody_is_mentioned_and_nothing_is_a_link() -> None:
    text = escaped(MENTIONS)
    assert text.replace("\u200b", "").replace("\\", "") == MENTIONS
    assert not re.search(r"@\w|#\d|GH-\d|://|www\.", text)
    assert len(escaped("x" * 2_000_000)) < 2000


@pytest.mark.slow
def test_every_name_of_a_record_is_escaped() -> None:
    """Each text of a record, one at a time: what GitHub would make a picture, a mention or a row of is nowhere in the summary."""
    hostile = "x | y\n\n![p](https://example.org/p.png) <img src=x> @octocat #1"

    def spoilt(value: object, way: tuple) -> Iterator[tuple]:
        if isinstance(value, dict | list):
            for name, inner in value.items() if isinstance(value, dict) else list(enumerate(value))[:3]:
                yield from spoilt(inner, (*way, name))
        elif isinstance(value, str):
            yield way

    shown = 0
    for way in spoilt(RAW, ()):
        record = copy.deepcopy(RAW)
        place = record
        for name in way[:-1]:
            place = place[name]
        place[way[-1]] = hostile
        try:
            sheets, verdicts = sheets_and_verdicts(record)
        except BadRequest:
            continue
        text = markdown(sheets, verdicts)
        assert not re.search(r"(?<!\\)\[p\]|https://|@octocat|(?<!\\)#1|(?<!\\)<img", text), way
        shown += "example" in text
        xml = ET.fromstring(junit(sheets, verdicts))
        assert {element.tag for element in xml.iter()} <= {
            "testsuites", "testsuite", "testcase", "failure", "skipped", "system-out",
        }  # fmt: skip
    assert shown > 5


def test_the_base_s_name_is_escaped_in_the_legend() -> None:
    record = json.loads(json.dumps(RAW).replace(f'"{RAW["base"]}"', '"<b> [a](b) @c"'))
    sheet = sheet_of(from_json(record))
    assert "no evidence of a difference from \\<b\\> \\[a\\](b) @\u200bc (base)" in markdown([sheet])


@pytest.mark.parametrize("character", ["\x00", "\x0b", "\x1b", "\x1f", "\ufffe", "\uffff"])
def test_what_xml_cannot_hold_is_not_in_it(character: str) -> None:
    """https://www.w3.org/TR/xml/#charsets; the parser is expat."""
    record = json.loads(json.dumps(hostile_record()).replace(json.dumps(HOSTILE)[1:-1], json.dumps(f"a{character}b")[1:-1]))
    root = ET.fromstring(junit(*sheets_and_verdicts(record)))
    assert any("a�b" in case.get("classname", "") for case in root.iter("testcase"))


def test_markdown_marks_the_best_and_noise_and_names_what_failed() -> None:
    text = markdown(*sheets_and_verdicts())
    row = next(line for line in text.splitlines() if line.startswith("| mxfp4"))
    assert "**5.4 MB**" in row
    assert "78.3 % ≈" in row
    assert "✗ gate default: failed, 4 of 34 checks" in text
    assert "model.layers.3.mlp.experts.down" in text


def test_junit_counts_what_it_holds_and_follows_the_usual_schema() -> None:
    root = ET.fromstring(junit(*sheets_and_verdicts()))
    assert root.tag == "testsuites"
    cases = list(root.iter("testcase"))
    for element in (root, *root):
        inner = list(element.iter("testcase"))
        assert int(element.get("tests", "")) == len(inner)
        assert int(element.get("failures", "")) == sum(case.find("failure") is not None for case in inner)
        assert {"name", "tests", "failures", "errors", "skipped"} <= set(element.keys())
    for case in cases:
        assert {"name", "classname", "time"} == set(case.keys())
        assert {child.tag for child in case} <= {"failure", "skipped", "system-out"}
    failed = {(case.get("classname"), case.get("name")) for case in cases if case.find("failure") is not None}
    assert ("task.q4_0", "math_smoke") in failed
    assert ("gate.q4_0", "nothing is wrong with the weights") in failed
    assert not any(classname.endswith("int8") for classname, _ in failed)


def test_without_a_gate_nothing_fails() -> None:
    root = ET.fromstring(junit(load_sheets([SAMPLE])))
    assert root.get("failures") == "0"
    assert len(list(root.iter("testcase"))) == 5 * (3 + 2) + 4 * 2  # tasks, perplexities, ratios


def test_bench_records_make_a_page_without_plots_of_quality() -> None:
    sheets = load_sheets([Path(__file__).parents[2] / "results" / "bench-small.json"])
    text = page(sheets)
    assert "small.gguf" in text
    assert "<svg" not in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    program = find_chromium(BUILD / "chromium")
    if program is None:
        assert not os.environ.get("CI"), "no Chromium: install one, or node and npm, which fetch it"
        pytest.skip("no Chromium, nor npm to fetch it")
    with Browser(program, tmp_path_factory.mktemp("profile")) as running:
        yield running


VISIBLE = """[...document.querySelectorAll('svg')].map(plot => {
  const box = plot.getBoundingClientRect();
  const parts = [...plot.querySelectorAll('text, rect, circle, path, line')].map(part => part.getBoundingClientRect());
  return {width: box.width, height: box.height, left: box.left, right: box.right, name: plot.querySelector('title').textContent,
          parts: parts.length, outside: parts.filter(p => p.left < box.left - 8 || p.right > box.right + 8).length};
})"""
CONTRAST = """(() => {
  const light = color => { const [r, g, b] = color.match(/[\\d.]+/g).map(v => v / 255).map(
    v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = element => { for (let e = element; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; if (!c.startsWith('rgba(0, 0, 0, 0')) return c; }
    return 'rgb(255, 255, 255)'; };
  const texts = 'p, li, td, th, dd, dt, pre, h1, h2, a, .badge, .detail, summary, text:not(.cell)';
  return [...document.querySelectorAll(texts)].map(e => {
    const style = getComputedStyle(e), svg = e.tagName === 'text';
    const [a, b] = [light(svg ? style.fill : style.color), light(paper(e))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 30)];
  }).sort((a, b) => a[0] - b[0])[0]; })()"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(browser: Browser, tmp_path: Path, width: int, scheme: str) -> None:
    file = tmp_path / "report.html"
    file.write_text(page(*sheets_and_verdicts()), encoding="utf-8")
    browser.open(file.as_uri(), width, scheme=scheme)
    assert browser.value("document.documentElement.scrollWidth") <= width == browser.value("innerWidth")
    plots = browser.value(VISIBLE)
    assert len(plots) == 10
    for plot in plots:
        assert plot["width"] > 300, plot
        assert plot["height"] > 20, plot
        assert plot["left"] >= 0, plot
        assert plot["right"] <= width, plot
        assert plot["parts"] > 10, plot
        assert plot["outside"] == 0, plot
    assert browser.value(CONTRAST)[0] >= 4.5, browser.value(CONTRAST)
    assert is_dark(browser.value("getComputedStyle(document.body).backgroundColor")) == (scheme == "dark")
    assert said(browser) == ([file.as_uri()], [])
    (BUILD / "screenshots").mkdir(parents=True, exist_ok=True)
    picture = browser.screenshot(BUILD / "screenshots" / f"report-{width}-{scheme}.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.stat().st_size > 100_000


def is_dark(color: str) -> bool:
    return sum(map(int, re.findall(r"\d+", color)[:3])) < 3 * 128


def said(browser: Browser) -> tuple[list[str], list[object]]:
    """Addresses that were asked for, and complaints of the console."""
    asked = [p["request"]["url"] for method, p in browser.events if method == "Network.requestWillBeSent"]
    wrong = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    return asked, [p for method, p in browser.events if method in wrong]


@pytest.mark.slow
def test_hostile_text_does_nothing_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page(*sheets_and_verdicts(hostile_record())), encoding="utf-8")
    browser.open(file.as_uri(), 390)
    assert browser.value("document.title") != "taken"
    assert browser.value("document.querySelectorAll('script, img').length") == 0
    assert browser.value("document.documentElement.scrollWidth") <= 390
    assert said(browser) == ([file.as_uri()], [])
