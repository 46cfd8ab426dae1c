"""A run that was killed at any moment and started again leaves what an undisturbed one leaves, and nothing else."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from slmjax.checkpoint import Checkpoints
from slmjax.record import metrics
from tests.corpus import ROOT
from tests.runs import saved

RECIPE = "tests/recipes/textbook.py"
STEPS = 30
LIMIT = 300  # seconds of one start
SESSIONS = ("start", "resume", "data", "lineage", "goodput")  # events that every start repeats
TIMED = ("Time", "History")  # sections of the report that tell sessions and seconds


@pytest.mark.slow
def test_a_run_that_was_killed_leaves_what_an_undisturbed_one_leaves(tmp_path):
    """The short form of .ci/drills/test_thirty_kills.py."""
    undisturbed = whole(tmp_path / "undisturbed")
    chain = Chain(tmp_path / "killed", random.Random(3))
    chain.kill(chain.at_a_step())
    chain.kill("finish:3")
    assert chain.last >= 1
    chain.ends()
    assert_same(chain.folder, undisturbed)


def whole(folder):
    """The folder of a run that nothing disturbs."""
    process = start(folder)
    out = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 0, out
    return folder


def start(folder, point=""):
    """Start the run of a folder in a process of its own; `point` is where it kills itself."""
    xla = re.sub(r"(device_count)=\d+", r"\1=1", os.environ["XLA_FLAGS"])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla, "PYTHONPATH": str(ROOT)}
    if point:
        environment |= {"SLMJAX_TEST_KILL": point, "SLMJAX_TEST_FOLDER": str(folder)}
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "tests.train.killed",
        f"--config={RECIPE}",
        f"--workdir={folder / 'run'}",
    ]
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **out)


class Chain:
    """One run that is killed again and again, each time with the same command.

    kills: how many so far; last: how many of them after the last checkpoint.
    """

    def __init__(self, folder, draw):
        self.folder, self._draw, self.kills, self.last = folder, draw, 0, 0

    def at_a_step(self):
        """Some time after a step, as (step, seconds)."""
        return self._draw.randrange(1, STEPS), self._draw.uniform(0, 0.1)

    def at_the_end(self):
        """Some time after the last step, as (step, seconds)."""
        return STEPS, self._draw.uniform(0, 2)

    def kill(self, point):
        """Start the run and kill it at a point: (step, seconds), or a change of a file, see killed.py.

        Returns: False where the run ended before.
        """
        known = len(self._records())
        at_a_change = isinstance(point, str)
        process = start(self.folder, point if at_a_change else "")
        if not at_a_change:
            step, seconds = point
            end = time.monotonic() + LIMIT
            while process.poll() is None and self._reached(known) < step and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(seconds)
            process.kill()
        out = process.communicate(timeout=LIMIT)[0]
        assert process.returncode in (0, -signal.SIGKILL), out
        where = (
            out.strip().splitlines()[-1] if at_a_change else f"{seconds:.2f} s after step {step}"
        )
        print(
            f"{self.folder.name}, {point}: status {process.returncode}, step {self._reached(known)}; {where}"
        )
        if process.returncode == 0:
            return False
        self.kills, self.last = (
            self.kills + 1,
            self.last + (STEPS in Checkpoints(self.folder / "run").steps()),
        )
        return True

    def ends(self):
        """Let the run end."""
        whole(self.folder)

    def _records(self):
        return metrics.read(self.folder / "run").all

    def _reached(self, known):
        """The last step of this session."""
        return max(
            (
                record["step"]
                for record in self._records()[known:]
                if record.get("event") != "resume"
            ),
            default=-1,
        )


def assert_same(folder, undisturbed):
    """What a run has left is what another one has left, but for times, goodput and the folder's name."""
    mine, other = folder / "run", undisturbed / "run"
    assert files(folder) == files(undisturbed)
    for name in ("config.json", "tokenizer.json"):
        assert (mine / name).read_bytes() == (other / name).read_bytes()
    assert records(mine) == records(other)
    with np.load(mine / "heldout.npz") as scores, np.load(other / "heldout.npz") as others:
        assert {name: scores[name].tobytes() for name in scores} == {
            name: others[name].tobytes() for name in others
        }
    steps = Checkpoints(mine).steps()
    assert steps == Checkpoints(other).steps() == [24, 25, 30]
    for step in steps:
        assert Checkpoints(mine).read_meta(step) == Checkpoints(other).read_meta(step)
        arrays, others = saved(mine, step), saved(other, step)
        assert arrays.keys() == others.keys() and len(arrays) > 20
        assert [name for name in arrays if arrays[name].tobytes() != others[name].tobytes()] == []
    assert report(folder) == report(undisturbed)


def files(folder):
    """Names of all files and folders; names that the storage draws by chance are left out."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {re.sub(r"(/d/|\.identity/)[0-9a-f]{32}", r"\1ANY", name) for name in names}


def records(workdir):
    """The records of a run without those of its starts, and without times."""
    found = []
    for record in metrics.read(workdir).kept:
        if record.get("event") not in SESSIONS:
            found.append(
                {
                    name: value
                    for name, value in record.items()
                    if name != "time" and not name.startswith("perf/")
                }
            )
    return found


def report(folder):
    """{heading: (words, curves)} of a report's sections, without what tells times and restarts."""
    page = (folder / "run" / "report.html").read_text().replace(str(folder), "FOLDER")
    sections = {}
    for section in re.split(r"<h2", page)[1:]:
        heading, _, inner = section.partition("</h2>")
        heading = heading.rpartition(">")[2]
        curves = [path for path in re.findall(r'<path d="([^"]*)"', inner) if path.count("L") > 5]
        words = re.sub(r"<svg.*?</svg>|<[^>]*>", " ", inner, flags=re.DOTALL).replace(
            "Dotted vertical lines: restarts.", ""
        )
        sections[heading] = (" ".join(words.split()), curves)
    assert len(sections) > 8 and "finished" in page and "not finished" not in page
    return {heading: found for heading, found in sections.items() if heading not in TIMED}
