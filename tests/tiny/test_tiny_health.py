"""The health questions: facts that are complete and fair, arithmetic that is right, and no test question in training."""

from __future__ import annotations

import random
import re
from collections import Counter
from fractions import Fraction
from itertools import islice

import pytest

from oss_tools.tiny.doses import divide, multiply
from oss_tools.tiny.health import FORMS, facts, items, key_of
from oss_tools.tiny.items import Item, Split, split_of

NUMBER = re.compile(r"\d+(?:\.\d+)?")
PUBLISHERS = {
    "911.gov",
    "American Board of Medical Specialties",
    "American Diabetes Association",
    "American Heart Association",
    "American Red Cross",
    "American Stroke Association",
    "CDC",
    "European Commission",
    "FDA",
    "ISO 8601",
    "MedlinePlus",
    "NIH Office of Dietary Supplements",
    "NIST SP 811",
    "National Heart Lung and Blood Institute",
    "OpenStax",
    "Royal College of Physicians",
    "USDA",
    "WHO",
}
FACT_IDS = {fact.id: fact for fact in facts()}


def drawn(split: Split, count: int = 4000, seed: int = 7) -> list[Item]:
    return list(islice(items(random.Random(seed), split), count))


@pytest.fixture(scope="module", params=["train", "test"])
def some(request: pytest.FixtureRequest) -> list[Item]:
    return drawn(request.param)


def prompt(item: Item) -> str:
    return item.conversation.messages[0].content


def analysis(item: Item) -> str:
    return item.conversation.messages[1].content


def is_dose(item: Item) -> bool:
    return item.kind.startswith("dose_") or item.kind in ("unit_conversion", "temperature")


def fact_of(item: Item) -> str:
    return "/".join(item.key.split("/")[1:3])


def test_facts_are_complete() -> None:
    found = facts()
    assert len(found) >= 300
    assert len(FACT_IDS) == len(found)
    for fact in found:
        assert len(set(fact.questions)) == len(fact.questions) >= 3, fact.id
        assert fact.source.split(", ")[0] in PUBLISHERS, fact.id
        assert 1 <= len(fact.answer.split()) <= 5, fact.id
        assert len(set(fact.distractors)) == len(fact.distractors) >= 3, fact.id
        assert fact.answer not in fact.distractors, fact.id
        assert fact.answer.lower() in fact.statement.lower(), fact.id
        assert "{" not in fact.statement + "".join(fact.questions), fact.id
        assert fact.statement.endswith("."), fact.id
        assert len(fact.statement.split()) <= 16, fact.id


def test_every_fact_is_trained_in_two_wordings_of_each_form() -> None:
    for fact in facts():
        for form in FORMS:
            trained = [n for n in range(len(fact.questions)) if split_of(key_of(fact, n, form)) == "train"]
            assert len(trained) >= 2, (fact.id, form)


def test_no_two_facts_share_a_question() -> None:
    """So no question of one form can reach both splits under two keys."""
    counts = Counter(question for fact in facts() for question in fact.questions)
    assert [question for question, count in counts.items() if count > 1] == []


def test_facts_of_a_question_never_offer_another_right_answer() -> None:
    """Two facts of one relation and subject are both right answers: neither is offered as wrong."""
    for fact in facts():
        others = {other.answer for other in facts() if other.questions == fact.questions}
        assert not others & set(fact.distractors), fact.id


def test_no_key_and_no_prompt_is_in_both_splits() -> None:
    train, test = drawn("train", 20000), drawn("test", 20000)
    assert not {item.key for item in train} & {item.key for item in test}
    assert not {prompt(item) for item in train} & {prompt(item) for item in test}
    assert {item.kind for item in test} == {item.kind for item in train}
    assert all(split_of(item.key) == "test" for item in test)


def test_the_same_seed_gives_the_same_items() -> None:
    assert drawn("train", 500, seed=3) == drawn("train", 500, seed=3)
    assert drawn("train", 500, seed=3) != drawn("train", 500, seed=4)


def test_the_mix_of_forms() -> None:
    found = drawn("train", 8000)
    choices = sum(prompt(item).endswith("Answer with the letter.") for item in found) / len(found)
    doses = sum(map(is_dose, found)) / len(found)
    assert choices == pytest.approx(0.40, abs=0.03)
    assert doses == pytest.approx(0.38, abs=0.03)


