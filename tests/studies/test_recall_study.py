"""The recall study: ordinary runs of the task recall, a table of what they found, and a study that was killed goes on."""

import json
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from slmjax import config as configs
from slmjax import launch
from slmjax.data.recall_rows import PuzzleRows, puzzle_batch
from slmjax.errors import UserError
from slmjax.models import lm
from slmjax.models.architecture import Architecture
from slmjax.models.pattern import parse_block
from slmjax.record import metrics
from slmjax.studies import recall_study as recall
from slmjax.studies.study_runs import StudyRuns
from slmjax.tasks.recall import Recall, RecallBuilder
from tests import runs

SMALL = {
    "tasks": "recall:16:2",
    "vocab": 16,
    "examples": 4096,
    "tested": 256,
    "rates": (1e-2,),
    "seeds": 1,
    "enough": 1,
}
TINY = {
    "model.width": 16,
    "model.head_dim": 8,
    "train.steps": 4,
    "train.batch": 64,
    "train.warmup": 1,
    "eval.every": 2,
    "log.every": 1,
    "checkpoint.every": 2,
    "study.tasks": "recall:16:2",
    "study.vocab": 16,
    "study.examples": 128,
    "study.tested": 100,
    "study.seeds": 2,
    "study.rates": "(0.01,0.001)",
    "study.enough": 1,
    "study.variants": "{'attention': ('attention+none',)}",
    "mesh.data": 8,  # all devices, so that one run trains at a time
}


