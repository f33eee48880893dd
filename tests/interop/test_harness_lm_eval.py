"""The same tasks on lm-eval's own `hf` model: one checkpoint, float32 activations, the same answers."""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from peers import smollm2

from oss_tools.convert.pipeline import Options
from oss_tools.convert.pipeline import run as convert
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import recipe_of_format
from oss_tools.engine.engine import Engine
from oss_tools.harness.data import Documents
from oss_tools.harness.lm import EngineLM
from oss_tools.models import open_checkpoint
from oss_tools.tiny.health import items

pytestmark = pytest.mark.peers
CONTEXT = 512


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M as a Hugging Face folder in float16."""
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    with open_checkpoint(smollm2()) as source:
        convert(make_plan(source, "hf", recipe_of_format("f16")), folder, Options(verify=False))
    return folder


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> Iterator[EngineLM]:
    with Engine.load(checkpoint, activations="f32", context=CONTEXT) as engine:
        yield EngineLM(engine)


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(checkpoint), dtype="float32", device="cpu", batch_size=8, max_length=CONTEXT - 1)


def choice_documents() -> Documents:
    """Questions with the texts of four answers, of which one is right."""
    found, seen = [], set()
    for item in islice(items(random.Random(3), "test"), 5000):
        question, *options = item.conversation.messages[0].content.split("\n")
        if len(options) == 5 and item.key not in seen:
            seen.add(item.key)
            texts = [option.partition(". ")[2] for option in options[:4]]
            found.append({"question": question, "choices": texts, "gold": "ABCD".index(item.answer)})
    return Documents(found)


def task(kind: str, shots: int) -> dict[str, Any]:
    docs = choice_documents()
    return {
        "task": f"{kind}_{shots}_shot",
        "custom_dataset": lambda **_: {"test": docs, "train": docs[-20:]},
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": shots,
        "output_type": kind,
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "acc" if kind == "multiple_choice" else "exact_match"}],
    }


def samples(lm: Any, kind: str, shots: int, limit: int) -> list[dict[str, Any]]:
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_defaults=False).load([task(kind, shots)])
    for made in tasks["tasks"].values():
        made.set_fewshot_seed(0)
    found: list[dict[str, Any]] = evaluate(lm, tasks, limit=limit, bootstrap_iters=0)["samples"][f"{kind}_{shots}_shot"]
    return found


def agree_on_choices(ours: EngineLM, theirs: Any, shots: int, limit: int) -> float:
    """The largest difference of log-likelihoods."""
    one, two = (samples(lm, "multiple_choice", shots, limit) for lm in (ours, theirs))
    assert len(one) == limit
    largest = 0.0
    for mine, other in zip(one, two, strict=True):
        assert mine["arguments"] == other["arguments"]
        for (logprob, greedy), (their_logprob, their_greedy) in zip(
            mine["filtered_resps"], other["filtered_resps"], strict=True
        ):
            assert logprob == pytest.approx(their_logprob, abs=1e-3)
            largest = max(largest, abs(logprob - their_logprob))
            assert greedy == their_greedy
        assert mine["acc"] == other["acc"]
    return largest


def agree_on_generations(ours: EngineLM, theirs: Any, shots: int, limit: int) -> None:
    one, two = (samples(lm, "generate_until", shots, limit) for lm in (ours, theirs))
    assert len(one) == limit
    assert [s["filtered_resps"] for s in one] == [s["filtered_resps"] for s in two]


def test_choices_and_generations_agree(ours: EngineLM, theirs: Any) -> None:
    agree_on_choices(ours, theirs, 2, 5)
    agree_on_generations(ours, theirs, 2, 3)


@pytest.mark.slow
def test_two_hundred_choices_agree(ours: EngineLM, theirs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    largest = agree_on_choices(ours, theirs, 0, 200)
    with capsys.disabled():
        print(f"\n200 choices are the same; their 800 log-likelihoods differ by at most {largest:.1e}")


@pytest.mark.slow
def test_fifty_generations_agree(ours: EngineLM, theirs: Any) -> None:
    agree_on_generations(ours, theirs, 1, 50)


def test_perplexities_agree(ours: EngineLM, theirs: Any) -> None:
    from lm_eval.api.instance import Instance

    text = " ".join(doc["question"] for doc in choice_documents()[:100])
    request = Instance("loglikelihood_rolling", {}, (text,), 0, ("t", 0, 1))
    (mine,), (other,) = (lm.loglikelihood_rolling([request]) for lm in (ours, theirs))
    assert mine.tokens > CONTEXT  # more than one window
    assert mine == pytest.approx(other, abs=1e-5 * mine.tokens)


def test_chat_prompts_are_the_same_string(ours: EngineLM, theirs: Any) -> None:
    history = [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And <|im_end|> 3 + 3?"},
    ]
    assert ours.apply_chat_template(history) == theirs.apply_chat_template(history)
    system = [{"role": "system", "content": "Be brief."}, *history]
    assert ours.apply_chat_template(system) == theirs.apply_chat_template(system)