def test_messages(some: list[Item]) -> None:
    for item in some:
        messages = item.conversation.messages
        assert [(message.role, message.channel) for message in messages] == [
            ("user", None),
            ("assistant", "analysis"),
            ("assistant", "final"),
        ]
        assert messages[-1].content == item.answer
        assert item.suite == "health"
        assert item.call is None
        assert 2 <= len(analysis(item).split()) <= 60, analysis(item)


def test_choices(some: list[Item]) -> None:
    letters = Counter()
    for item in some:
        if not item.key.endswith("/choice"):
            continue
        question, *lines, last = prompt(item).split("\n")
        fact = FACT_IDS[fact_of(item)]
        options = dict(line.split(". ", 1) for line in lines)
        assert question in fact.questions
        assert last == "Answer with the letter."
        assert list(options) == ["A", "B", "C", "D"]
        assert len(set(options.values())) == 4
        assert options[item.answer] == fact.answer
        assert set(options.values()) - {fact.answer} <= set(fact.distractors)
        assert fact.statement in analysis(item)
        assert re.findall(r"\b([A-D])\.(?= |$)", analysis(item))[-1] == item.answer
        letters[item.answer] += 1
    assert min(letters.values()) > 0.2 * letters.total()


def test_short_answers(some: list[Item]) -> None:
    for item in some:
        if item.key.endswith("/short"):
            fact = FACT_IDS[fact_of(item)]
            assert item.answer == fact.answer
            assert prompt(item) in fact.questions
            assert fact.statement in analysis(item)


def test_more_effort_is_more_analysis(some: list[Item]) -> None:
    lengths = {
        effort: [len(analysis(item)) for item in some if item.conversation.effort == effort]
        for effort in ("low", "medium", "high")
    }
    means = [sum(found) / len(found) for found in lengths.values()]
    assert means[0] * 1.2 < means[1] < means[2] / 1.2


def numbers_before(text: str, *units: str) -> list[Fraction]:
    """For each unit, the number that stands right before it."""
    found = []
    for unit in units:
        match = re.search(rf"(\d+) {unit}", text)
        assert match, (text, unit)
        found.append(Fraction(match[1]))
    return found


def number_of_kg(text: str) -> Fraction:
    return numbers_before(text, r"kg\b")[0]


SIZES = {
    "g": Fraction(1),
    "mg": Fraction(1, 1000),
    "mcg": Fraction(1, 10**6),
    "kg": Fraction(1000),
    "liters": Fraction(1000),
    "ml": Fraction(1),
    "teaspoons": Fraction(5),
    "tablespoons": Fraction(15),
    "meters": Fraction(100),
    "cm": Fraction(1),
    "mm": Fraction(1, 10),
    "hours": Fraction(60),
    "minutes": Fraction(1),
    "days": Fraction(1440),
    "weeks": Fraction(10080),
}


def converted(text: str) -> Fraction:
    given, unit = re.search(r"(\d+) (?!degrees)([a-z]+)", text).groups()  # type: ignore[union-attr]
    wanted = re.search(r"(?:[Hh]ow many|to) ([a-z]+)", text)[1]  # type: ignore[index]
    return int(given) * SIZES[unit] / SIZES[wanted]


def in_degrees(text: str) -> Fraction:
    given, scale = re.search(r"(\d+) degrees ([CF])", text).groups()  # type: ignore[union-attr]
    return Fraction(9 * int(given), 5) + 32 if scale == "C" else Fraction(5 * (int(given) - 32), 9)


