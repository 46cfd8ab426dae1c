"""The calculator: results of expressions, and answers in which they stand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.evals.calculator import calculated, generate_with_calculator
from slmjax.infer.engine import Completion, Engine
from slmjax.infer.stops import cut
from tests.evals.test_continuation_scores import ONE_BLOCK, PARAMS
from tests.infer.test_engine import Words


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("48/2", "24"),
        ("3*(4+1)", "15"),
        ("1/8", "0.125"),
        ("100/3", "33.33"),
        ("5-8", "-3"),
        ("1,200*.5", "600"),
        ("1/0", None),
        ("x+1", None),
        ("", None),
        ("9" * 40 + "*2", None),
        ("(" * 90, None),
        ("2**3", None),
        ("__import__('os')", None),
    ],
)
def test_expressions_of_word_problems_have_their_results(expression, result):
    assert calculated(expression) == result


@given(st.integers(0, 999), st.integers(1, 999), st.sampled_from("+-*"))
def test_whole_numbers_are_calculated_as_python_does(left, right, operator):
    expected = {"+": left + right, "-": left - right, "*": left * right}[operator]
    assert calculated(f"{left}{operator}{right}") == str(expected)


class Reciter(Engine):
    """An engine that answers each prompt with a script, in which only results are missing."""

    tokenizer = Words()
    token_bytes = tokenizer.token_bytes()

    def __init__(self, scripts):
        self.scripts = scripts
        self.batches = []

    def generate(self, prompts, *, max_tokens, temperature, stop, seed):
        self.batches.append(len(prompts))
        completions = []
        for ids in prompts:
            text = bytes(ids).decode()
            prompt = next(prompt for prompt in self.scripts if text.startswith(prompt))
            said = text.removeprefix(prompt)
            script = self.scripts[prompt]
            assert script.startswith(said), (said, script)
            rest = script[len(said) :].encode()[:max_tokens]
            kept = cut(rest, stop)
            if len(kept) == len(rest):
                finish = "length" if len(rest) == max_tokens else "end"
                completions.append(Completion(rest.decode(), list(rest), finish))
                continue
            drawn = next(rest[:n] for n in range(len(rest) + 1) if cut(rest[:n], stop) != rest[:n])
            completions.append(Completion(kept.decode(), list(drawn), "stop"))
        return completions


def recite(scripts, max_tokens=100, prompts=None):
    engine = Reciter(scripts)
    asked = [list(prompt.encode()) for prompt in prompts or scripts]
    answers = generate_with_calculator(
        engine, asked, max_tokens=max_tokens, temperature=0.0, stop=["Q:"], seeds=range(len(asked))
    )
    return [answer.text for answer in answers], engine


def test_results_are_written_behind_open_marks_and_nowhere_else():
    scripts = {
        "a": "48/2 = <<48/2=24>>24. So <<24+1=25>>25.",
        "b": "x=5 and <<half of it=is unknown",
        "c": "no sums Q: next",
        "d": "",
    }
    answers, engine = recite(scripts)
    assert answers == [scripts["a"], scripts["b"], "no sums ", ""]
    # The first row has four equals signs, of which one is no mark's; the others leave the batch.
    assert engine.batches == [4, 2, 2, 1][: len(engine.batches)]


def test_a_row_does_not_depend_on_others_and_ends_at_its_most_tokens():
    scripts = {"a": "<<1+1=2>>2" * 30, "b": "<<2*3=6>>6."}
    together, _ = recite(scripts, max_tokens=25)
    assert together == [scripts["a"][:25], scripts["b"]]
    for place, prompt in enumerate(scripts):
        alone, _ = recite(scripts, max_tokens=25, prompts=[prompt])
        assert alone == together[place : place + 1]


def test_with_a_real_engine_rows_are_as_alone_and_without_marks_as_without_a_calculator():
    engine = Engine(ONE_BLOCK, PARAMS, {}, Words())
    prompts = [list(b"one"), list(b"three and"), list(b"<<1+2"), list(b"x")]
    settings = {"max_tokens": 16, "temperature": 1.5, "stop": ["#"]}
    together = generate_with_calculator(engine, prompts, seeds=range(4), **settings)
    for seed in (0, 2):
        (alone,) = generate_with_calculator(engine, prompts[seed:][:1], seeds=[seed], **settings)
        assert alone == together[seed]
    plain = engine.generate(prompts, seed=range(4), **settings)
    unmarked = [i for i, answer in enumerate(plain) if "=" not in answer.text]
    assert unmarked
    for i in unmarked:
        assert together[i].text == plain[i].text
