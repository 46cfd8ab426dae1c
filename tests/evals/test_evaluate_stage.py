"""The stage evaluate: figures of every format, pages, looks, a rerun, and one sentence for each mistake."""

import dataclasses
import json
import lzma
import re

import jax
import jax.numpy as jnp
import pytest

from slmjax import config as configs
from slmjax import launch
from slmjax.errors import UserError
from slmjax.evals import evaluate_stage
from slmjax.evals.evaluation_items import read_set
from slmjax.evals.looks import read_looks
from slmjax.evals.question_answers import drawn_examples, pass_at, question_prompts, vote
from slmjax.text.tokenizer import train_bpe
from tests.corpus import ROOT

RECIPE = ROOT / "configs" / "evaluate.py"
CHOICES = {"query": "the river", "choices": ["carries", "stone bread"], "gold": 0}
OPTIONS = {"context_options": ["the river", "a stone"], "continuation": "counts", "gold": 1}
SENTENCES = {"sentence_good": "a stone", "sentence_bad": "stone a", "linguistics_term": "order"}
CONTINUATION = {"context": "the river", "continuation": "carries"}
QUESTION = {"question": "1+2?", "answer": "#### 3"}
FORMATS = {
    "choices": CHOICES,
    "options": OPTIONS,
    "sentences": SENTENCES,
    "continuations": CONTINUATION,
    "questions": QUESTION,
    "texts": {"text": "the river carries bread under the stone"},
}


