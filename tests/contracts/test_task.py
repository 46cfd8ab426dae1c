"""A user's task, from a recipe in a folder of its own: trained, killed, resumed and evaluated by the launcher."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slmjax import config as configs
from slmjax import generate
from slmjax.errors import UserError
from slmjax.infer.load import load_model
from slmjax.record import metrics
from slmjax.train import resume
from slmjax.train.builders import builder_of, task_of
from tests import runs

HERE = Path(__file__).parent
STEPS = 12


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The recipe with its tasks, in a folder that the library knows nothing of."""
    folder = tmp_path_factory.mktemp("mine")
    for name in ("toy.py", "toy_rows.py"):
        shutil.copy(HERE / name, folder)
    return folder / "toy.py"


@pytest.fixture(scope="module")
def pictures(recipe):
    """The work directory of an undisturbed run."""
    ends(start(recipe, "Pictures", "undisturbed"))
    return recipe.parent / "undisturbed"


def start(recipe, task, name, *flags, kill=""):
    """Start the launcher on one device in a process of its own."""
    xla = re.sub(r"(device_count)=\d+", r"\1=1", os.environ["XLA_FLAGS"])
    path = os.pathsep.join([str(runs.ROOT), str(recipe.parent)])
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla,
        "PYTHONPATH": path,
        "TOY_KILL": kill,
    }
    command = [
        sys.executable,
        "-m",
        "slmjax.launch",
        f"--config={recipe}:{task}",
        f"--workdir={recipe.parent / name}",
        *flags,
    ]
    return subprocess.Popen(
        command,
        env=environment,
        cwd=recipe.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends(process, status=0):
    """Wait for the end; returns what it printed."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, out + err
    return out


def values(workdir, name):
    """{step: value} of a metric."""
    steps, found = metrics.series(metrics.read(workdir), name)
    return dict(zip(steps.tolist(), found.tolist()))


@pytest.mark.slow
def test_a_task_with_its_own_fields_and_metrics_goes_on_after_a_kill_and_ends_as_if_undisturbed(
    recipe, pictures, monkeypatch, capsys
):
    ends(start(recipe, "Pictures", "killed", kill="checkpoint"), -signal.SIGKILL)
    killed = recipe.parent / "killed"
    assert 4 in runs.steps_saved(killed) and not runs.events(killed, "finish")
    said = ends(start(recipe, "Pictures", "killed"))
    assert (
        "goes on from step 4" in said
        and "noise with a bright quarter" in said
        and "slmjax.generate" not in said
    )
    runs.assert_same_end(killed, pictures, STEPS)
    for name in ("train/right", "quarters/right", "quarters/final"):
        assert values(killed, name) == values(pictures, name)
    assert list(values(killed, "train/right")) == list(range(1, STEPS + 1)) and list(
        values(killed, "quarters/right")
    ) == [4, 8, 12]
    assert (
        list(values(killed, "quarters/final")) == [12]
        and runs.events(killed, "data")[-1]["kind"] == "images"
    )
    assert not (killed / "tokenizer.json").exists()
    again = ends(start(recipe, "Pictures", "killed"))
    assert "This run is finished" in again
    # What only reads a run: the model without its text, and a sentence where text is needed.
    words = [f"--checkpoint={killed}", "--prompt=a"]
    assert generate.main(words) == 2 and "--trust=toy:Pictures" in capsys.readouterr().err
    assert generate.main([*words, "--trust=toy:Pictures"]) == 2
    assert (
        f"'{killed}' was trained by the task 'toy:Pictures brighter=80', which has no tokenizer"
        in capsys.readouterr().err
    )
    model = load_model(str(killed), trust=["toy:Pictures"], text=False)
    assert (
        model.tokenizer is None
        and model.params["embedding"].tobytes()
        == runs.saved(killed, STEPS)["params['embedding']"].tobytes()
    )


@pytest.mark.slow
def test_rows_that_were_drawn_from_the_model_are_used_again_after_a_kill_before_the_update(recipe):
    ends(start(recipe, "Drawn", "drawn"))
    ends(start(recipe, "Drawn", "drawn-killed", kill="6"), -signal.SIGKILL)
    assert runs.logged(recipe.parent / "drawn-killed") < 7
    ends(start(recipe, "Drawn", "drawn-killed"))
    runs.assert_same_end(recipe.parent / "drawn-killed", recipe.parent / "drawn", STEPS)
    for name in ("drawn", "drawn-killed"):  # each step once, also those that were done again
        assert (recipe.parent / f"{name}.draws").read_text().split() == [
            str(step) for step in range(STEPS)
        ]
    losses = runs.losses(recipe.parent / "drawn")[1]
    assert len(set(losses)) == STEPS and losses[-1] < losses[0]


@pytest.mark.slow
def test_images_are_read_by_workers_of_two_processes_as_by_one(recipe, pictures):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = (
        f"--coordinator=localhost:{port}",
        "--processes=2",
        "--config.data.workers=2",
        "--config.mesh.fsdp=2",
    )
    both = [start(recipe, "Pictures", "two", *flags, f"--process={number}") for number in range(2)]
    try:
        for process in both:
            ends(process)
    finally:
        for process in both:
            process.kill()
    two = recipe.parent / "two"
    np.testing.assert_allclose(
        runs.losses(two)[1], runs.losses(pictures)[1], rtol=2e-5
    )  # sums in another order
    assert values(two, "quarters/right") == values(pictures, "quarters/right")
    assert values(two, "train/right") == pytest.approx(values(pictures, "train/right"))


MISTAKES = """
from slmjax.data.rows import Field
from slmjax.tasks.task import TaskBuilder

def raises(config, workdir, init_from):
    raise ValueError("no such file of pictures")

class Partless:
    vocab_size = 4

class Wordless(TaskBuilder):
    vocab_size = 0
    def __init__(self, config, workdir, init_from): pass

class Taskless(Wordless):
    vocab_size = 4
    def task(self, program): return None

class Failing(Taskless):
    def task(self, program):
        return {}["rows"]

class Rows:
    def shapes(self, step): return {"pictures": Field((3, 8), "uint8", ("batch", None))}
    def read(self, step, rows): ...
    unpack = fingerprint = read

class Narrow(Taskless):
    def task(self, program):
        self.rows, self.evaluations = Rows(), ()
        return self
    totals = loss = task
"""


@pytest.mark.parametrize(
    "name, told",
    [
        (
            "lmm",
            r"config.task is 'lmm'; it can be lm, orpo, recall, or module:Name of your own\. Did you mean 'lm'\?",
        ),
        (
            "no_such_module:Task",
            "config.task names 'no_such_module:Task': No module named 'no_such_module'",
        ),
        (
            "mistakes:Partles",
            "module 'mistakes' has no attribute 'Partles'. Did you mean 'Partless'?",
        ),
        (
            "mistakes:raises",
            r"'mistakes:raises' cannot be made: '.*mistakes.py', line 6: ValueError: no such file of pictures\.",
        ),
        (
            "mistakes:Partless",
            r"'mistakes:Partless' cannot be made: Partless\(\) takes no arguments",
        ),
        (
            "mistakes:Wordless",
            "the vocab_size of 'mistakes:Wordless' is 0; expected a whole number of tokens",
        ),
        (
            "mistakes:Taskless",
            "'mistakes:Taskless' made a NoneType without 'rows'; see Task of slmjax/tasks/task.py",
        ),
        (
            "mistakes:Failing",
            "'mistakes:Failing' makes no task: '.*mistakes.py', line 21: KeyError: rows",
        ),
        ("mistakes:Taskless rate=3", "'mistakes:Taskless' has no option 'rate'; there are none"),
        (
            "recall puzle=copy:8:2",
            "'recall' has no option 'puzle'; there is puzzle, vocab, examples, tested. Did you mean 'puzzle'?",
        ),
        ("lm now", "'now' in 'lm now' is no option=value"),
        (
            "mistakes:Narrow",
            "the field 'pictures' of 'mistakes:Narrow' has 3 rows; config.train.batch is 64",
        ),
    ],
)
def test_what_is_wrong_with_a_users_task_is_said_in_one_sentence(name, told, tmp_path, monkeypatch):
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mistakes", raising=False)
    config = configs.Config(task=name)
    program = type("Program", (), {"config": config})  # the part of it that is looked at
    with pytest.raises(UserError, match=told) as caught:
        task_of.__wrapped__(builder_of(config, str(tmp_path), ""), program)
    assert "\n" not in str(caught.value)


def test_a_task_is_code_that_only_its_user_may_name_and_a_run_does_not_go_on_with_another():
    assert configs.named_code(configs.Config()) == []
    config = configs.Config(task="mine:Pictures brighter=3")
    assert configs.named_code(config) == ["mine:Pictures"]
    with pytest.raises(
        UserError,
        match=r"'elsewhere' names 'mine:Pictures': importing the module mine .* --trust=mine:Pictures",
    ):
        configs.check_trust(config, (), "elsewhere")
    with pytest.raises(
        UserError, match="does not fit the checkpoint: task was lm and is mine:Pictures brighter=3"
    ):
        resume.check_config_fits(configs.to_dict(configs.Config()), config)
    earlier = configs.to_dict(configs.Config())
    del earlier["task"]  # a run of a version that had no such field
    resume.check_config_fits(earlier, configs.Config())
