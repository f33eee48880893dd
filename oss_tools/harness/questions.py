r"""The public question sets: what is asked of the model, and how its answer is scored.

Mathematics is answered in \boxed{…}, multiple choice with "Answer: X". The fields of documents are those of the public sets,
under the names that the tasks' YAML files put first. Every `…_score` gives `correct`, and `answered`: whether an answer was
found in the text, right or wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oss_tools.errors import BadSource
from oss_tools.harness.equivalence import equivalent
from oss_tools.harness.extraction import extract_answer, extract_choice, extract_label, is_correct

Doc = Mapping[str, Any]
Scores = dict[str, float]
LETTERS = "ABCDEFGHIJ"


def _scores(answered: bool, correct: bool) -> Scores:
    return {"correct": float(correct), "answered": float(answered)}


# ---- mathematics ----------------------------------------------------------------------------------------------------


def gsm8k_text(doc: Doc) -> str:
    return f"{doc['question'].strip()}\n\nWork it out step by step, then give the answer as a single number in \\boxed{{}}."


def gsm8k_key(doc: Doc) -> str:
    """The number behind the four hashes of a worked solution, or the number that stands there alone."""
    key = str(doc["answer"]).rpartition("####")[2].strip().replace(",", "")
    float(key.lstrip("$"))
    return key


def gsm8k_score(doc: Doc, results: Sequence[str]) -> Scores:
    return _math_score(results[0], gsm8k_key(doc))


def math_text(doc: Doc) -> str:
    return f"{doc['problem'].strip()}\n\nReason step by step, and end with the final answer in \\boxed{{}}."


def math_key(doc: Doc) -> str:
    return str(doc["answer"])


def math_score(doc: Doc, results: Sequence[str]) -> Scores:
    return _math_score(results[0], math_key(doc))


def aime_key(doc: Doc) -> str:
    """An integer from 0 to 999, whatever it is written as (33, "033", 33.0)."""
    written = str(doc["answer"]).strip()
    number = float(written)
    if number != int(number) or not 0 <= number <= 999:
        raise BadSource(f"the answer is {written!r}, no integer from 0 to 999")
    return written if written.isdecimal() else str(int(number))


def aime_text(doc: Doc) -> str:
    """The question as https://github.com/openai/gpt-oss (gpt_oss/evals/aime_eval.py) asks it, blank lines around it aside."""
    return f"{doc['problem'].strip()}\nPlease reason step by step, and put your final answer within \\boxed{{}}."


def aime_score(doc: Doc, results: Sequence[str]) -> Scores:
    return _math_score(results[0], aime_key(doc))


def _math_score(text: str, key: str) -> Scores:
    answer = extract_answer(text)
    return _scores(answer is not None, answer is not None and (equivalent(answer, key) or is_correct(text, key)))


# ---- multiple choice ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MultipleChoice:
    """A set of questions with lettered choices.

    Attributes:
        choices: the texts of a document's choices, in the order of their letters.
        key: the index of the right one.
    """

    choices: Callable[[Doc], Sequence[str]]
    key: Callable[[Doc], int]

    def lettered(self, doc: Doc) -> dict[str, str]:
        return dict(zip(LETTERS, map(str, self.choices(doc)), strict=False))

    def question(self, doc: Doc) -> str:
        return "\n".join(
            [doc["question"].strip(), "", *(f"{letter}. {text}" for letter, text in self.lettered(doc).items())]
        )

    def text(self, doc: Doc) -> str:
        """For an answer that is generated."""
        return f'{self.question(doc)}\n\nChoose the best answer. End with its letter, in the form "Answer: X".'

    def bare_text(self, doc: Doc) -> str:
        """For letters whose likelihoods are compared."""
        return f"Question: {self.question(doc)}\nAnswer:"

    def letter(self, doc: Doc) -> str:
        """Also makes sure that the document can be asked. Raises BadSource for one without its key."""
        self.question(doc)
        index = self.key(doc)
        if not 0 <= index < len(self.choices(doc)):
            raise BadSource(f"a question without its key: {doc['question'][:60]!r}; this split has no answers")
        return LETTERS[index]

    def score(self, doc: Doc, results: Sequence[str]) -> Scores:
        chosen = extract_choice(results[0], self.lettered(doc))
        return _scores(chosen is not None, chosen == self.letter(doc))


