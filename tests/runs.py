"""Runs of tests/recipes/smallest.py, in this process and in others, and what they leave behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from slmjax import launch
from slmjax.checkpoint import Checkpoints
from slmjax.record import metrics
from tests.corpus import RECIPE, ROOT, write_corpus  # noqa: F401  (for tests that also train)


def argv(corpus, workdir, **fields):
    """The launcher's words; a field with dots is written with double underscores (train__steps=5)."""
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    return [f"--config={RECIPE}:{corpus}", f"--workdir={workdir}", *flags]


def train(corpus, workdir, *flags, **fields):
    """Run the launcher in this process; returns its exit status."""
    return launch.main([*argv(corpus, workdir, **fields), *flags])


def start(corpus, workdir, *flags, devices=8, module="slmjax.launch", **fields):
    """Start the launcher (or a `module` like it) in a process of its own, on `devices` host devices."""
    xla = re.sub(
        r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"]
    )  # the others as here, or bits would differ
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla, "PYTHONPATH": path}
    command = [sys.executable, "-m", module, *argv(corpus, workdir, **fields), *flags]
    return subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(workdir, step, process, seconds=120):
    """Wait until the run has logged a step; False where the process ends before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if logged(workdir) >= step:
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    raise TimeoutError(f"step {step} of {workdir} has not come in {seconds} s")


def logged(workdir):
    """The last step that this session has logged; 0 before the first."""
    steps = [record["step"] for record in metrics.read(workdir).kept if "train/loss" in record]
    return max(steps, default=0)


def signal_after(monkeypatch, step, number=signal.SIGTERM):
    """Send this process a signal when it has logged `step`."""
    write = metrics.MetricsWriter.write

    def then(self, at, values):
        write(self, at, values)
        if at == step and "train/loss" in values:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(metrics.MetricsWriter, "write", then)


def losses(workdir):
    """(steps, train/loss) over the records that no restart made invalid."""
    steps, values = metrics.series(metrics.read(workdir), "train/loss")
    return steps.tolist(), values.tolist()


def events(workdir, name):
    """Events of one name."""
    return metrics.events(metrics.read(workdir), name)


def saved(workdir, step):
    """Everything of a checkpoint but its meta item, as {path: numpy array}."""
    out = {}
    for item in ("params", "buffers", "optimizer", "rest"):
        folder = Path(workdir).absolute() / "checkpoints" / str(step) / item
        if not folder.exists():
            continue
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(folder).item_metadata.tree
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            read = reader.restore(folder, restore_args=how)
        out |= {
            f"{item}{jax.tree_util.keystr(path)}": np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(read)
        }
    return out


def steps_saved(workdir):
    """Steps with a checkpoint."""
    return Checkpoints(workdir).steps()


def assert_same_end(workdir, other, step):
    """Losses of every step and the checkpoint of `step` are those of another run, bit for bit."""
    assert losses(workdir) == losses(other)
    mine, theirs = saved(workdir, step), saved(other, step)
    assert mine.keys() == theirs.keys() and len(mine) > 20
    assert [name for name in mine if mine[name].tobytes() != theirs[name].tobytes()] == []