def expected(item: Item) -> Fraction:
    """The answer worked out again from the words of the question alone."""
    text = prompt(item)
    if item.kind == "dose_weight":
        return numbers_before(text, "mg per kg")[0] * number_of_kg(text.replace("mg per kg", ""))
    if item.kind == "dose_tablets":
        small, large = sorted(map(Fraction, NUMBER.findall(text)))
        return large / small
    if item.kind == "dose_syrup":
        strength, volume = re.search(r"(\d+) mg (?:per|in) (\d+) ml", text).groups()  # type: ignore[union-attr]
        dose = re.search(r"(?:give|dose is) (\d+) mg", text)[1]  # type: ignore[index]
        return Fraction(dose) * int(volume) / int(strength)
    if item.kind == "dose_per_day":
        number, strength, times = numbers_before(text, r"tablets? of", "mg", "times")
        return number * strength * times
    if item.kind == "dose_split":
        total, times = numbers_before(text, "mg", "equal")
        return total / times
    if item.kind == "dose_hours":
        hours, days = numbers_before(text, "hours", "days")
        return 24 * days / hours
    if item.kind == "dose_supply":
        times = numbers_before(text, "times")[0]
        number = Fraction(re.search(r"[Tt]akes? (\d+) tablet", text)[1])  # type: ignore[index]
        total = Fraction(re.search(r"(?:has|do) (\d+) tablets", text)[1])  # type: ignore[index]
        return total / (number * times)
    if item.kind == "dose_infusion":
        total, hours = numbers_before(text, "ml", "hours")
        return total / hours
    if item.kind == "dose_drops":
        factor, rate = numbers_before(text, "drops per ml", "ml per hour")
        return factor * rate / 60
    return converted(text) if item.kind == "unit_conversion" else in_degrees(text)


def test_doses_are_right_by_their_questions(some: list[Item]) -> None:
    checked = Counter()
    for item in filter(is_dose, some):
        value, unit = item.answer.split(" ", 1)
        assert Fraction(value) == expected(item), prompt(item)
        assert 0 <= int(value) <= 9999
        assert unit.split()[0].rstrip("s") in prompt(item), prompt(item)
        checked[item.kind] += 1
    assert len(checked) == 11


EQUATION = re.compile(r"\d+(?: [*+/-] \d+)*(?: = \d+(?: [*+/-] \d+)*)+(?: rest \d+)?")


def evaluated(side: str) -> Fraction:
    """A side of an equation: products and quotients before sums, exactly."""
    total = Fraction(0)
    for sign, term in re.findall(r"(^|[+-]) ?(\d+(?: [*/] \d+)*)", side):
        value = Fraction(1)
        for operator, number in re.findall(r"(^|[*/]) ?(\d+)", term):
            value = value / int(number) if operator == "/" else value * int(number)
        total += -value if sign == "-" else value
    return total


def holds(equation: str) -> bool:
    if " rest " in equation:
        dividend, divisor, quotient, rest = map(int, NUMBER.findall(equation))
        return divmod(dividend, divisor) == (quotient, rest)
    return len({evaluated(side) for side in equation.split(" = ")}) == 1


def test_the_check_of_equations_can_fail() -> None:
    assert holds("5 * 24 = 100 + 20 = 120")
    assert holds("10 / 8 = 1 rest 2")
    assert not holds("5 * 24 = 100 + 20 = 121")
    assert not holds("10 / 8 = 1 rest 3")
    assert not holds("10 / 8 = 1")


def test_every_line_of_the_working_holds(some: list[Item]) -> None:
    for item in filter(is_dose, some):
        equations = EQUATION.findall(analysis(item))
        assert equations, analysis(item)
        assert all(map(holds, equations)), analysis(item)
        assert equations[-1].split()[-1] == item.answer.split()[0], analysis(item)


def test_long_products_show_their_parts(some: list[Item]) -> None:
    for item in some:
        if item.kind == "dose_weight" and not prompt(item).count(" 10 mg"):
            weight = str(number_of_kg(prompt(item).replace("mg per kg", "")))
            if len(weight.strip("0")) > 1:
                assert " + " in analysis(item), analysis(item)


@pytest.mark.parametrize(
    ("done", "line"),
    [
        (multiply(5, 24), "5 * 24 = 100 + 20 = 120."),
        (multiply(6, 200), "6 * 200 = 1200."),
        (multiply(24, 10), "24 * 10 = 240."),
        (divide(96, 8), "9 / 8 = 1 rest 1, 16 / 8 = 2, so 96 / 8 = 12."),
        (divide(75, 25), "1 * 25 = 25, 2 * 25 = 50, 3 * 25 = 75, so 75 / 25 = 3."),
        (divide(600, 200), "600 / 200 = 6 / 2 = 3."),
    ],
)
def test_calculations(done: object, line: str) -> None:
    assert done.line == line  # type: ignore[attr-defined]