def write_items(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(lzma.compress(text.encode()) if path.suffix == ".xz" else text.encode())
    return path


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A folder as $SLMJAX_SHARED is, with small sets."""
    folder = tmp_path / "shared"
    monkeypatch.setenv("SLMJAX_SHARED", str(folder))
    others = [CHOICES | {"query": f"{n} stones", "gold": n % 2} for n in range(4)]
    write_items(folder / "evals" / "arc_easy.jsonl.xz", CHOICES, *others)
    write_items(folder / "gsm8k" / "test.jsonl", QUESTION)
    write_items(folder / "gsm8k" / "train.jsonl", QUESTION, QUESTION | {"question": "2+1?"})
    return folder


@pytest.fixture
def files(tmp_path):
    """{format: a file with two items of it}."""
    return {
        name: str(write_items(tmp_path / f"{name}.jsonl", record, record))
        for name, record in FORMATS.items()
        if name != "questions"  # gsm8k_test has their format
    }


def evaluate(run, workdir, *flags, part="word_problems"):
    fields = [f"--config.evaluate.{flag}" for flag in flags]
    places = [f"--workdir={workdir}", f"--init_from={run}"]
    return launch.main([f"--config={RECIPE}:{part}", *places, *fields])


@pytest.fixture
def run(undisturbed, tmp_path):
    """A finished run in a folder of its own, where a journal can be written."""
    place = tmp_path / "runs" / "base"
    place.parent.mkdir()
    place.symlink_to(undisturbed)
    return place


def test_every_format_has_its_figures_and_a_rerun_gives_the_same(
    run, shared, files, tmp_path, capsys
):
    mapping = f"files={files}"
    flags = (mapping, "tasks=arc_easy,gsm8k_test", "shots=0,1", "max_tokens=6", "samples=2")
    assert evaluate(run, tmp_path / "first", *flags) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "first" / "results.json").read_text())
    headlines = {label: next(iter(task["figures"])) for label, task in results["tasks"].items()}
    assert headlines == {
        "arc_easy": "acc",
        "gsm8k_test-0-shot": "exact",
        "gsm8k_test-1-shot": "exact",
        "choices": "acc",
        "options": "acc",
        "sentences": "acc",
        "continuations": "acc",
        "texts": "bits_per_byte",
    }
    asked = results["tasks"]["gsm8k_test-0-shot"]["figures"]
    assert {"lm-eval strict-match", "vote of 2", "pass@1", "pass@2"} <= set(asked)
    assert results["run"]["lineage"][0]["step"] == 30
    assert results["looks"]["gsm8k_test"] == 2 and "texts" not in results["looks"]
    # Every item stands on its page with its verdict, and every page is linked.
    report = (tmp_path / "first" / "report.html").read_text()
    for label, task in results["tasks"].items():
        assert f'href="items/{label}.html"' in report
        page = (tmp_path / "first" / "items" / f"{label}.html").read_text()
        assert page.count('<div class="item ') == task["items"]
        assert "<script" not in page and not re.search(r'(src|href)="http', page)

    # Elsewhere all is measured again; the same figure of the same parameters is one look.
    assert evaluate(run, tmp_path / "again", *flags) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    for label, task in results["tasks"].items():
        assert again["tasks"][label]["figures"] == task["figures"], label
    assert again["looks"] == results["looks"]
    capsys.readouterr()
    # In the same place nothing is measured, but for the task whose data has changed.
    write_items(shared / "gsm8k" / "test.jsonl", QUESTION, QUESTION)
    assert evaluate(run, tmp_path / "first", *flags) == 0
    printed = capsys.readouterr().out
    assert printed.count(" items in ") == printed.count("  2 items in ") == 2
    assert {look.set for look in read_looks(tmp_path / "runs" / "looks.jsonl")} >= {"arc_easy"}


def test_bits_per_byte_of_a_text_are_those_of_training_on_the_same_documents(
    undisturbed, corpus, tmp_path
):
    import numpy as np

    from slmjax.data.prepare_stage import prepared_text
    from slmjax.evals.text_bits import text_losses
    from slmjax.infer.load import load_model
    from slmjax.models.lm import Model

    loaded = load_model(str(undisturbed))
    shards = prepared_text(loaded.config.data, str(undisturbed)).heldout["words"]
    saved = np.load(undisturbed / "heldout.npz")
    texts = [loaded.tokenizer.decode(tokens) for tokens in shards]
    seq_len = loaded.config.data.seq_len
    losses = text_losses(
        Model(loaded.arch), loaded.params, loaded.buffers, loaded.tokenizer, texts, seq_len
    )
    by_key = dict(zip(np.asarray(shards.keys).tolist(), losses.nats, strict=True))
    ours = [by_key[key] for key in saved["words/keys"].tolist()]
    np.testing.assert_allclose(ours, saved["words/nats"], rtol=1e-6)
    assert len(ours) >= 5


def test_a_part_of_a_set_is_the_same_for_every_model_and_in_order(shared):
    whole = read_set("arc_easy", {}, 0, 0)
    part = read_set("arc_easy", {}, 3, 0)
    assert len(whole.items) == 5 and part.total == 5 and len(part.items) == 3
    assert part == read_set("arc_easy", {}, 3, 0)
    places = [whole.items.index(item) for item in part.items]
    assert places == sorted(places)
    # lm-eval's end of the prompt, which the file lacks.
    assert whole.items[0].pairs[1] == ("the river\nAnswer:", " stone bread")


def test_partial_scoring_changes_the_context_and_sentences_have_none(tmp_path):
    paths = {
        name: str(write_items(tmp_path / f"{name}.jsonl", record))
        for name, record in FORMATS.items()
    }
    (options,) = read_set("options", paths, 0, 0).items
    assert options.pairs == (("the river", " counts"), ("a stone", " counts"))
    (sentences,) = read_set("sentences", paths, 0, 0).items
    assert sentences.pairs == (("", "a stone"), ("", "stone a")) and sentences.group == "order"


def test_examples_stand_before_the_question_as_in_lm_eval_or_as_turns():
    from slmjax.evals.evaluation_items import QuestionItem

    tokenizer = train_bpe(["Question: Answer: user assistant 1 and 2?"], 320)
    examples = [QuestionItem("1 and 2?", "1+2\n#### 3", "3")]
    (item,) = [QuestionItem("2 and 2?", "#### 4", "4")]
    (plain,) = question_prompts(tokenizer, [item], examples, chat=False)
    text = "Question: 1 and 2?\nAnswer: 1+2\n#### 3\n\nQuestion: 2 and 2?\nAnswer:"
    assert tokenizer.decode(plain) == text
    (turns,) = question_prompts(tokenizer, [item], examples, chat=True)
    start = tokenizer.special["<|im_start|>"]
    assert turns.count(start) == 4
    assert turns[-len(tokenizer.encode("assistant\n")) - 1] == start
    assert drawn_examples([item] * 3, 2, 0) == [item] * 2
    with pytest.raises(UserError, match="shots is 4; there are 3 examples"):
        drawn_examples([item] * 3, 4, 0)


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_sample():
    import itertools

    import numpy as np

    n = 5
    for right in range(n + 1):
        samples = [True] * right + [False] * (n - right)
        for k in range(1, n + 1):
            draws = list(itertools.combinations(samples, k))
            share = sum(map(any, draws)) / len(draws)
            assert pass_at(k, n, np.array([right]))[0] == pytest.approx(share)


def test_the_vote_counts_extracted_answers_and_the_first_of_equals_wins():
    assert vote([("3", True), ("4", False), ("4", False), ("3", True)])
    assert not vote([("4", False), ("3", True), ("", False), ("", False)])
    assert not vote([("", False)])


MISTAKES = {
    "no run": ([], {"init_from": ""}, "the stage evaluate needs --init_from"),
    "several runs": ([], {"init_from": "a,b"}, "measures one run at a time"),
    "unknown task": (["tasks=arc_esy"], {}, "has no set 'arc_esy'.*Did you mean 'arc_easy'"),
    "no task": (["tasks=()"], {}, "evaluate.tasks is empty"),
    "missing file": (["files={'mine': 'nowhere.jsonl'}"], {}, "nowhere.jsonl"),
    "shots": (["shots=-1"], {}, "evaluate.shots is .-1.*expected such as"),
    "many shots": (["shots=3"], {}, "there are 2 examples"),
    "long answers": (["max_tokens=64"], {}, "gsm8k_test: with 0 examples .* trained on 64"),
    "samples": (["samples=5000"], {}, "evaluate.samples is 5000"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_measured(name, run, shared, tmp_path, capsys):
    flags, places, sentence = MISTAKES[name]
    init_from = places.get("init_from", str(run))
    words = [f"--init_from={init_from}"] if init_from else []
    fields = [f"--config.evaluate.{flag}" for flag in flags]
    recipe = f"--config={RECIPE}:word_problems"
    assert launch.main([recipe, f"--workdir={tmp_path}/out", *words, *fields]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(sentence, message), message
    assert not (tmp_path / "out" / "results.json").exists()
    assert not (tmp_path / "runs" / "looks.jsonl").exists()


BAD = {
    "other fields": ({"prompt": "x"}, "has the fields prompt; expected {query, choices, gold} or"),
    "gold out of range": (CHOICES | {"gold": 2}, "gold is 2 of 2 choices"),
    "gold of another type": (CHOICES | {"gold": True}, "gold is True of 2 choices"),
    "an empty choice": (CHOICES | {"choices": ["a", ""]}, "'' is no text"),
    "no number": (QUESTION | {"answer": "three"}, "no number after '####'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_record_with_a_fault_is_refused_with_its_line_and_what_is_expected(name, tmp_path):
    record, sentence = BAD[name]
    good = [value for value in FORMATS.values() if set(value) <= set(record)]
    path = write_items(tmp_path / "mine.jsonl", *good[:1], record)
    line = 1 + len(good[:1])
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        read_set("mine", {"mine": str(path)}, 0, 0)
    assert f"line {line}" in str(error.value) and "expected {query" in str(error.value)


def test_an_empty_file_a_broken_line_and_no_data_at_all_are_refused(tmp_path, monkeypatch):
    (tmp_path / "broken.jsonl").write_text(json.dumps(CHOICES) + "\n{")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"line 2: malformed JSON.*must be whole"):
        read_set("mine", {"mine": str(tmp_path / "broken.jsonl")}, 0, 0)
    with pytest.raises(UserError, match=r"holds no item; expected \{query"):
        read_set("mine", {"mine": str(tmp_path / "blank.jsonl")}, 0, 0)
    monkeypatch.setenv("SLMJAX_SHARED", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"\(SLMJAX_SHARED\) has no set 'piqa'"):
        read_set("piqa", {}, 0, 0)


def test_the_parts_of_the_recipe_are_valid_configs():
    for part in ("choices", "word_problems", "textbook"):
        config = configs.freeze(configs.load_recipe(f"{RECIPE}:{part}"))
        assert config.stage == "evaluate" and config.evaluate.tasks


def test_worked_examples_are_not_asked_and_a_diverged_model_has_no_figures(
    run, shared, tmp_path, capsys, monkeypatch
):
    flags = ("tasks=gsm8k_train", "shots=1", "max_tokens=4")
    assert evaluate(run, tmp_path / "train", *flags) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "train" / "results.json").read_text())
    task = results["tasks"]["gsm8k_train-1-shot"]
    assert task["figures"]["exact"]["count"] == 1 and "1 items are left out" in task["notes"][0]
    assert results["looks"] == {} and not (tmp_path / "runs" / "looks.jsonl").exists()

    load = evaluate_stage.load_model

    def diverged(*arguments, **settings):
        loaded = load(*arguments, **settings)
        params = jax.tree.map(lambda leaf: leaf * jnp.nan, loaded.params)
        return dataclasses.replace(loaded, params=params)

    monkeypatch.setattr(evaluate_stage, "load_model", diverged)
    assert evaluate(run, tmp_path / "nan", "tasks=arc_easy") == 2
    assert "arc_easy: brier is nan; did the model's training diverge" in capsys.readouterr().err
