"""Runs that were killed, asked to leave, damaged or made longer end as if nothing had happened; what cannot go on says why."""

import shutil
import signal

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from slmjax import compare
from slmjax import config as configs
from slmjax.checkpoint import Checkpoints
from slmjax.data import prepare_stage as stage
from slmjax.errors import UserError
from slmjax.infer.load import load_model
from slmjax.text.tokenizer import EOT, Tokenizer
from slmjax.train import resume, schedule
from slmjax.train.run import has_last_records
from tests import runs

STEPS = 30  # of the smallest recipe: warmup 4, decay from 24, checkpoints every 5


@pytest.fixture(scope="module")
def interrupted(corpus, tmp_path_factory):
    """The work directory of a run that was asked to leave at step 15, with checkpoints of 5, 10 and 15."""
    workdir = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        runs.signal_after(patch, 14)
        assert runs.train(corpus, workdir) == 143
    return workdir


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Reports have tests of their own, and each costs a second."""
    monkeypatch.setattr("slmjax.train.loop.write_report", lambda *_, **__: "report.html")
    monkeypatch.setattr("slmjax.train.run.write_report", lambda *_, **__: "report.html")


@pytest.fixture
def left(interrupted, tmp_path):
    """A copy of `interrupted` to do as one likes with."""
    return shutil.copytree(interrupted, tmp_path / "run")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_asked_to_leave_saves_and_goes_on_at_exactly_that_step(
    number, status, corpus, undisturbed, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        runs.signal_after(patch, 11, number)
        assert runs.train(corpus, tmp_path / "run") == status
    assert "the same command goes on from here" in capsys.readouterr().out
    assert [event["step"] for event in runs.events(tmp_path / "run", "preempted")] == [12]
    assert runs.steps_saved(tmp_path / "run")[-1] == 12
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert runs.train(corpus, tmp_path / "run") == 0
    assert [event["step"] for event in runs.events(tmp_path / "run", "resume")] == [12]
    assert "goes on from step 12" in capsys.readouterr().out
    every = [
        record["step"]
        for record in runs.metrics.read(tmp_path / "run").all
        if "train/loss" in record
    ]
    assert every == list(range(1, STEPS + 1))  # nothing was done twice
    runs.assert_same_end(tmp_path / "run", undisturbed, STEPS)


def _arrays(item):
    """Files that hold arrays; Orbax leaves some there that no array needs."""
    return list(item.rglob("d/*"))


def _cut(*paths):
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(*paths):
    for path in paths:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 16
        path.write_bytes(data)


def _change(path):
    text = path.read_text()
    path.write_text(text.replace('"fingerprint": "', '"fingerprint": "0'))
    assert path.read_text() != text


def _rename(step):
    shutil.rmtree(step)
    shutil.copytree(step.parent / "5", step)


DAMAGE = {
    "cut files of parameters": lambda step: _cut(*_arrays(step / "params")),
    "a flipped bit in the optimizer": lambda step: _flip(*_arrays(step / "optimizer")),
    "lost files of the optimizer": lambda step: [
        path.unlink() for path in _arrays(step / "optimizer")
    ],
    "an item that is gone": lambda step: shutil.rmtree(step / "params"),
    "a cut meta item": lambda step: _cut(step / "meta" / "metadata"),
    "a lost meta item": lambda step: shutil.rmtree(step / "meta"),
    "a changed value in the meta item": lambda step: _change(step / "meta" / "metadata"),
    "the name of another step": lambda step: _rename(step),
}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # tensorstore's, of a read that another one's failure ended
@pytest.mark.parametrize("kinds", zip(list(DAMAGE)[::2], list(DAMAGE)[1::2]), ids=" and ".join)
def test_damaged_newest_checkpoints_are_told_and_the_one_before_is_used(
    kinds, corpus, undisturbed, left, capsys
):
    assert runs.steps_saved(left) == [5, 10, 15]
    for step, kind in zip((15, 10), kinds):
        DAMAGE[kind](left / "checkpoints" / str(step))
    assert runs.train(corpus, left) == 0
    out = capsys.readouterr().out
    assert [out.count(f"the checkpoint of step {step}") for step in (5, 10, 15)] == [
        0,
        1,
        1,
    ] and out.count("it is damaged") == 2
    assert "goes on from step 5" in out
    assert [event["message"].partition(":")[0] for event in runs.events(left, "damaged")] == [
        "step 15",
        "step 10",
    ]
    assert sorted(path.name for path in (left / "checkpoints-aside").iterdir()) == ["10", "15"]
    runs.assert_same_end(left, undisturbed, STEPS)


def test_where_no_checkpoint_can_be_read_the_run_says_so(corpus, left, capsys):
    for step in (5, 10, 15):
        _cut(left / "checkpoints" / str(step) / "meta" / "metadata")
    assert runs.train(corpus, left) == 2
    for step in (5, 10, 15):
        shutil.rmtree(left / "checkpoints" / str(step) / "params")
    assert runs.train(corpus, left) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all("none of the checkpoints" in line for line in errors)


REFUSED = {
    "model.width": 24,
    "model.layers": 3,
    "model.heads": 4,
    "model.ff_width": 48,
    "model.tied": False,
    "model.qk_norm": True,
    "model.pattern": "attention rope=False",
    "precision.optimizer": "bfloat16",
    "data.seq_len": 32,
    "data.packing": "concat",
    "data.heldout": 0.1,
    "train.batch": 32,
    "train.lr": 0.02,
    "train.optimizer": "muon",
    "train.warmup": 3,
    "train.z_loss": 0.001,
    "train.microbatches": 1,
    "train.schedule": "cosine",
    "train.decay": 0.5,
    "seed": 1,
}
ALLOWED = {
    "eval.every": 7,
    "eval.samples": 1,
    "log.every": 5,
    "log.tensorboard": True,
    "checkpoint.every": 4,
    "checkpoint.keep": 9,
    "mesh.fsdp": 2,
    "data.workers": 1,
    "data.cache": "elsewhere",
    "model.attention": "reference",
    "model.remat": "full",
    "train.max_skips": 3,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_does_not_fit_is_refused_naming_the_field(name, corpus, undisturbed, capsys):
    assert runs.train(corpus, undisturbed, f"--config.{name}={REFUSED[name]}") == 2
    out, err = capsys.readouterr()
    assert (
        f"slmjax: this config does not fit the checkpoint: {name} was " in err
        and "; " not in err
        and err.count("\n") == 1
    )
    assert "--init_from" in err and out == ""


def test_all_fields_that_do_not_fit_are_named(corpus, undisturbed, capsys):
    assert (
        runs.train(corpus, undisturbed, model__width=24, train__lr=0.5, seed=3, log__every=7) == 2
    )
    err = capsys.readouterr().err
    assert (
        "model.width was 16 and is 24; seed was 0 and is 3; train.lr was 0.01 and is 0.5." in err
        and "log.every" not in err
    )


def frozen(*assignments):
    return configs.freeze(configs.override(configs.base(), assignments))


def test_a_checkpoint_from_before_a_field_existed_fits_its_default():
    saved = configs.to_dict(configs.Config())
    del saved["precision"]["products"]
    resume.check_config_fits(saved, configs.Config())
    with pytest.raises(UserError, match=r"precision\.products was compute and is float8"):
        resume.check_config_fits(saved, frozen("precision.products=float8"))


def test_phases_are_judged_by_the_order_that_they_give_not_by_how_they_are_written():
    saved = configs.to_dict(configs.Config())
    saved["data"]["phases"] = [
        [0.8, {"a": 1.0}],
        [1.0, {"b": 1.0}],
    ]  # as before phases had names for their parts
    resume.check_config_fits(
        saved, frozen("data.phases=[{'until': 0.8, 'weights': {'a': 1.0}}, (1.0, {'b': 1.0})]")
    )


@pytest.mark.parametrize("name", ALLOWED)
def test_a_field_that_changes_nothing_of_what_is_computed_is_not_refused(
    name, corpus, undisturbed, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert runs.train(corpus, undisturbed, f"--config.{name}={ALLOWED[name]}") == 0
    assert "This run is finished: 30 steps." in capsys.readouterr().out


def test_a_tokenizer_or_text_that_is_not_the_checkpoints_is_refused(corpus, left, tmp_path, capsys):
    other = runs.write_corpus(tmp_path / "other.jsonl", seed=1)
    assert runs.train(corpus, left, data__sources=f"words={other}") == 2
    assert "the tokenizer is not the one" in capsys.readouterr().err
    tokenizer = left / "tokenizer.json"
    assert runs.train(corpus, left, data__sources=f"words={other}", data__tokenizer=tokenizer) == 2
    assert (
        "the data of the first 15 steps is not what the checkpoint was trained on"
        in capsys.readouterr().err
    )
    assert runs.losses(left)[0] == list(range(1, 16)) and runs.steps_saved(left) == [5, 10, 15]


def test_a_finished_run_with_other_text_is_refused_as_an_unfinished_one_is(
    corpus, undisturbed, tmp_path, capsys
):
    other = runs.write_corpus(tmp_path / "other.jsonl", seed=1)
    assert (
        runs.train(
            corpus,
            undisturbed,
            data__sources=f"words={other}",
            data__tokenizer=undisturbed / "tokenizer.json",
        )
        == 2
    )
    out, err = capsys.readouterr()
    assert (
        "the data of the first 30 steps is not what the checkpoint was trained on" in err
        and "finished" not in out
    )


def test_a_finished_run_whose_newest_checkpoint_is_damaged_trains_its_last_steps_again(
    corpus, undisturbed, tmp_path, capsys
):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    _flip(*_arrays(run / "checkpoints" / "30" / "params"))
    assert runs.train(corpus, run) == 0
    out = capsys.readouterr().out
    assert (
        "the checkpoint of step 30" in out
        and "goes on from step 25" in out
        and "This run is finished" not in out
    )
    runs.assert_same_end(run, undisturbed, STEPS)


def test_files_that_were_deleted_from_a_finished_run_are_written_anew(
    corpus, undisturbed, tmp_path, capsys
):
    copy = shutil.copytree(undisturbed, tmp_path / "run")
    names = ("config.json", "tokenizer.json", "heldout.npz")
    records = runs.metrics.read(copy)
    text = load_model(str(undisturbed)).tokenizer
    assert has_last_records(epath.Path(copy), records, STEPS, text)
    for name in names:
        (copy / name).unlink()
        assert not has_last_records(epath.Path(copy), records, STEPS, text)
        reads = (
            load_model
            if name == "tokenizer.json"
            else lambda folder: compare.load_run(folder, "run")
        )
        with pytest.raises(
            UserError, match=f"has lost its {name}; the command that trained the run, started again"
        ):
            reads(str(copy))
        shutil.copy(undisturbed / name, copy)
    for name in names:
        (copy / name).unlink()
    assert runs.train(corpus, copy) == 0
    assert "only the last records are missing" in capsys.readouterr().out
    for name in names[:2]:
        assert (copy / name).read_bytes() == (undisturbed / name).read_bytes()
    with np.load(copy / "heldout.npz") as mine, np.load(undisturbed / "heldout.npz") as other:
        assert {name: mine[name].tobytes() for name in mine} == {
            name: other[name].tobytes() for name in other
        }
    assert runs.train(corpus, copy) == 0
    assert (
        "This run is finished" in capsys.readouterr().out and len(runs.events(copy, "finish")) == 1
    )


def test_what_a_kill_after_the_last_checkpoint_left_out_is_made_up_for(
    corpus, tmp_path, monkeypatch, capsys
):
    class Killed(BaseException):
        """Nothing catches it, as nothing catches SIGKILL."""

    def killed(*_):
        raise Killed

    asked = []
    run, fields = (
        tmp_path / "run",
        {"train__steps": 6, "checkpoint__every": 1, "eval__textbook": True},
    )
    with monkeypatch.context() as patch:
        patch.setattr("slmjax.train.textbook_evaluation.textbook_answers", killed)
        with pytest.raises(Killed):
            runs.train(corpus, run, **fields)
    assert runs.steps_saved(run)[-1] == 6 and not runs.events(run, "finish")
    answers = {"sums": {"accuracy": 0.5, "chance": 0.1, "count": 4}}
    monkeypatch.setattr(
        "slmjax.train.textbook_evaluation.textbook_answers", lambda *_: asked.append(1) or answers
    )
    with monkeypatch.context() as patch:  # after the answers, before their shares
        patch.setattr("slmjax.record.metrics.MetricsWriter.write", lambda *_: killed())
        with pytest.raises(Killed):
            runs.train(corpus, run, **fields)
    assert [event["kinds"] for event in runs.events(run, "answers")] == [
        answers
    ] and not runs.events(run, "finish")
    assert len(runs.metrics.series(runs.metrics.read(run), "eval/sums/accuracy")[0]) == 0
    # A checkpoint of which half was written, and one of which half was deleted.
    (run / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()
    (run / "checkpoints" / "2" / "params").mkdir(parents=True)
    capsys.readouterr()
    assert runs.train(corpus, run, **fields) == 0
    assert "only the last records are missing" in capsys.readouterr().out
    assert runs.train(corpus, run, **fields) == 0
    assert "This run is finished: 6 steps." in capsys.readouterr().out and len(asked) == 1
    assert [len(runs.events(run, name)) for name in ("answers", "finish")] == [1, 1]
    records = runs.metrics.read(run)
    assert [
        record["eval/sums/accuracy"] for record in records.kept if "eval/sums/accuracy" in record
    ] == [0.5]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "5", "6"]


def test_the_loss_of_a_line_covers_its_steps_also_when_the_run_left_in_between(
    corpus, undisturbed, tmp_path, monkeypatch
):
    run, fields = tmp_path / "run", {"log__every": 10}
    with monkeypatch.context() as patch:
        runs.signal_after(patch, 10)
        assert runs.train(corpus, run, **fields) == 143
    assert runs.steps_saved(run)[-1] == 11  # in the middle of a line
    assert runs.train(corpus, run, **fields) == 0
    every = runs.losses(undisturbed)[1]
    assert runs.losses(run) == (
        [10, 20, 30],
        [float(np.mean(every[at : at + 10])) for at in (0, 10, 20)],
    )


def test_a_run_that_another_start_has_taken_over_stops_before_it_saves(
    corpus, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("slmjax.text.claims.Claim.mine", lambda self: False)
    assert runs.train(corpus, tmp_path / "run", train__steps=6) == 2
    assert "another start has taken the work directory over" in capsys.readouterr().err
    assert runs.steps_saved(tmp_path / "run") == []


def test_a_finished_run_says_so_and_a_longer_one_continues_from_the_trunk(
    corpus, undisturbed, tmp_path, capsys, monkeypatch
):
    monkeypatch.undo()  # this one is about the report too
    short = tmp_path / "run"
    assert runs.train(corpus, short, train__steps=20) == 0
    assert runs.train(corpus, short, train__steps=20) == 0
    out = capsys.readouterr().out
    assert (
        "This run is finished: 20 steps." in out
        and "--config.train.steps=40" in out
        and (short / "report.html").exists()
    )
    decayed = runs.losses(short)[1]
    assert 16 in runs.steps_saved(short)
    assert runs.train(corpus, short) == 0
    assert "goes back to step 16, before the decay, and on from there" in capsys.readouterr().out
    runs.assert_same_end(short, undisturbed, STEPS)
    assert runs.losses(short)[1][:16] == decayed[:16] and runs.losses(short)[1][18] != decayed[18]
    assert "went back to step 16, before the decay" in (short / "report.html").read_text()
    assert {16, 24} <= set(runs.steps_saved(short))  # both trunks stay


def test_fewer_steps_go_back_to_the_trunk_of_the_shorter_run_or_say_that_it_is_gone(
    corpus, undisturbed, tmp_path, capsys
):
    kept = shutil.copytree(undisturbed, tmp_path / "run")
    assert runs.train(corpus, kept, train__steps=20) == 2
    assert "no checkpoint up to step 16 is left" in capsys.readouterr().err
    assert runs.train(corpus, kept, train__steps=31) == 0
    assert runs.events(kept, "extended")[-1]["from_step"] == 24
    assert runs.losses(kept)[0] == list(range(1, 32))
    assert runs.train(corpus, kept, train__steps=30) == 0
    assert "was 31 steps" in capsys.readouterr().out
    runs.assert_same_end(kept, undisturbed, STEPS)


def test_a_cosine_schedule_cannot_be_made_longer_and_says_what_can(corpus, tmp_path, capsys):
    assert runs.train(corpus, tmp_path / "run", train__schedule="cosine", train__steps=6) == 0
    assert runs.train(corpus, tmp_path / "run", train__schedule="cosine", train__steps=12) == 2
    assert (
        "knows its length from the first step" in (err := capsys.readouterr().err)
        and "train.schedule=wsd" in err
    )


@pytest.mark.slow
def test_a_run_that_began_before_ids_were_reserved_goes_on_with_its_own_tokenizer_and_text(
    corpus, tmp_path, monkeypatch
):
    run, fields = tmp_path / "run", {"train__steps": 10}
    with monkeypatch.context() as patch:
        patch.setattr(stage, "special_tokens", lambda workdir: (EOT,))  # as older versions did
        runs.signal_after(patch, 4)
        assert runs.train(corpus, run, **fields) == 143
    content, prepared = (
        (run / "tokenizer.json").read_text(),
        set((corpus.parent / "prepared").iterdir()),
    )
    assert list(Tokenizer(content).special) == [EOT]
    assert runs.train(corpus, run, **fields) == 0
    assert (run / "tokenizer.json").read_text() == content
    assert set((corpus.parent / "prepared").iterdir()) == prepared  # nothing was prepared again
    assert runs.losses(run)[0] == list(range(1, 11)) and len(runs.events(run, "resume")) == 1
    assert load_model(str(run)).tokenizer.ends == (0,)


class _Known(Checkpoints):
    """Checkpoints that only have steps and a meta item."""

    def __init__(self, steps, config):
        self.root, self.known, self.saved = (
            "run/checkpoints",
            steps,
            {"config": configs.to_dict(config)},
        )

    def steps(self):
        return self.known

    def meta(self, step):
        return self.saved


@given(st.sets(st.integers(1, 60)), st.integers(20, 60), st.integers(20, 60))
def test_a_run_of_another_length_goes_on_where_both_schedules_have_been_equal(steps, before, now):
    made = {}
    for total in (before, now):
        made[total] = frozen(f"train.steps={total}", "train.warmup=5", "train.decay=0.3")
    steps = sorted(step for step in steps if step <= before)
    try:
        found = resume.decide(_Known(steps, made[before]), made[now])
    except UserError:
        assert before != now and not [
            step for step in steps if step <= min(schedule.trunk(c.train) for c in made.values())
        ]
        return
    if before == now:
        assert found.kind == (
            "fresh" if not steps else "finished" if steps[-1] == now else "resume"
        )
        assert found.step == max(steps, default=0)
        return
    past = np.arange(found.step)
    np.testing.assert_array_equal(
        schedule.factor(made[before].train, past), schedule.factor(made[now].train, past)
    )
    assert found.kind == ("extend" if steps else "fresh")
    assert not [
        s for s in steps if found.step < s <= min(schedule.trunk(c.train) for c in made.values())
    ]
