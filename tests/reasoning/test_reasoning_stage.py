"""The stage reasoning: a model's answers and nats, kept results, and solvers that it tells apart."""

import json
import lzma
import re
from fractions import Fraction

import numpy as np
import pytest
from etils import epath

from slmjax import launch, probe_training
from slmjax.errors import UserError
from slmjax.evals.continuation_scores import EncodedPair
from slmjax.evals.development_set import question_id
from slmjax.evals.evaluate_stage import examined_run
from slmjax.evals.number_answers import number_answer
from slmjax.export import main as export_main
from slmjax.reasoning import arms, probe_columns, reasoning_stage
from slmjax.reasoning.arms import redrawn
from slmjax.reasoning.example_problems import example_problems
from slmjax.reasoning.model_answers import ProbedModel, SolutionNats
from slmjax.reasoning.probe_columns import HELD_OUT, TRAINED_ON, read_probe_problems
from slmjax.reasoning.probe_split import ProbeSplit, templates_by_key
from slmjax.reasoning.probe_words import probe_sentences
from slmjax.reasoning.problem_templates import NumberPool
from slmjax.reasoning.simulated_solvers import careless_solver, perfect_solver, surface_solver
from tests.corpus import ROOT

RECIPE = ROOT / "configs" / "studies" / "reasoning.py"


def probe(run, workdir, *flags):
    fields = [f"--config.reasoning.{flag}" for flag in flags]
    words = [f"--config={RECIPE}:toy", f"--workdir={workdir}", f"--init_from={run}"]
    return launch.main([*words, "--config.reasoning.variants=1", *fields])


@pytest.fixture(scope="module")
def examples():
    return read_probe_problems("examples")


class Solver(ProbedModel):
    """In place of a model: answers of a known kind, in words."""

    def __init__(self, solve):
        self.solve = solve
        self.asked = []

    def answers(self, instances):
        self.asked.append(instances[0].arm)
        found = self.solve(instances)
        return ["I do not know." if each is None else f"So #### {each}" for each in found]

    def solution_nats(self, instances):
        return SolutionNats(np.arange(1.0, len(instances) + 1), np.full(len(instances), 2))


def outcome(examples, solve, folder, name=HELD_OUT):
    column = examples.column(name, 200, 2)
    solver = Solver(solve)
    made = reasoning_stage._Probe(column, solver, epath.Path(folder), {"parameters": "of a test"})
    return made, made.result(), solver


def test_solvers_of_known_kinds_are_told_apart(examples, tmp_path):
    _, perfect, solver = outcome(examples, perfect_solver, tmp_path / "perfect")
    assert perfect.p0.mean() == 1 and len(solver.asked) == 16
    assert "agrees with reasoning" in probe_sentences(perfect)[-1]
    # Copied equations solve what was trained on, and nothing else.
    copier = surface_solver(examples.trainable)
    _, new, _ = outcome(examples, copier, tmp_path / "surface")
    _, known, _ = outcome(examples, copier, tmp_path / "surface", TRAINED_ON)
    assert new.p0.mean() < 0.1 < 0.5 < known.p0.mean()
    assert {arm.arm: arm.verdict for arm in known.arms}["p1"] == "falls"
    assert "learned patterns explain" in probe_sentences(new, known)[-1]
    _, careless, _ = outcome(examples, careless_solver(0.8), tmp_path / "careless")
    assert 0.5 < careless.p0.mean() < 0.8
    harmless = {arm.arm: arm.verdict for arm in careless.arms}
    assert harmless["names"] == harmless["noop_none"] == "no change seen"


def test_a_model_that_solves_too_little_is_not_asked_the_other_arms(examples, tmp_path):
    made, result, solver = outcome(examples, lambda some: [None] * len(some), tmp_path)
    assert solver.asked == ["original", "p0"] and result.p0.mean() == 0
    assert {arm.verdict for arm in result.arms} == {"cannot be told"}
    facts = made.facts(result, examples)
    # Nats are known of all arms, and compared where the solutions are equal.
    compared = {row["arm"] for row in facts["nats"] if "difference" in row}
    assert len(facts["nats"]) == 16
    assert {"names", "noop_none", "control_same"} <= compared
    assert not compared & {"p0", "p1", "longer", "units", "larger"}
    assert sum(row["templates"] for row in facts["novelty"]) == facts["templates"]


