"""Make the work directories in tests/saved, and what they lead to: python -m tests.saved.make OLD

OLD is a checkout of commit ed18125 (`git worktree add OLD ed18125`), whose code trains and generates
here. For each kind a run is killed after step 122, when step 120 is saved; its work directory goes
into KIND.zip. Then the same command goes on to the end, step 128. expected.json holds what that gave
and what the checkpoint of step 120 generates.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
KINDS = ("dense", "hybrid", "float8")
SAVED, END = 120, 128
PROMPTS = ("Time people", "World")
GENERATE = [
    *(f"--prompt={prompt}" for prompt in PROMPTS),
    "--max_tokens=24",
    "--temperature=0.8",
    "--seed=3",
]
WORDS = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world"]
WORDS += ["school", "state", "family", "student", "group", "country"]
# The launcher, killed as soon as step 122 is logged and step 120 is on disk.
KILLED = """
import os, platform, signal, sys, time
from slmjax import launch
from slmjax.record import metrics
write = metrics.MetricsWriter.write
def then(self, at, values):
    write(self, at, values)
    if at == 122:
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGKILL)
metrics.MetricsWriter.write = then
platform.platform = lambda: "Linux"
launch.main(sys.argv[1:])
"""


def main(old: str) -> None:
    """Write corpus.jsonl, KIND.zip and expected.json."""
    import tests.conftest  # noqa: F401  (the tests' XLA_FLAGS, which the old commit computes with too)

    write_corpus(FOLDER / "corpus.jsonl")
    expected = {"where": where()}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            expected[kind] = make(Path(old).absolute(), kind, Path(folder))
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def make(old: Path, kind: str, folder: Path) -> dict:
    """Make KIND.zip; returns what the old commit makes of it."""
    from tests import runs

    for name in ("recipe.py", "corpus.jsonl"):
        shutil.copy(FOLDER / name, folder)
    launch = [f"--config=recipe.py:{kind}", "--workdir=run"]
    call(old, folder, "-c", KILLED, *launch, "--config.log.every=61")  # a short record
    pack(folder / "run", FOLDER / f"{kind}.zip")
    generated = call(old, folder, "-m", "slmjax.generate", "--checkpoint=run", *GENERATE)
    call(old, folder, "-m", "slmjax.launch", *launch)
    losses = dict(zip(*runs.losses(folder / "run")))
    return {
        "generated": generated,
        "losses": [losses[step] for step in range(SAVED + 1, END + 1)],
        "sha256": sums(folder / "run", END),
    }


def call(checkout: Path, folder: Path, *words: str) -> str:
    """Run Python with a checkout's slmjax on one device and one thread, as bits depend on both; returns its stdout."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags(),
        "NPROC": "1",
    }
    ran = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    if ran.returncode not in (0, -9):
        raise SystemExit(f"{words} ended with {ran.returncode}")
    return ran.stdout


def write_corpus(path: Path) -> None:
    draw = random.Random(0)
    texts = (" ".join(draw.choices(WORDS, k=draw.randrange(8, 40))).capitalize() for _ in range(80))
    path.write_text("".join(json.dumps({"text": f"{text}."}) + "\n" for text in texts))


def pack(workdir: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for path in sorted(workdir.rglob("*")):
            if path.is_file():
                out.writestr(
                    zipfile.ZipInfo(str(path.relative_to(workdir.parent))),
                    path.read_bytes(),
                    zipfile.ZIP_DEFLATED,
                )


def sums(workdir: Path, step: int) -> dict[str, str]:
    """A hash of the arrays of each item of a checkpoint, of ed18125's and of today's alike."""
    from tests import runs

    found: dict[str, dict[str, np.ndarray]] = {}
    for name, leaf in runs.saved(workdir, step).items():
        # ed18125 had one item for all but the parameters.
        name = name.replace("rest['buffers']['fp8']", "buffers").replace("rest[", "optimizer[")
        found.setdefault(name.partition("[")[0], {})[name] = leaf
    return {item: _sum(leaves) for item, leaves in sorted(found.items())}


def _sum(leaves: dict[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        total.update(
            f"{name} {leaf.dtype} {leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes()
        )
    return total.hexdigest()


def where() -> dict[str, str]:
    """What bits depend on: JAX's version, XLA's flags, and how this machine's CPU rounds."""
    import jax
    import jax.numpy as jnp

    def rounds(x):
        y = jnp.exp(x @ x.T / 9) @ jnp.sin(x)
        return jax.nn.softmax(y) * jax.lax.rsqrt(jnp.mean(y**2, -1, keepdims=True)), y.sum(0)

    x = np.random.default_rng(0).normal(size=(33, 17)).astype(np.float32)
    arrays = [
        np.asarray(a)
        for a in jax.tree.leaves(
            [jax.jit(jax.grad(lambda x: sum(a.sum() for a in rounds(x))))(x), jax.jit(rounds)(x)]
        )
    ]
    return {
        "jaxlib": version("jaxlib"),
        "flags": flags(),
        "rounding": _sum({str(i): a for i, a in enumerate(arrays)}),
    }


def flags() -> str:
    """XLA's flags but for the number of devices."""
    return " ".join(
        flag for flag in sorted(os.environ["XLA_FLAGS"].split()) if "device_count" not in flag
    )


if __name__ == "__main__":
    main(sys.argv[1])