def small(steps=300, **study):
    config = configs.load_recipe("configs/studies/recall.py")
    config.model.update({"width": 32, "head_dim": 16})
    config.train.update({"steps": steps, "batch": 64, "warmup": steps // 20})
    return configs.freeze(
        configs.override(
            config, [f"study.{name}={value}" for name, value in (SMALL | study).items()]
        )
    )


def words(workdir, **changed):
    """The launcher's words for the smallest study."""
    fields = TINY | {name.replace("__", "."): value for name, value in changed.items()}
    return [
        "--config=configs/studies/recall.py",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def rows_of(workdir):
    return json.loads((workdir / "study.json").read_text())["rows"]


@pytest.fixture(scope="module")
def study(tmp_path_factory, without_reports):
    """The work directory of an undisturbed study of four runs."""
    workdir = tmp_path_factory.mktemp("study")
    assert launch.main(words(workdir)) == 0
    return workdir


def test_the_losses_of_four_parts_add_up_to_the_mean_cross_entropy_of_the_answers_alone():
    rows = PuzzleRows("recall:24:3", 64, examples=16, batch=16, seed=0)
    task, batch = Recall(rows), jax.tree.map(jnp.asarray, puzzle_batch(rows.questions))
    arch = Architecture(
        64, 16, 2, 1, 8, 16, (((parse_block("attention+none"),), 1),), attention="reference"
    )
    params = jax.jit(lm.init, static_argnums=0)(arch, jax.random.key(0))
    totals = task.totals(batch)
    loss = jax.jit(
        lambda part: task.loss(
            lm.Model(arch), params, {}, part, totals, key=jax.random.key(0), step=jnp.int32(0)
        )
    )
    parts = [loss({name: array[number::4] for name, array in batch.items()}) for number in range(4)]
    log_p = np.asarray(
        jax.nn.log_softmax(
            jax.jit(lambda: lm.logits(arch, params, lm.forward(arch, params, {}, batch)[0]))()
        )
    )
    at = np.arange(16)[:, None], np.asarray(batch["asked"])
    answers = np.asarray(batch["answers"])
    mean = sum(float(part.sum) for part in parts) / float(totals["main"])
    assert mean == pytest.approx(-log_p[(*at, answers)].mean(), rel=1e-5)
    assert sum(float(part.weight) for part in parts) == float(totals["main"]) == answers.size
    right, count = np.sum([part.terms["accuracy"] for part in parts], axis=0)
    assert right == (log_p.argmax(-1)[at] == answers).sum() and count == answers.size


@pytest.mark.slow
def test_gated_deltanet_recalls_what_a_running_mean_cannot(tmp_path):
    """Two pairs of 16 tokens: guessing among the values that stand there is right half of the time."""
    config = small(steps=250)
    settings = recall.study_settings(config)

    settings["variants"] = {"gdn": ("gdn+none",), "mean": ("tests.models.own:Mean+none",)}
    trained = StudyRuns(epath.Path(tmp_path), config, identity="", vocab_size=16)

    def accuracy(variant):
        return recall.measure_recall(config, settings, "recall:16:2", variant, trained)["accuracy"]

    assert accuracy("gdn") > 0.9 > 0.75 > accuracy("mean") > 0.3


@pytest.mark.slow
def test_a_row_is_what_the_runs_of_its_best_rate_have_recorded(study):
    (row,) = rows_of(study)
    folders = {path.name.removeprefix("recall-16-2-"): path for path in (study / "runs").iterdir()}
    assert set(folders) == {
        f"attention-{rate}-{seed}" for rate in ("0.01", "0.001") for seed in (0, 1)
    }
    past = {name: metrics.read(path) for name, path in folders.items()}
    validation = {
        name: metrics.series(records, "eval/validation/accuracy") for name, records in past.items()
    }
    test = {name: metrics.series(records, "eval/test/accuracy") for name, records in past.items()}
    assert all(steps.tolist() == [2, 4] for steps, _ in validation.values()) and all(
        steps.tolist() == [4] for steps, _ in test.values()
    )
    last = {name: (validation[name][1][-1], test[name][1][-1]) for name in past}
    means = {
        rate: np.mean([last[f"attention-{rate}-{seed}"][0] for seed in (0, 1)])
        for rate in ("0.01", "0.001")
    }
    best = max(means, key=means.get)
    tests = [last[f"attention-{best}-{seed}"][1] for seed in (0, 1)]
    assert (
        row["rate"] == float(best)
        and row["by_rate"][best] == tests
        and list(row["by_rate"]) == ["0.01", "0.001"]
    )
    assert (
        row["accuracy"] == np.mean(tests)
        and row["deviation"] == np.std(tests)
        and row["steps"] == 4
    )
    assert not (folders["attention-0.01-0"] / "tokenizer.json").exists()
    for name, seed, rate in (("attention-0.01-0", 0, 0.01), ("attention-0.001-1", 1, 0.001)):
        c = configs.from_dict(json.loads((folders[name] / "config.json").read_text()))
        assert c.task == "recall puzzle=recall:16:2 vocab=16 examples=128 tested=100"
        assert (c.stage, c.seed, c.train.lr, c.data.seq_len) == ("train", seed, rate, 16)


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_and_ends_as_if_undisturbed(study, tmp_path, capsys):
    """Killed with SIGKILL in the second run, after its checkpoint, by its own evaluation."""
    script = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from slmjax import launch\n"
        "from slmjax.tasks import recall\n"
        "run, call = Path(sys.argv[1]) / 'runs/recall-16-2-attention-0.01-1', recall.Accuracy.__call__\n"
        "def killing(self, *arguments, step, **more):\n"
        "    while step == 4 and run.exists() and not (run / 'checkpoints' / '2').exists():\n"
        "        time.sleep(0.01)\n"
        "    if step == 4 and run.exists():\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return call(self, *arguments, step=step, **more)\n"
        "recall.Accuracy.__call__ = killing\n"
        "launch.main(sys.argv[2:])\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, tmp_path, *words(tmp_path)],
        cwd=runs.ROOT,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "study.json").exists()  # no row is complete
    first = tmp_path / "runs" / "recall-16-2-attention-0.01-0"
    before = (first / "metrics.jsonl").read_bytes()
    assert launch.main(words(tmp_path, study__tested=64)) == 2  # known from the start
    printed = capsys.readouterr().err
    assert "the run 'recall-16-2-attention-0.01-0' with other settings (task)" in printed
    assert launch.main(words(tmp_path)) == 0
    assert "run 2 of 2: recall-16-2-attention-0.01-1: trained" in capsys.readouterr().out
    assert (first / "metrics.jsonl").read_bytes() == before  # what had ended was only read
    assert runs.events(first.with_name("recall-16-2-attention-0.01-1"), "resume")[0]["step"] == 2
    assert rows_of(tmp_path) == rows_of(study)


@pytest.mark.slow
def test_a_study_goes_on_with_more_variants_and_tries_no_rate_after_one_that_is_enough(
    tmp_path, capsys
):
    one = {"study__seeds": 1, "study__enough": 0}
    two = one | {
        "study__variants": "{'attention': ('attention+none',), 'a mean / of all': ('tests.models.own:Mean+none',)}"
    }
    assert launch.main(words(tmp_path, **one)) == 0
    (first,) = rows_of(tmp_path)
    assert (
        list(first["by_rate"]) == ["0.01"] and first["steps"] == 2
    )  # anything is enough, at the first look
    capsys.readouterr()
    assert launch.main(words(tmp_path, **two)) == 0
    rows = {row["variant"]: row for row in rows_of(tmp_path)}
    assert rows["attention"] == first and set(rows) == {"attention", "a mean / of all"}
    printed = capsys.readouterr().out
    assert (
        "| mixer | recall:16:2 |" in printed
        and "| a mean / of all |" in printed
        and "slmjax 0" not in printed
        and "training 1 runs" in printed  # the row that is there was only read
    )
    for name, other in {"seed": {"seed": 1}, "task": {"study__tested": 64}}.items():
        assert launch.main(words(tmp_path, **two | other)) == 2
        assert f"with other settings ({name})" in capsys.readouterr().err


def test_a_run_that_diverges_has_no_right_answers_and_one_that_is_told_to_leave_stops_the_study(
    tmp_path, monkeypatch, capsys
):
    def diverges(config, workdir, **_):
        with metrics.MetricsWriter(workdir) as writer:
            if config.train.lr == 0.01:
                writer.event("stopped", 3, reason="loss is nan")
                raise UserError("loss is nan")
            writer.write(4, {"eval/validation/accuracy": 0.25, "eval/test/accuracy": 0.5})
            writer.event("finish", 4)
        return 0

    monkeypatch.setattr("slmjax.train.run.run_train", diverges)
    assert launch.main(words(tmp_path / "one")) == 0
    printed = capsys.readouterr().out
    assert "recall-16-2-attention-0.01-1: diverged: loss is nan" in printed
    (row,) = rows_of(tmp_path / "one")
    assert (
        row["by_rate"] == {"0.01": [0.0, 0.0], "0.001": [0.5, 0.5]}
        and row["rate"] == 0.001
        and row["accuracy"] == 0.5
    )

    def is_told_to_leave(*_, leave, **__):
        leave.asked, leave.status = True, 143
        return 143

    monkeypatch.setattr("slmjax.train.run.run_train", is_told_to_leave)
    assert launch.main(words(tmp_path / "two")) == 143
    assert "the same command goes on from here" in capsys.readouterr().out
    assert not (tmp_path / "two" / "study.json").exists()


@pytest.mark.parametrize(
    "change, told",
    [
        ({"task": "recall:16:2"}, "config.study.task: .*Did you mean 'study.tasks'"),
        ({"tasks": "recal:16:2"}, "'recal:16:2' is none of"),
        ({"tasks": "recall:16:0"}, "'recall:16:0' is none of"),
        ({"tasks": 3}, "study.tasks=3: expected"),
        ({"tasks": "recall:4:64"}, "'recall:4:64' cannot be made: 64 pairs and 64 queries need"),
        (
            {"tasks": "recall:64:16"},
            "'recall:64:16' cannot be made",
        ),  # of 16 tokens there are not enough keys
        (
            {"tasks": "induction:1"},
            "'induction:1' cannot be made: induction needs a length of at least 3",
        ),
        ({"variants": {}}, "variants is empty"),
        ({"variants": 3}, "variants=3: expected"),
        ({"variants": {"a": 3}}, "variants.a is 3; expected a pattern"),
        ({"variants": {"a": "atention"}}, "Did you mean 'attention'"),
        ({"rates": ()}, "rates is empty"),
        ({"rates": ("x",)}, "expected numbers"),
        ({"rates": (-1,)}, "rates is .*not negative"),
        ({"enough": "all"}, "enough=all: expected"),
        ({"seeds": 0}, "seeds is 0; it must be positive"),
        ({"tested": "many"}, "tested=many: expected"),
        ({"vocab": 0.5}, "vocab=0.5: expected"),
        ({"tasks": "recall:16"}, "'recall:16' is none of"),
        ({"tasks": "induction:many"}, "'induction:many' is none of"),
    ],
)
def test_settings_that_make_no_sense_are_named(change, told):
    with pytest.raises(UserError, match=told):
        recall.study_settings(small(**change))


@pytest.mark.parametrize(
    "options, told",
    [
        ({"examples": 0}, "config.task: examples is 0; expected a whole number of at least 1"),
        ({"puzzle": "recal:64:4"}, "config.task: 'recal:64:4' is none of recall:LENGTH:PAIRS"),
        ({"puzzle": "copy:64:4"}, "config.data.seq_len is 128; rows of copy:64:4 have 64 tokens"),
    ],
)
def test_a_run_of_the_task_recall_needs_a_puzzle_and_its_length(options, told):
    with pytest.raises(UserError, match=told):
        RecallBuilder(configs.Config(), "", "", **options)


def test_a_rate_and_a_pattern_may_stand_alone():
    study = recall.study_settings(small(rates=0.01, variants={"a": "attention+none"}))
    assert study["rates"] == (0.01,) and study["variants"] == {"a": ("attention+none",)}