def test_answers_that_are_there_are_not_asked_again(examples, tmp_path, monkeypatch):
    _, first, _ = outcome(examples, perfect_solver, tmp_path)
    _, again, solver = outcome(examples, lambda some: 1 / 0, tmp_path)
    assert not solver.asked and str(again.arms) == str(first.arms)
    # A damaged file, and one of other parameters, are computed again.
    file = tmp_path / "answers" / "held-out-p0-answers.json"
    file.write_text(file.read_text()[:-5])
    other = tmp_path / "answers" / "held-out-names-answers.json"
    other.write_text(other.read_text().replace("of a test", "of another"))
    _, mended, solver = outcome(examples, perfect_solver, tmp_path)
    assert solver.asked == ["p0", "names"] and str(mended.arms) == str(first.arms)
    # So is an arm that is written in other words.
    longer = [(f"{idle} Nobody minded.", control) for idle, control in arms.IDLE]
    monkeypatch.setattr(arms, "IDLE", longer)
    _, _, solver = outcome(examples, perfect_solver, tmp_path)
    assert solver.asked == ["noop_none"]


@pytest.fixture(scope="module")
def solver(tmp_path_factory):
    """A run on the dialogues of probe_training, with rows in which a question has room."""
    folder = tmp_path_factory.mktemp("solver")
    worked = folder / "worked"
    options = [f"--out={worked}", "--problems=examples", "--variants=2"]
    assert probe_training.main(options) == 0
    fields = {"width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "ff_width": 32}
    words = [f"--config={ROOT}/configs/tiny.py", f"--workdir={folder}/run"]
    words += [f"--config.model.{name}={value}" for name, value in fields.items()]
    words += [f"--config.data.sources=worked={worked}/dialogues.jsonl"]
    words += ["--config.data.sources.worked.kind=chat", "--config.data.seq_len=512"]
    words += ["--config.train.steps=2", "--config.train.batch=8", "--config.train.warmup=0"]
    words += ["--config.eval.samples=0", "--config.eval.answers=0", "--config.data.vocab_size=400"]
    assert launch.main([*words, "--config.train.optimizer=adamw"]) == 0
    return folder / "run"


@pytest.mark.slow
def test_a_run_and_its_export_are_probed_alike_and_a_rerun_asks_nothing(solver, tmp_path, capsys):
    flags = ("templates=2", "max_tokens=4")
    assert probe(solver, tmp_path / "run", *flags) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["columns"]) == ["held-out", "trained-on"]
    assert results["settings"]["chat"]
    held_out = results["columns"]["held-out"]
    assert held_out["asked"] == ["original", "p0"] and held_out["templates"] == 2
    report = (tmp_path / "run" / "report.html").read_text()
    assert results["sentences"][-1] in report and "<script" not in report
    for link in re.findall(r'href="(items/[^"]+)"', report):
        assert (tmp_path / "run" / link).read_text().count('class="item ') in (2, 4)
    export = tmp_path / "export"
    assert export_main([f"--checkpoint={solver}", f"--out={export}"]) == 0
    assert probe(export, tmp_path / "exported", *flags) == 0
    exported = json.loads((tmp_path / "exported" / "results.json").read_text())
    assert exported["columns"] == results["columns"]
    capsys.readouterr()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "answers").iterdir()}
    assert probe(solver, tmp_path / "run", *flags) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.slow
