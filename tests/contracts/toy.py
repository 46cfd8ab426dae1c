"""A recipe with tasks of its own, for tests that copy it into a folder of their own: `--config=FOLDER/toy.py:TASK`.

Pictures: which quarter of an image is bright? Drawn: rows that depend on the model.
"""

import os
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from toy_rows import CHANNELS, SIDE, Images

from slmjax import config
from slmjax.data.rows import text_fields
from slmjax.tasks.language_modeling import LanguageModeling
from slmjax.tasks.task import Evaluated, Facts, Loss, TaskBuilder

PIXELS = SIDE * SIDE * CHANNELS
LEVELS = 8  # tokens that a pixel is rounded to; four more stand for the answers


def get_config(task="Pictures"):
    c = config.base()
    c.task = f"toy:{task} brighter=80"
    (
        c.model.width,
        c.model.layers,
        c.model.heads,
        c.model.kv_heads,
        c.model.head_dim,
        c.model.ff_width,
    ) = 16, 1, 2, 1, 8, 32
    c.data.seq_len = PIXELS
    c.train.steps, c.train.batch, c.train.microbatches, c.train.warmup, c.train.lr = (
        12,
        16,
        2,
        2,
        1e-2,
    )
    c.eval.every, c.checkpoint.every, c.checkpoint.keep, c.log.every = 4, 4, 9, 1
    return c


class Quarters:
    """Mean cross-entropy of the quarter after all pixels."""

    def __init__(self, rows, folder):
        self.rows = rows
        self.evaluations = [
            Right("quarters/right", False, folder),
            Right("quarters/final", True, folder),
        ]

    def totals(self, batch):
        return {"main": jnp.float32(batch["quarters"].size)}

    def loss(self, model, params, buffers, batch, totals, *, key, step):
        scores, seen = answers(model, params, buffers, batch["images"])
        nats = -jnp.take_along_axis(
            jax.nn.log_softmax(scores), batch["quarters"][:, None], axis=1
        ).sum()
        right = (scores.argmax(-1) == batch["quarters"]).sum()
        count = jnp.float32(batch["quarters"].size)
        return Loss(nats, count, {"loss": (nats, count), "right": (right, count)}, seen)


def answers(model, params, buffers, images):
    """(scores of the four quarters [B,4], what the layers saw)."""
    tokens = images.reshape(len(images), PIXELS).astype(jnp.int32) * LEVELS // 256
    places = jnp.broadcast_to(jnp.arange(PIXELS), tokens.shape)
    batch = {"tokens": tokens, "segments": jnp.ones_like(tokens), "positions": places}
    hidden, out = model.forward(params, buffers, batch)
    scores = (hidden[:, -1] @ model.head(params)).astype(jnp.float32)
    return scores[:, LEVELS : LEVELS + 4], out.seen


class Right:
    """The share of right answers on 64 images that training does not read.

    With TOY_KILL=checkpoint the process ends in the evaluation after step 8, once there is a checkpoint.
    """

    def __init__(self, name, at_end, folder):
        self.name, self.at_end, self.folder = name, at_end, folder
        self.images, self.quarters = Images(64, seed=10**6, brighter=80).read(0, range(64))

    def warm(self, model, params, buffers):
        pass

    def __call__(self, model, params, buffers, *, step, note, there):
        if os.environ.get("TOY_KILL") == "checkpoint" and step == 8:
            while not (self.folder / "checkpoints" / "4").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        found = jax.jit(self.found, static_argnums=0, out_shardings=P())(model, params, buffers)
        return Evaluated({self.name: float((np.asarray(found) == self.quarters).mean())})

    def found(self, model, params, buffers):
        return answers(model, params, buffers, self.images)[0].argmax(-1)


class Pictures(TaskBuilder):
    vocab_size = LEVELS + 4

    def __init__(self, config, workdir, init_from, *, brighter=0):
        self.config, self.folder, self.brighter = config, Path(workdir), brighter

    def task(self, program):
        return Quarters(
            Images(self.config.train.batch, self.config.seed, self.brighter), self.folder
        )

    def facts(self, task):
        return Facts({"data": "noise with a bright quarter"}, {"kind": "images"})


class Asked:
    """Rows that only have shapes; TOY_KILL=STEP ends the process after that step's rows are on disk, before the update."""

    def __init__(self, batch, folder):
        self.fields, self.folder = text_fields(batch, PIXELS), folder

    def shapes(self, step):
        if (
            os.environ.get("TOY_KILL") == str(step)
            and (self.folder / "drawn" / f"{step}.npz").exists()
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.fields

    def read(self, step, rows):
        raise NotImplementedError("rows are drawn from the model")

    unpack = read

    def fingerprint(self, step):
        return ""


class Repeated(LanguageModeling):
    """Learn which token the embedding takes for the likeliest; the file WORKDIR.draws lists the steps that were drawn."""

    def prepare(self, step, params, buffers):
        with (self.rows.folder.parent / f"{self.rows.folder.name}.draws").open("a") as file:
            file.write(f"{step}\n")
        batch, length = self.rows.fields["tokens"].shape
        tokens = np.random.default_rng(step).integers(0, LEVELS, (batch, length)).astype(np.int32)
        table = np.asarray(jax.device_get(params["embedding"]))
        likeliest = (
            (table @ table[:LEVELS].T).argmax(1).astype(np.int32)
        )  # of a model without layers
        fields = {"tokens": tokens, "targets": likeliest[tokens], "segments": np.ones_like(tokens)}
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
        return fields | {"positions": positions, "weights": np.ones(tokens.shape, np.float32)}


class Drawn(Pictures):
    def task(self, program):
        return Repeated(Asked(self.config.train.batch, self.folder))
