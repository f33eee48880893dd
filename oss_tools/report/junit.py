"""Verdicts and scores as JUnit XML, which CI systems show: every rule and every task is a test case."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from oss_tools.report.figures import Figure
from oss_tools.report.gates import Outcome, Verdict
from oss_tools.report.metrics import formatted_interval
from oss_tools.report.sheet import Sheet

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # https://www.w3.org/TR/xml/#charsets


def junit(sheets: Sequence[Sheet], verdicts: Sequence[Verdict] = ()) -> str:
    """The XML. A task fails where a rule on it failed: without a gate, nothing does."""
    root = ET.Element("testsuites", name="oss-tools")
    for number, sheet in enumerate(sheets):
        verdict = verdicts[number] if verdicts else None
        if verdict:
            _suite(root, f"gate {verdict.gate.name}", [_rule_case(outcome) for outcome in verdict.outcomes])
        failed = {(o.candidate, o.metric): o for o in verdict.failed} if verdict else {}
        cases = [
            _task_case(model.name, metric, figure, failed.get((model.name, metric)))
            for model in sheet.models
            for metric, figure in model.figures.items()
            if metric.startswith(("task.", "perplexity"))
        ]
        _suite(root, f"tasks: {sheet.title}", cases)
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, name: str, cases: list[ET.Element]) -> None:
    suite = ET.SubElement(root, "testsuite", name=_text(name), tests=str(len(cases)), errors="0", time="0")
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    suite.extend(cases)


def _rule_case(outcome: Outcome) -> ET.Element:
    name = outcome.rule.title if outcome.metric == outcome.rule.metric else f"{outcome.rule.title} [{outcome.metric}]"
    case = _case(f"gate.{outcome.candidate or 'all'}", name)
    if outcome.status == "skip":
        ET.SubElement(case, "skipped", message=_text(outcome.message))
    elif outcome.status == "fail":
        _failure(case, outcome)
    else:
        ET.SubElement(case, "system-out").text = _text(outcome.message)
    return case


def _task_case(model: str, metric: str, figure: Figure, failed: Outcome | None) -> ET.Element:
    case = _case(f"task.{model}", metric.removeprefix("task."))
    if failed:
        _failure(case, failed)
    words = formatted_interval(metric, figure.interval)
    if figure.difference:
        change = figure.difference
        low, high = (100 * bound for bound in change.bounds)
        words += f"; {100 * change.value:+.1f} points from the base (95 %: {low:+.1f} to {high:+.1f})"
        words += ", no evidence of a difference" if figure.noise else ", evidence of a difference"
    ET.SubElement(case, "system-out").text = _text(words)
    return case


def _case(classname: str, name: str) -> ET.Element:
    return ET.Element("testcase", classname=_text(classname), name=_text(name), time="0")


def _failure(case: ET.Element, outcome: Outcome) -> None:
    failure = ET.SubElement(case, "failure", message=_text(outcome.message), type="gate")
    failure.text = _text("\n".join([outcome.message, *outcome.details]))


def _text(text: str) -> str:
    """The text without characters that XML cannot hold."""
    return NOT_XML.sub("�", text)
