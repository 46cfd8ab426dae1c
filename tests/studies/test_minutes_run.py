"""One dial by time: the choice is made once, kept, and the run is an ordinary one."""

import json
import socket

import jax
import pytest

from slmjax.parallel.mesh import make_mesh
from slmjax.record import metrics
from slmjax.studies import minutes_run
from slmjax.train import run as training
from tests import runs
from tests.studies.few_steps import STEPS, limit

# What the recipe of the tests leaves to the minutes. They are many, so that they suffice on a busy
# machine; `few` ends the run after a dozen steps.
OPEN = {
    "train__minutes": 20,
    "train__steps": 0,
    # So many minutes would have thousands of rows.
    "train__batch": 16,
    "train__warmup": 0,
    "train__microbatches": 1,
    "model__unroll": "False",
    "checkpoint__every": 3,
}


class Killed(BaseException):
    """Stands for a kill: nothing in the library handles it."""


def shorten(patch):
    """Let runs have a dozen steps, on one device: eight make each of them slower."""
    for change in list(limit()):
        patch.setattr(*change)
    for place in (minutes_run, training):
        patch.setattr(
            place, "make_mesh", lambda sizes, devices=None: make_mesh(sizes, jax.devices()[:1])
        )


@pytest.fixture
def few(monkeypatch):
    """Runs of a dozen steps."""
    shorten(monkeypatch)


@pytest.fixture(scope="module")
def chosen(corpus, tmp_path_factory):
    """The work directory of a finished run of some minutes."""
    workdir = tmp_path_factory.mktemp("minutes") / "run"
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        assert runs.train(corpus, workdir, **OPEN) == 0
    return workdir


def config_of(workdir):
    return json.loads((workdir / "config.json").read_text())


def kill_at(monkeypatch, step):
    """Let the run end like a killed one when it logs a step."""
    write = metrics.MetricsWriter.write

    def then(self, at, values):
        if at == step:
            raise Killed
        write(self, at, values)

    monkeypatch.setattr(metrics.MetricsWriter, "write", then)


def refusal(capsys):
    """The only sentence on stderr."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("slmjax: ")]
    (line,) = lines
    return line


def test_a_run_of_some_minutes_says_in_its_records_what_it_chose_and_promised(chosen):
    train = config_of(chosen)["train"]
    subjects = [line.split()[0] for line in train["chosen"]]
    assert subjects == ["minutes", "measured", "size", "predicted", "batch"]
    assert train["steps"] == STEPS and train["batch"] > 0 and train["warmup"] == 1
    steps, _ = runs.losses(chosen)
    assert steps[-1] == STEPS
    (promise,) = runs.events(chosen, "minutes")
    assert promise["promised_seconds"] == 1200
    assert "time taken, promised" in (chosen / "report.html").read_text()


def test_the_steps_that_were_timed_are_no_steps_of_the_run(chosen):
    (goodput,) = [e for e in runs.events(chosen, "goodput") if e["step"] == STEPS][-1:]
    assert goodput["steps"] == STEPS
    first = metrics.read(chosen).kept
    assert min(record["step"] for record in first if "train/loss" in record) == 1


def test_a_run_killed_before_and_after_a_checkpoint_goes_on_with_its_choice_to_the_same_end(
    corpus, tmp_path, monkeypatch, few
):
    workdir = tmp_path / "killed"
    for step in (1, 8):
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            with pytest.raises(Killed):
                runs.train(corpus, workdir, **OPEN)
        if step == 1:
            choice = config_of(workdir)
            # Measured again, the machine would have another speed.
            monkeypatch.setattr(minutes_run, "_choose", None)
    assert runs.steps_saved(workdir)[-1] < 8
    assert runs.train(corpus, workdir, **OPEN) == 0
    assert config_of(workdir) == choice
    # Its config is a run without a measurement, which nothing disturbs.
    words = [f"--config={workdir / 'config.json'}", f"--workdir={tmp_path / 'undisturbed'}"]
    assert runs.launch.main(words) == 0
    runs.assert_same_end(workdir, tmp_path / "undisturbed", STEPS)


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"train__minutes": 5}, "train.minutes was 20.0 and is 5.0"),
        ({"train__lr": 0.02}, "train.lr was 0.01 and is 0.02"),
        ({"train__batch": 64}, "train.batch was"),
        ({"params": "1m"}, "train.size was  and is 1m"),
    ],
)
def test_a_run_that_was_begun_otherwise_is_refused(changed, said, chosen, corpus, capsys):
    flags = [f"--params={changed.pop('params')}"] if "params" in changed else []
    assert runs.train(corpus, chosen, *flags, **OPEN | changed) == 2
    assert said in refusal(capsys)


def test_a_work_directory_of_another_run_is_refused(undisturbed, corpus, capsys):
    assert runs.train(corpus, undisturbed, **OPEN) == 2
    assert "config.train.minutes has not begun" in refusal(capsys)


@pytest.mark.slow
def test_a_size_on_the_command_line_is_not_chosen(corpus, tmp_path, few):
    assert runs.train(corpus, tmp_path / "run", "--params=150k", **OPEN) == 0
    (start,) = runs.events(tmp_path / "run", "start")
    assert start["parameters"]["total"] == pytest.approx(150_000, rel=0.03)
    assert "set by --params" in config_of(tmp_path / "run")["train"]["chosen"][2]


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"train__minutes": -1}, "config.train.minutes is -1.0; it must not be negative"),
        ({"train__steps": 30}, "config.train.steps is 30"),
        ({"train__branch": True}, "config.train.branch is True"),
        ({"data__phases": "[{'until': 1.0}]"}, "config.data.phases is not empty"),
        ({"stage": "prepare"}, "config.stage is 'prepare'"),
        ({"train__minutes": 0, "train__batch": 0}, "config.train.batch is 0"),
        ({"model__width": 64}, "config.train.minutes chooses the shape"),
        ({"train__minutes": 1e-4}, "too short for this machine"),
    ],
)
def test_what_minutes_cannot_do_is_refused_in_a_sentence(fields, said, corpus, tmp_path, capsys):
    assert runs.train(corpus, tmp_path / "run", **OPEN | fields) == 2
    assert said in refusal(capsys)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_two_processes_agree_on_a_choice(corpus, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    workdir = tmp_path / "two"
    processes = []
    for number in range(2):
        flags = [f"--coordinator=localhost:{port}", "--processes=2", f"--process={number}"]
        processes.append(
            runs.start(corpus, workdir, *flags, devices=1, module="tests.studies.few_steps", **OPEN)
        )
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    # The loop compares the shapes of batches; here, that it came to the end with one choice.
    assert len(config_of(workdir)["train"]["chosen"]) == 5
    assert runs.losses(workdir)[0][-1] == STEPS


@pytest.mark.slow
def test_a_run_of_one_minute_ends_with_a_report(corpus, tmp_path):
    assert runs.train(corpus, tmp_path / "run", **OPEN | {"train__minutes": 1}) == 0
    assert (tmp_path / "run" / "report.html").exists()
