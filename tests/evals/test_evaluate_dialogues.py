"""The stage evaluate on a run that learned dialogues, and on its export."""

import json

import pytest

from slmjax import export, launch
from slmjax.evals.evaluate_stage import examined_run
from slmjax.evals.evaluation_items import QuestionItem
from slmjax.evals.question_answers import AnswerSettings, answer_prompts, question_prompts
from tests.corpus import ROOT
from tests.evals.test_evaluate_stage import evaluate, write_items

# Training the run takes most of the time.
pytestmark = pytest.mark.slow

ANSWER = "#### 3"
SMALL = {
    "data.seq_len": 128,
    "train.batch": 16,
    "train.microbatches": 1,
    "train.steps": 40,
    "train.warmup": 2,
    "train.lr": 2e-2,
    "eval.every": 40,
    "eval.tokens": 500,
    "eval.answers": 2,
    "eval.sample_tokens": 4,
    "checkpoint.every": 40,
}


@pytest.fixture(scope="module")
def sft(undisturbed, without_reports, tmp_path_factory):
    """A run of configs/sft.py that has learned to give one answer to all questions."""
    folder = tmp_path_factory.mktemp("sft")
    dialogues = [{"prompt": f"{n}+{n % 7}?", "response": ANSWER} for n in range(400)]
    path = write_items(folder / "chats.jsonl", *dialogues)
    sources = {"chats": {"path": str(path), "kind": "chat", "heldout": 0.1}}
    words = [f"--config={ROOT}/configs/sft.py", f"--init_from={undisturbed}"]
    words += [f"--workdir={folder}/run", f"--config.data.sources={json.dumps(sources)}"]
    words += [f"--config.{name}={value}" for name, value in SMALL.items()]
    assert launch.main(words) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def model(sft):
    return examined_run(str(sft), ())[0]


ITEMS = [QuestionItem(f"{'1+' * n}1?", ANSWER, "3") for n in (1, 9, 2, 17, 5)]


def prompts_of(model):
    return question_prompts(model.loaded.tokenizer, ITEMS, ITEMS[:1], model.chat)


def test_a_question_is_a_turn_and_the_answer_ends_with_the_turn(model):
    assert model.chat
    tokenizer = model.loaded.tokenizer
    turn_end = tokenizer.special["<|im_end|>"]
    prompts = prompts_of(model)
    for prompt, item in zip(prompts, ITEMS, strict=True):
        # Two turns of the example, one of the question; that of the answer is open.
        assert prompt.count(turn_end) == 3
        assert item.question in tokenizer.decode(prompt)
    for completion in model.engine.generate(prompts, max_tokens=24):
        assert completion.text.endswith("# 3") and completion.finish == "end"
        assert completion.end == turn_end


@pytest.mark.parametrize("calculator", [False, True])
def test_answers_in_a_batch_are_those_of_each_question_alone(model, calculator):
    settings = AnswerSettings(True, 3, 1.5, calculator, 12)
    prompts = prompts_of(model)
    together = answer_prompts(model.engine, prompts, settings, seed=1)
    # Samples depend on the seed and on the place of the question: place i alone has its seed.
    for place, prompt in enumerate(prompts):
        (alone,) = answer_prompts(model.engine, [prompt], settings, seed=1 + (place << 12))
        assert alone == together[place]
    assert len({text for given in together for text in given.sampled}) > 5


def test_an_export_has_the_scores_of_its_run(sft, tmp_path, monkeypatch, capsys):
    shared = tmp_path / "shared"
    monkeypatch.setenv("SLMJAX_SHARED", str(shared))
    right, wrong = ({"question": f"{n}+1?", "answer": f"#### {n + 1}"} for n in (2, 5))
    write_items(shared / "gsm8k" / "test.jsonl", right, wrong)
    choices = [{"query": "the river", "choices": ["carries", "stone"], "gold": n} for n in (0, 1)]
    mine = write_items(tmp_path / "mine.jsonl", *choices)
    out = tmp_path / "export"
    assert export.main([f"--checkpoint={sft}", f"--out={out}"]) == 0
    run = tmp_path / "run"
    run.symlink_to(sft)  # the journal of looks is written next to it
    results = []
    for place in (run, out):
        workdir = tmp_path / f"scores of {place.name}"
        flags = ("max_tokens=12", "samples=2", f"files.mine={mine}")
        assert evaluate(place, workdir, *flags) == 0, capsys.readouterr().err
        results.append(json.loads((workdir / "results.json").read_text()))
    of_run, of_export = results
    assert of_run["settings"]["chat"]
    figures = of_run["tasks"]["gsm8k_test-0-shot"]["figures"]
    assert figures["exact"]["value"] == 0.5 and figures["exact, no answer"]["value"] == 0
    for label, task in of_run["tasks"].items():
        assert of_export["tasks"][label]["figures"] == task["figures"], label
    assert of_export["run"]["parameters"] == of_run["run"]["parameters"]
    assert of_export["settings"] == of_run["settings"]
    # The text of the run and that of its parent were both looked through.
    for results in (of_run, of_export):
        documents = results["contamination"]["documents"]
        assert documents.keys() == {"chats", "words"} and documents["chats"] == 400
        assert results["tasks"]["mine"]["contamination"]["unchecked"] == []
