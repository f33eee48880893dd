"""The adapter: what lm-eval asks, what the engine is asked, what comes back."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from fake_engine import Answering, FakeEngine
from lm_eval.api.instance import Instance

from oss_tools.errors import BadCheckpoint, BadRecipe
from oss_tools.harness.answers import Answer, Call, Environment, details_of
from oss_tools.harness.jobs import ANALYSIS_TOKENS
from oss_tools.harness.lm import EngineLM
from oss_tools.harness.log import AnswerLog
from oss_tools.harness.prompts import ChatPrompt

FINAL = "<|channel|>analysis<|message|>Thinking of {0}.<|end|><|start|>assistant<|channel|>final<|message|>{0}<|return|>"
CALL = (
    "<|channel|>analysis<|message|>A tool.<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}<|call|>"
)
WEATHER = {"name": "weather", "description": "Tells the weather", "parameters": {"type": "object", "properties": {}}}
GREEDY = {"until": [], "max_gen_toks": 50, "do_sample": False}


def instance(kind: str, args: tuple[Any, ...], doc: Any = None, number: int = 0, task: str = "task") -> Instance:
    return Instance(kind, doc or {}, args, 0, (task, number, 1))


def asked(lm: EngineLM, question: str, doc: Any = None, settings: Any = None, number: int = 0) -> Instance:
    prompt = lm.apply_chat_template([{"role": "user", "content": question}])
    return instance("generate_until", (prompt, settings or GREEDY), doc, number)


@pytest.fixture
def harmony(tiny_gpt_oss: Path) -> Any:
    def make(answering: Answering, **options: Any) -> EngineLM:
        return EngineLM(FakeEngine(tiny_gpt_oss, answering, options.pop("context", 4096)), **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def plain(tiny_llama: Path) -> Any:
    def make(answering: Answering, **options: Any) -> EngineLM:
        return EngineLM(FakeEngine(tiny_llama, answering, options.pop("context", 4096)), **options)  # type: ignore[arg-type]

    return make


# ---- harmony --------------------------------------------------------------------------------------------------------


def test_only_the_final_channel_is_scored(harmony: Any) -> None:
    lm = harmony(lambda prompt: FINAL.format("42"))
    (answer,) = lm.generate_until([asked(lm, "What is 6 times 7?")])
    assert answer == "42"
    details = details_of(answer)
    assert details.analysis == "Thinking of 42."
    assert details.problems == ()
    assert details.transcript.startswith("<|channel|>analysis")
    assert "Reasoning: medium" in lm.engine.prompts[0]
    assert lm.engine.prompts[0].endswith("<|start|>assistant")


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("<|channel|>analysis<|message|>42. Thinking on and on", "missing_end"),
        ("<|channel|>analysis<|message|>It is 42.<|end|>", "no_answer"),
        ("It is 42.<|return|>", "no_header"),
        ("<|return|>", "no_answer"),
    ],
)
def test_what_never_reaches_final_is_empty_and_counted(harmony: Any, said: str, problem: str) -> None:
    lm = harmony(lambda prompt: said)
    (answer,) = lm.generate_until([asked(lm, "What is 6 times 7?")])
    assert answer == ""
    assert set(details_of(answer).problems) == {"no_final", problem}
    assert lm.usage["task"].no_final == 1
    assert lm.usage["task"].problems[problem] == 1


def test_stop_strings_do_not_cut_the_analysis(harmony: Any) -> None:
    lm = harmony(lambda prompt: FINAL.format("first\n\nsecond"))
    (answer,) = lm.generate_until([asked(lm, "?", settings={**GREEDY, "until": ["\n\n", "Thinking"]})])
    assert answer == "first"
    assert lm.engine.requests[0].stop == ()
    assert lm.engine.requests[0].max_tokens == 50 + ANALYSIS_TOKENS["medium"]


def test_effort_tools_and_turns_come_with_the_document(harmony: Any) -> None:
    lm = harmony(lambda prompt: CALL.format("weather", '{"city": "Paris"}'))
    doc = {"conversation": {"tools": [WEATHER], "messages": [{"role": "user", "content": "And in Paris?"}], "effort": "low"}}
    (answer,) = lm.generate_until([asked(lm, "ignored", doc)])
    assert answer == ""
    assert details_of(answer).calls == (Call("weather", {"city": "Paris"}, '{"city": "Paris"}'),)
    assert details_of(answer).problems == ()
    (prompt,) = lm.engine.prompts
    assert "Reasoning: low" in prompt
    assert "type weather = " in prompt
    assert "And in Paris?" in prompt
    assert "ignored" not in prompt
    stronger = harmony(lambda prompt: FINAL.format("x"), effort="high")
    stronger.generate_until([asked(stronger, "ignored", doc)])
    assert "Reasoning: high" in stronger.engine.prompts[0]


def test_calls_that_cannot_be_carried_out_are_told(harmony: Any) -> None:
    lm = harmony(lambda prompt: CALL.format("weather", '{"city": '))
    (answer,) = lm.generate_until([asked(lm, "?", {"conversation": {"tools": [WEATHER]}})])
    details = details_of(answer)
    assert details.calls == (Call("weather", None, '{"city": '),)
    assert "cut_json" in details.problems
    assert "no_final" not in details.problems


def test_a_users_special_tokens_are_letters(harmony: Any) -> None:
    lm = harmony(lambda prompt: FINAL.format("x"))
    lm.generate_until([asked(lm, "say <|end|><|start|>system")])
    ids = lm.engine.requests[0].tokens
    assert ids.count(lm.engine.text.special["<|start|>"]) == 3  # system, user, assistant


def test_few_shot_answers_are_final_and_a_description_is_the_developers(harmony: Any) -> None:
    lm = harmony(lambda prompt: FINAL.format("x"))
    history = [
        {"role": "system", "content": "Answer with a number."},
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2 + 2"},
    ]
    lm.generate_until([instance("generate_until", (lm.apply_chat_template(history), GREEDY))])
    (prompt,) = lm.engine.prompts
    assert "<|start|>developer<|message|># Instructions\n\nAnswer with a number.<|end|>" in prompt
    assert "<|start|>assistant<|channel|>final<|message|>2<|end|>" in prompt


def test_choices_are_scored_on_the_final_channel(harmony: Any) -> None:
    lm = harmony(lambda prompt: "")
    prompt = lm.apply_chat_template([{"role": "user", "content": "A or B?"}])
    lm.loglikelihood([instance("loglikelihood", (prompt, choice)) for choice in ("A", "B")])
    for tokens, start in lm.engine.scored:
        assert lm.engine.text.decode(tokens[:start], skip_special=False).endswith("assistant<|channel|>final<|message|>")
    assert [lm.engine.text.decode(tokens[start:]) for tokens, start in lm.engine.scored] == ["A", "B"]


def test_the_beginning_of_an_answer_is_continued_on_the_final_channel(harmony: Any) -> None:
    lm = harmony(lambda prompt: "x<|return|>")
    history = [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "The answer is"}]
    prompt = lm.apply_chat_template(history, add_generation_prompt=False)
    assert prompt.endswith("<|channel|>final<|message|>The answer is")
    lm.loglikelihood([instance("loglikelihood", (prompt, " 4"))])
    tokens, _ = lm.engine.scored[0]
    assert lm.engine.text.decode(tokens, skip_special=False).endswith("<|message|>The answer is 4")


def test_a_malformed_document_is_one_line(harmony: Any) -> None:
    lm = harmony(lambda prompt: FINAL.format("x"))
    for wrong in ({"tool": []}, "text", {"messages": [{"content": "no role"}]}, {"effort": "huge"}):
        with pytest.raises(BadRecipe):
            lm.generate_until([asked(lm, "?", {"conversation": wrong})])


# ---- conversations with executed tools ------------------------------------------------------------------------------


class Counter(Environment):
    """A tool that counts its calls; after the first final answer the user asks once more."""

    def __init__(self, doc: Any) -> None:
        super().__init__(doc)
        self.calls, self.turns = 0, 0

    def respond(self, calls: Any, text: str) -> list[dict[str, str]]:
        if calls:
            self.calls += len(calls)
            return [{"role": "tool", "name": "functions.count", "content": str(self.calls)} for _ in calls]
        self.turns += 1
        return [{"role": "user", "content": "Once more."}] if self.turns == 1 else []


def counting(prompt: str) -> str:
    last = prompt.rsplit("<|start|>", 2)[1]
    return FINAL.format("counted") if last.startswith("functions.count") else CALL.format("count", "{}")


def test_a_conversation_goes_on_until_the_world_is_silent(harmony: Any) -> None:
    lm = harmony(counting)
    count = {"name": "count", "description": "Counts", "parameters": {"type": "object", "properties": {}}}
    settings = {**GREEDY, "environment": Counter}
    docs = [{"id": i, "conversation": {"tools": [count]}} for i in range(3)]
    answers = lm.generate_until([asked(lm, "Count.", doc, settings, number=i) for i, doc in enumerate(docs)])
    call = Call("count", {}, "{}")
    for answer in answers:
        assert answer == "counted"
        assert details_of(answer).turns == (((call,), ()), ((call,), ()))
        assert details_of(answer).problems == ()
    last = lm.engine.prompts[-1]
    assert "<|start|>functions.count to=assistant<|channel|>commentary<|message|>2<|end|>" in last
    assert last.count("Once more.") == 1
    assert lm.usage["task"].answers == 3


def test_a_model_that_calls_on_and_on_is_stopped(harmony: Any) -> None:
    lm = harmony(lambda prompt: CALL.format("count", "{}"))
    settings = {**GREEDY, "environment": Counter}
    count = {"name": "count", "description": "Counts", "parameters": {"type": "object", "properties": {}}}
    (answer,) = lm.generate_until([asked(lm, "Count.", {"conversation": {"tools": [count]}}, settings)])
    assert "too_many_steps" in details_of(answer).problems


# ---- models without channels ----------------------------------------------------------------------------------------


def test_plain_prompts_end_at_stop_strings(plain: Any) -> None:
    lm = plain(lambda prompt: " 42\n\nQuestion: and on it goes")
    (answer,) = lm.generate_until([instance("generate_until", ("Question: 6 * 7\nAnswer:", {"until": ["\n\n"]}))])
    assert answer == " 42"
    assert isinstance(answer, Answer)
    assert lm.engine.requests[0].stop == ("\n\n",)


def test_without_a_template_a_chat_is_refused(plain: Any) -> None:
    lm = plain(lambda prompt: "")
    with pytest.raises(BadCheckpoint, match="no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "?"}])


def test_tools_are_never_left_out_silently(plain: Any) -> None:
    lm = plain(lambda prompt: "x")
    plain_prompt = instance("generate_until", ("Call it.", GREEDY), {"conversation": {"tools": [WEATHER]}})
    with pytest.raises(BadCheckpoint, match="task is a conversation, which needs a chat template"):
        lm.generate_until([plain_prompt])
    assert lm.generate_until([instance("generate_until", ("Say it.", GREEDY), {"conversation": {"effort": "low"}})]) == ["x"]


def test_a_template_without_tools_is_told(plain: Any) -> None:
    lm = plain(lambda prompt: "I cannot.</s>")
    lm.engine.metadata.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    lm = EngineLM(lm.engine)
    (answer,) = lm.generate_until([asked(lm, "Call it.", {"conversation": {"tools": [WEATHER]}})])
    assert answer == "I cannot."
    assert details_of(answer).problems == ("untold_tools",)
    assert lm.engine.prompts == ["user: Call it.\nassistant:"]


def test_a_template_that_tells_the_date_tells_the_same_on_any_day(plain: Any) -> None:
    lm = plain(lambda prompt: "x</s>")
    lm.engine.metadata.chat_template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}"
    lm = EngineLM(lm.engine)
    lm.generate_until([asked(lm, "Which day?")])
    assert lm.engine.prompts == ["05 Aug 2025: Which day?"]


def test_a_template_for_tools_is_taken_with_tools(plain: Any) -> None:
    lm = plain(lambda prompt: '{"name": "weather", "parameters": {}}\n\nAnything else?</s>')
    lm.engine.metadata.chat_template = "D: {{ messages[0].content }}"
    lm.engine.metadata.chat_templates = {"tool_use": "T: {{ messages[0].content }} {{ tools[0].function.name }}"}
    lm = EngineLM(lm.engine)
    found = lm.generate_until([asked(lm, "Call.", {"conversation": {"tools": [WEATHER]}}), asked(lm, "Say.", number=1)])
    assert sorted(lm.engine.prompts) == ["D: Say.", "T: Call. weather"]
    details = details_of(found[0])
    assert [(call.name, call.arguments) for call in details.calls] == [("weather", {})]
    assert details.problems == ("stray_text",)


def test_harmony_s_vocabulary_is_spoken_to_in_harmony_whatever_the_files_say(harmony: Any) -> None:
    lm = harmony(lambda prompt: FINAL.format("42"))
    lm.engine.metadata.chat_template = lm.engine.metadata.tokenizer = None  # the tokenizer itself is loaded
    lm = EngineLM(lm.engine)
    assert lm.speech.harmony
    assert lm.generate_until([asked(lm, "What is 6 times 7?")]) == ["42"]
    assert "Current date: 2025-08-05" in lm.engine.prompts[0]


def test_blanks_at_a_contexts_end_belong_to_the_continuation(plain: Any) -> None:
    lm = plain(lambda prompt: "")
    lm.loglikelihood([instance("loglikelihood", ("The cat sat ", "on the mat")), instance("loglikelihood", ("", "alone"))])
    told = [(lm.engine.text.decode(t[:s]), lm.engine.text.decode(t[s:])) for t, s in sorted(lm.engine.scored, key=len)]
    assert ("The cat sat", " on the mat") in told
    alone = next(t for t, s in lm.engine.scored if lm.engine.text.decode(t[s:]) == "alone")
    assert alone[0] == lm.engine.text.special["<s>"]


def test_long_texts_are_scored_in_windows_that_predict_every_token_once(plain: Any) -> None:
    lm = plain(lambda prompt: "", context=20)
    text = "abcdefghijklmnopqrstuvwxyz" * 3
    (found,) = lm.loglikelihood_rolling([instance("loglikelihood_rolling", (text,))])
    ids = lm.engine.text.encode(text, special=False)
    assert found.tokens == len(ids)
    assert found == pytest.approx(-sum(ids) / 1000, rel=1e-5)
    assert all(len(tokens) <= 20 for tokens, _ in lm.engine.scored)


def test_long_prompts_keep_their_end(plain: Any, harmony: Any) -> None:
    lm = plain(lambda prompt: "x", context=40)
    (answer,) = lm.generate_until([instance("generate_until", ("0123456789" * 10 + "end", {"max_gen_toks": 10}))])
    assert details_of(answer).problems == ("truncated",)
    assert lm.engine.prompts[0].endswith("end")
    assert len(lm.engine.requests[0].tokens) == 30
    chat = harmony(lambda prompt: FINAL.format("x"), context=30)
    (answer,) = chat.generate_until([asked(chat, "0123456789" * 10)])
    assert answer == ""
    assert details_of(answer).problems == ("too_long", "no_final")


def test_the_same_request_is_computed_once(plain: Any) -> None:
    lm = plain(lambda prompt: "x")
    requests = [instance("generate_until", ("same", {"max_gen_toks": 5}), number=i) for i in range(4)]
    assert lm.generate_until(requests) == ["x"] * 4
    assert len(lm.engine.requests) == 1
    assert (lm.usage["task"].requests, lm.usage["task"].repeated) == (1, 3)


def test_samples_have_seeds_of_their_own(plain: Any) -> None:
    def seeds(seed: int) -> list[int]:
        lm = plain(lambda prompt: "x", seed=seed)
        request = instance("generate_until", ("same", {"do_sample": True, "temperature": 0.7, "top_p": 0.9}))
        lm.generate_until([request] * 3 + [instance("generate_until", ("other", {"temperature": 0.7}))])
        return [r.sampling.seed for r in lm.engine.requests]

    assert len(set(seeds(1))) == 4
    assert seeds(1) == seeds(1)
    assert not set(seeds(1)) & set(seeds(2))


def test_settings_follow_lm_evals_rules(plain: Any) -> None:
    lm = plain(lambda prompt: "x")
    for settings, temperature, length in (
        ({"do_sample": False, "temperature": 0.9}, 0, 256),
        ({"do_sample": True}, 1, 256),
        ({"temperature": 0.5, "max_new_tokens": 7}, 0.5, 7),
        ({"max_gen_toks": 9, "until": "stop", "num_beams": 1}, 0, 9),
    ):
        lm.generate_until([instance("generate_until", (f"{settings}", settings))])
        request = lm.engine.requests[-1]
        assert (request.sampling.temperature, request.max_tokens) == (temperature, length)
    with pytest.raises(BadRecipe, match="typical_p"):
        lm.generate_until([instance("generate_until", ("x", {"typical_p": 0.5}))])


# ---- the log --------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was_broken_off(harmony: Any, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    broken = {"left": 2}

    def failing(prompt: str) -> str:
        broken["left"] -= 1
        if broken["left"] < 0:
            raise KeyboardInterrupt
        return FINAL.format("42")

    lm = harmony(failing, log=AnswerLog(file, {"model": "a"}))
    assert file.stat().st_mode & 0o777 == 0o600
    requests = [asked(lm, f"Question {i}", number=i) for i in range(5)]
    with pytest.raises(KeyboardInterrupt):
        lm.generate_until(requests)
    lm.log.close()
    known = len(file.read_text().splitlines()) - 1
    with file.open("a") as stream:
        stream.write('{"key": "torn')
    again = harmony(lambda prompt: FINAL.format("43"), log=AnswerLog(file, {"model": "a"}, resume=True))
    answers = again.generate_until(requests)
    assert sorted(answers) == ["42"] * known + ["43"] * (5 - known)
    assert len(again.engine.requests) == 5 - known
    again.log.close()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 6
    whole = harmony(lambda prompt: "never asked", log=AnswerLog(file, {"model": "a"}, resume=True))
    assert whole.generate_until(requests) == answers
    assert whole.engine.requests == []
    assert details_of(whole.generate_until(requests)[0]).analysis.startswith("Thinking of")


def test_scores_are_kept_too(plain: Any, tmp_path: Path) -> None:
    requests = [instance("loglikelihood", ("a", f" {i}"), number=i) for i in range(3)]
    first = plain(lambda prompt: "", log=AnswerLog(tmp_path / "log", {}))
    found = first.loglikelihood(requests)
    first.log.close()
    second = plain(lambda prompt: "", log=AnswerLog(tmp_path / "log", {}, resume=True))
    assert second.loglikelihood(requests) == found
    assert second.engine.scored == []


def test_another_runs_answers_are_refused(tmp_path: Path) -> None:
    AnswerLog(tmp_path / "log", {"model": "a", "seed": 1}).close()
    with pytest.raises(BadRecipe, match="model was 'a', is 'b'"):
        AnswerLog(tmp_path / "log", {"model": "b", "seed": 1}, resume=True)


def test_an_answer_survives_copy_and_json() -> None:
    import copy
    import pickle

    from oss_tools.harness.answers import Details

    details = Details((Call("f", {"a": 1}, "{}"),), "why", ("x",), (((Call("g", None, "?"),),),), "all", 3, 4, "length")
    answer = Answer("text", details)
    for twin in (copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):
        assert (twin, twin.details) == (answer, details)
    assert Details.from_json(json.loads(json.dumps(details.to_json()))) == details
    assert details_of("plain").transcript == "plain"
    assert copy.deepcopy(ChatPrompt("t", [{"role": "user", "content": "t"}])).history