def test_nats_are_those_of_each_solution_alone(solver, examples):
    model, _ = examined_run(str(solver), ())
    probed = ProbedModel(model, max_tokens=4)
    instances = examples.column(HELD_OUT, 3, 1).instances[:5]
    found = probed.solution_nats(instances)
    prompts, solutions = probed._prompts(instances), probed._solutions(instances)
    for number, (prompt, solution) in enumerate(zip(prompts, solutions, strict=True)):
        log_p, _ = model.scorer.alone(EncodedPair(prompt, solution))
        assert found.nats[number] == pytest.approx(-log_p, rel=1e-4)
        assert found.tokens[number] == len(solution)
    # In the chat template, as it was trained: question and answer are turns.
    tokenizer = model.loaded.tokenizer
    assert tokenizer.token_bytes()[prompts[0][0]] == b""
    assert tokenizer.decode(prompts[0]).endswith("assistant\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["templates=1"], "expected 2 to 200 templates"),
        # Training text has these numbers.
        (["variants=11"], "1 to 10 variants"),
        (["problems=nothing.jsonl"], "nothing.jsonl"),
        (["max_tokens=500"], "lower config.reasoning.max_tokens"),
    ],
)
def test_what_cannot_be_probed_is_one_sentence(solver, tmp_path, capsys, flags, sentence):
    assert probe(solver, tmp_path / "run", *flags) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists()
    assert launch.main([f"--config={RECIPE}", f"--workdir={tmp_path}/none"]) == 2
    assert "the stage reasoning needs --init_from" in capsys.readouterr().err


def test_a_part_of_gsm8k_train_and_too_few_problems_are_refused(tmp_path, monkeypatch):
    few = [{"question": "How many are 3 and 4?", "answer": "<<3+4=7>>7\n#### 7"}]
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in few))
    with pytest.raises(UserError, match="of 0 wordings; expected two or more"):
        read_probe_problems(str(path))
    keys = {template.key for template in read_probe_problems("examples").templates}
    split = ProbeSplit((*sorted(keys)[:3], "0" * 16), ("1" * 16,), frozenset())
    monkeypatch.setattr(probe_columns, "read_split", lambda: split)
    with pytest.raises(UserError, match="3 of the 5 templates of GSM8K train's split are among"):
        read_probe_problems("examples")


def test_training_dialogues_hold_nothing_that_is_held_out(examples, tmp_path, capsys):
    out = tmp_path / "worked"
    words = [f"--out={out}", "--problems=examples", "--variants=3"]
    assert probe_training.main(words) == 0
    lines = (out / "dialogues.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    questions = [record["prompt"] for record in records]
    assert len(set(questions)) == len(questions) > len(examples.trainable)
    asked = set()
    pool = NumberPool(examples.templates)
    for template in templates_by_key(examples.templates, examples.split.trained_on):
        asked.update(redrawn(template, pool, variant).question for variant in range(10))
    for template in templates_by_key(examples.templates, examples.split.held_out):
        asked.add(template.problem.question)
        asked.update(redrawn(template, pool, variant).question for variant in range(20))
    originals = {problem.question for problem in examples.trainable}
    assert len(asked) > 500 and asked & set(questions) <= originals
    assert not examples.split.forbidden & {question_id(question) for question in questions}
    for record in records:
        assert number_answer(record["response"]) == Fraction(record["response"].split("####")[1])
    # The same command writes the same again; a folder with something else is left alone.
    assert probe_training.main(words) == 0
    assert (out / "dialogues.jsonl").read_text().splitlines() == lines
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    assert probe_training.main([f"--out={other}", "--problems=examples"]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert probe_training.main([*words, "--variants=0"]) == 2


def test_problems_of_a_file_are_compared_with_evaluation_sets(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.jsonl"
    records = []
    for problem in example_problems():
        answer = f"{problem.solution}#### {problem.answer}"
        records.append({"question": problem.question, "answer": answer})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setenv("SLMJAX_SHARED", str(tmp_path / "shared"))
    words = [f"--out={tmp_path}/out", f"--problems={path}", "--variants=1"]
    assert probe_training.main(words) == 2
    assert "which the dialogues must be compared with" in capsys.readouterr().err
    test_set = tmp_path / "shared" / "gsm8k" / "test.jsonl.xz"
    test_set.parent.mkdir(parents=True)
    of = read_probe_problems(str(path))
    copied = of.trainable[0]
    item = {"question": copied.question, "answer": f"{copied.solution}#### {copied.answer}"}
    test_set.write_bytes(lzma.compress((json.dumps(item) + "\n").encode()))
    assert probe_training.main(words) == 0
    text = (tmp_path / "out" / "dialogues.jsonl").read_text()
    assert json.dumps(copied.question) not in text
    mark = json.loads((tmp_path / "out" / "probe_training.json").read_text())
    assert mark["counts"]["in evaluation sets"] >= 1
    assert mark["counts"]["searched for"] == ["gsm8k"]
