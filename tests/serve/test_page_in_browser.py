"""The playground in a real browser: talking, branching, comparing; what hostile words do (nothing); whether all can use it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe import find_axe, violations
from browser import Browser, find_chromium
from pairs import DOSE, load_pair
from scripted_engine import scripted_engine
from serving import Running, running
from test_side_by_side import slowed

from oss_tools.chat.tools.calculator import Calculator
from oss_tools.report.reading import load_sheets
from oss_tools.serve.settings import Settings

pytestmark = pytest.mark.slow
BUILD = Path(__file__).parents[2] / "build"
WRONG = ("Runtime.exceptionThrown", "Log.entryAdded")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium(BUILD / "chromium")
    if program is None:
        assert not os.environ.get("CI"), "no Chromium: install one, or node and npm, which fetch it"
        pytest.skip("no Chromium, nor npm to fetch it")
    with Browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = Settings(port=0, tools={"calculator": Calculator()})
    with running(load_pair(tmp_path_factory.mktemp("pair")), settings) as found:
        yield found


class Page:
    """The playground, as a person has it before him."""

    def __init__(self, browser: Browser, server: Running, width: int = 1280, scheme: str = "light") -> None:
        self.browser, self.address = browser, server.address
        browser.open(server.address, width, scheme=scheme)
        self.wait("'ready' in document.body.dataset")
        self.value("sessionStorage.clear()")
        browser.open(server.address, width, scheme=scheme)
        self.wait("'ready' in document.body.dataset")

    def value(self, expression: str) -> Any:
        return self.browser.value(expression)

    def wait(self, expression: str) -> None:
        end = time.monotonic() + 120
        while not self.value(f"!!({expression})"):
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.05)

    def write(self, field: str, text: str) -> None:
        """Into a field, as if it had been typed."""
        there = f"document.getElementById({json.dumps(field)})"
        self.value(f"{there}.value = {json.dumps(text)}, {there}.dispatchEvent(new Event('input', {{bubbles: true}}))")

    def press(self, key: str) -> None:
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        for kind in ("keyDown", "keyUp"):
            self.browser.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text if kind == "keyDown" else "")

    def click(self, selector: str) -> None:
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def say(self, text: str) -> None:
        """Asks and waits for the answer."""
        before = self.value("document.querySelectorAll('.turn').length")
        self.write("prompt", text)
        self.value("document.getElementById('prompt').focus()")
        self.press("Enter")
        self.wait(f"document.querySelectorAll('.turn').length == {before + 2}")
        self.wait("!('busy' in document.body.dataset)")

    def texts(self, selector: str) -> list[str]:
        return self.value(f"[...document.querySelectorAll({json.dumps(selector)})].map(found => found.textContent)")

    def check(self, name: str, width: int) -> None:
        """Nothing was fetched elsewhere, nothing failed, nothing is too wide, and axe finds nothing."""
        asked = [p["request"]["url"] for method, p in self.browser.events if method == "Network.requestWillBeSent"]
        assert [url for url in asked if not url.startswith((self.address, "blob:"))] == []
        assert [p for method, p in self.browser.events if method in WRONG] == []
        for part in ("document.documentElement", "document.getElementById('main')"):
            assert self.value(f"{part}.scrollWidth") <= width
        (BUILD / "screenshots").mkdir(parents=True, exist_ok=True)
        self.browser.screenshot(BUILD / "screenshots" / f"playground-{name}.png")
        axe = find_axe(BUILD / "axe")
        assert axe is None or violations(self.browser, axe) == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "light"), (375, "dark")])
def test_a_conversation_with_a_call(browser: Browser, server: Running, width: int, scheme: str) -> None:
    page = Page(browser, server, width, scheme)
    page.check(f"welcome-{width}-{scheme}", width)
    page.click("[name=tool]")
    page.write("temperature", "0")
    page.say("What is 17 + 26?")
    assert page.texts(".call header b") == ["calculator"]
    assert page.texts(".call pre.result") == ["43"]
    assert page.texts(".turn.assistant .prose")[-1] == "43"
    assert "tokens/s · first token" in page.texts(".stats")[0]
    assert page.value("document.querySelector('details.fold').open") is False
    page.click("details.fold summary")
    page.check(f"chat-{width}-{scheme}", width)
    page.click("#open-settings")
    page.check(f"settings-{width}-{scheme}", width)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_two_models_side_by_side(browser: Browser, server: Running, tmp_path: Path, width: int, scheme: str) -> None:
    page = Page(browser, server, width, scheme)
    page.write("seed", "7")
    page.value("document.activeElement.blur()")
    page.press("2")
    page.write("both", DOSE)
    page.click("#run-both")
    page.wait("document.getElementById('save-case')")
    said = page.texts("#parted")[0]
    assert said.startswith("The same ")
    assert len(page.texts(".token.forked")) == 2
    tokens = page.value("[...document.querySelectorAll('.pane')].map(pane => pane.querySelectorAll('.token').length)")
    assert page.value("[...document.querySelectorAll('.token')].every(token => /k[0-8]/.test(token.className))")
    page.value("document.querySelector('.tokens').focus()")
    page.press("End")
    assert page.texts("[aria-selected=true]") == ["<|return|>"]
    assert f"token {tokens[0]} of {tokens[0]}" in page.texts(".detail")[0]
    page.press("Home")
    assert len(page.texts(".token.twin")) == 1
    page.check(f"side-by-side-{width}-{scheme}", width)
    browser.ask("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click("#save-case")
    file = tmp_path / "side-by-side.json"
    end = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.05)
    (sheet,) = load_sheets([file])
    assert sheet.case
    assert [len(answer.tokens) for answer in sheet.case.answers] == tokens


def test_questions_and_answers_have_branches(browser: Browser, server: Running, tmp_path: Path) -> None:
    page = Page(browser, server)
    page.write("temperature", "0")
    page.say("What is 8 * 7?")
    page.value("document.activeElement.blur()")
    page.press("e")
    page.value("document.querySelector('.edit textarea').value = 'What is 9 * 7?'")
    page.press("Enter")
    page.wait("document.querySelectorAll('.turn').length == 2 && !('busy' in document.body.dataset)")
    assert page.texts(".turn .said") == ["What is 9 * 7?"]
    assert page.texts(".turn.assistant .prose") == ["63"]
    page.value("document.activeElement.blur()")
    page.press("r")
    page.wait("!('busy' in document.body.dataset)")
    assert [text.strip() for text in page.texts(".branch")] == ["‹ 2/2 ›", "‹ 2/2 ›"]
    page.click(".turn.user .branch button")
    assert page.texts(".turn.assistant .prose") == ["56"]
    browser.ask("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click("#export")
    end = time.monotonic() + 60
    while not (tmp_path / "conversation.json").exists():
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.05)
    exported = json.loads((tmp_path / "conversation.json").read_text())
    assert [turn["role"] for turn in exported["turns"]] == ["user", "assistant", "user", "assistant", "assistant"]
    page.press("n")
    assert page.texts(".turn") == []
    given = json.dumps(json.dumps(exported))
    page.value(
        f"(() => {{ const files = new DataTransfer(); files.items.add(new File([{given}], 'c.json'));"
        "const field = document.getElementById('import-file'); field.files = files.files;"
        "field.dispatchEvent(new Event('change')); })()"
    )
    page.wait("document.querySelectorAll('.turn').length == 2")
    assert page.texts(".turn.assistant .prose") == ["56"]


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "conversation", "schema": 1, "turns": [{"id": 1, "parent": 1}]}'])
def test_files_that_are_no_conversation_are_refused(browser: Browser, server: Running, text: str) -> None:
    page = Page(browser, server)
    page.value(
        f"(() => {{ const files = new DataTransfer(); files.items.add(new File([{json.dumps(text)}], 'c.json'));"
        "const field = document.getElementById('import-file'); field.files = files.files;"
        "field.dispatchEvent(new Event('change')); })()"
    )
    page.wait("!document.getElementById('notice').hidden")
    assert page.texts("#notice")[0].startswith("c.json: ")


def test_hostile_words_are_only_words(browser: Browser) -> None:
    words = (
        "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">\n\n"
        "![dog](https://example.invalid/dog.png) [bank](javascript:document.title='taken') "
        "[your bank](https://example.invalid/bank)\n\n```html\n<iframe src='https://example.invalid'></iframe>\n```\n\n"
        "| a | b |\n|---|---|\n| <b>x</b> | `y` |\n\n1. **one**\n2. _two_\n   - three\n"
    )
    answer = f"<|channel|>analysis<|message|>{words}<|end|><|start|>assistant<|channel|>final<|message|>{words}<|return|>"
    with running({"hostile": scripted_engine(answer)}) as server:
        page = Page(browser, server)
        page.say("Hello")
        assert page.value("document.title") == "Playground · oss-tools"
        assert page.value("document.querySelectorAll('main :is(script, img, iframe, b)').length") == 0
        assert page.texts(".prose td") == ["<b>x</b>", "y"]
        assert page.texts(".prose strong, .prose em") == ["one", "two"]
        assert page.texts(".prose li li") == ["three"]
        addresses = page.value("[...document.querySelectorAll('.prose a')].map(link => link.href)")
        assert addresses == ["https://example.invalid/dog.png", "https://example.invalid/bank"]
        assert "(https://example.invalid/bank)" in page.texts(".prose")[0]
        page.check("hostile", 1280)


def test_an_answer_can_be_stopped(browser: Browser) -> None:
    with running({"slow": slowed()}) as server:
        page = Page(browser, server)
        page.write("prompt", "Hello")
        page.click("#send")
        page.wait("document.querySelector('.prose.writing')")
        page.press("Escape")
        page.wait("!('busy' in document.body.dataset)")
        assert page.texts(".broken") == ["stopped"]
        while server.models["slow"].scheduler.stats.running:  # else the test runs out of time
            time.sleep(0.1)


def test_a_key_is_asked_for(browser: Browser, scripted: Callable[..., Running]) -> None:
    answer = "<|channel|>final<|message|>Good day.<|return|>"
    server = scripted(answer, settings=Settings(port=0, api_key="secret"))
    browser.open(server.address, 1280)
    page = Page.__new__(Page)
    page.browser, page.address = browser, server.address
    page.wait("document.getElementById('settings').open")
    page.value("sessionStorage.setItem('key', 'secret')")
    page = Page.__new__(Page)
    page.browser, page.address = browser, server.address
    browser.open(server.address, 1280)
    page.wait("'ready' in document.body.dataset")
    page.say("Hello")
    assert page.texts(".turn.assistant .prose") == ["Good day."]