def texts_of(options: Any) -> list[str]:
    """The choices of {"A": text, …}, [text, …] or [{"key": "A", "value": text}, …], in the order of their letters."""
    if isinstance(options, Mapping):
        return [str(options[letter]) for letter in sorted(options) if options[letter] is not None]
    pairs = [(o["key"], o["value"]) if isinstance(o, Mapping) else ("", o) for o in options]
    return [str(text) for _, text in sorted(pairs, key=lambda pair: str(pair[0]))]


def index_of(key: Any, choices: Sequence[str]) -> int:
    """The number of the choice that a key names: by its number from 0, its letter, or its text; -1 if by none."""
    written = str(key).strip()
    if isinstance(key, str) and written in choices:
        return list(choices).index(written)
    if written.lstrip("-").isdecimal():
        return int(written)
    letter = written.strip("().:").upper()
    return LETTERS.index(letter) if len(letter) == 1 and letter in LETTERS else -1


def _chosen(choices: Callable[[Doc], Sequence[str]], key: str) -> MultipleChoice:
    return MultipleChoice(choices, lambda doc: index_of(doc[key], choices(doc)))


medqa = _chosen(lambda doc: texts_of(doc["options"]), "answer_idx")
medmcqa = _chosen(lambda doc: [doc[name] for name in ("opa", "opb", "opc", "opd")], "cop")
mmlu = _chosen(lambda doc: texts_of(doc["choices"]), "answer")

# lm-eval's !function takes names of a module
medqa_text, medqa_bare_text, medqa_key, medqa_letter, medqa_score = (
    medqa.text,
    medqa.bare_text,
    medqa.key,
    medqa.letter,
    medqa.score,
)
medmcqa_text, medmcqa_bare_text, medmcqa_key = medmcqa.text, medmcqa.bare_text, medmcqa.key
medmcqa_letter, medmcqa_score = medmcqa.letter, medmcqa.score
mmlu_text, mmlu_bare_text, mmlu_key, mmlu_letter, mmlu_score = mmlu.text, mmlu.bare_text, mmlu.key, mmlu.letter, mmlu.score


# ---- PubMedQA -------------------------------------------------------------------------------------------------------

DECISIONS = ("yes", "no", "maybe")


def pubmedqa_abstract(doc: Doc) -> str:
    """Without its conclusion."""
    parts = doc["contexts"]
    return parts if isinstance(parts, str) else "\n".join(parts)


def pubmedqa_question(doc: Doc) -> str:
    return str(doc["question"]).strip()


def pubmedqa_key(doc: Doc) -> str:
    """Also makes sure that the document can be asked."""
    pubmedqa_text(doc)
    decision = str(doc["final_decision"]).strip().lower()
    if decision not in DECISIONS:
        raise BadSource(f"the decision is {decision!r}, none of {', '.join(DECISIONS)}; this split has no answers")
    return decision


def pubmedqa_text(doc: Doc) -> str:
    asked = 'Does the abstract answer the question with yes, no or maybe? End with the one word, in the form "Answer: X".'
    return f"{pubmedqa_abstract(doc)}\n\nQuestion: {pubmedqa_question(doc)}\n{asked}"


def pubmedqa_bare_text(doc: Doc) -> str:
    return f"Abstract: {pubmedqa_abstract(doc)}\nQuestion: {pubmedqa_question(doc)}\nAnswer:"


def pubmedqa_score(doc: Doc, results: Sequence[str]) -> Scores:
    label = extract_label(results[0], DECISIONS)
    return _scores(label is not None, label == pubmedqa_key(doc))
