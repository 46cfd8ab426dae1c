"""The smallest training set-up that tests share: a model, a packed batch, and the launcher's own step on any mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from slmjax import config as configs
from slmjax.data.rows import text_fields
from slmjax.models.lm import Model
from slmjax.parallel.mesh import batch_sharding, make_mesh
from slmjax.tasks.language_modeling import LanguageModeling
from slmjax.train.program import make_program

TOKENS = 512


def small_config(**train):
    """Width 64, two layers, every option of the model on; `train` overrides config.train."""
    c = configs.base()
    c.model.update(
        {
            "width": 64,
            "layers": 2,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 16,
            "ff_width": 96,
            "qk_norm": True,
            "output_gate": True,
        }
    )
    c.model.unroll = "False"  # half the time to compile
    c.data.seq_len = 24
    c.train.update(
        {"batch": 16, "warmup": 2, "steps": 20, "eps": 1e-3, **train}
    )  # with a small eps AdamW makes signs of rounding noise
    return c


def packed_batch(config, seed=0):
    """Rows of two or three documents and some padding, with about a third of the tokens without weight."""
    rng = np.random.default_rng(seed)
    B, T = config.train.batch, config.data.seq_len
    tokens = rng.integers(0, TOKENS, (B, T + 1)).astype(np.int32)
    segments, positions = np.zeros((2, B, T), np.int32)
    for row in range(B):
        ends = np.sort(rng.choice(np.arange(2, T), 3, replace=False))
        start = 0
        for number, end in enumerate(ends, start=1):
            segments[row, start:end] = number
            positions[row, start:end] = np.arange(end - start)
            start = end
    weights = ((segments > 0) & (rng.random((B, T)) < 0.7)).astype(np.float32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": segments,
        "positions": positions,
        "weights": weights,
    }


class FixedRows:
    """Rows that only have a shape: the tests give the batches themselves."""

    def __init__(self, batch, seq_len):
        self.fields = text_fields(batch, seq_len)

    def shapes(self, step):
        return self.fields

    def read(self, step, rows):
        raise NotImplementedError

    unpack = fingerprint = read


class WithHoles(LanguageModeling):
    """The library's task, but not a number where every token is 7: programs that must skip a step are those that must not."""

    def loss(self, model, params, buffers, batch, totals, *, key, step):
        found = super().loss(model, params, buffers, batch, totals, key=key, step=step)
        return found._replace(sum=jnp.where(jnp.all(batch["tokens"] == 7), jnp.nan, found.sum))


class Setup:
    """The launcher's step on a mesh over the first `devices` devices; compiled once, when it is first run or read.

    of: (rows, evaluations, z_loss) -> the task.
    """

    def __init__(self, config, mesh=None, devices=1, chunks=2, of=WithHoles):
        self.config = config
        self.mesh = make_mesh(mesh or {}, jax.devices()[:devices])
        with jax.set_mesh(self.mesh):
            self.program = make_program(configs.freeze(config), self.mesh, TOKENS)
        self.program = dataclasses.replace(self.program, model=Model(self.program.arch, chunks))
        self.arch, self.where = self.program.arch, self.program.where
        self.task = of(FixedRows(config.train.batch, config.data.seq_len), (), config.train.z_loss)

    @functools.cached_property
    def state(self):
        """The state, at first that before the first step."""
        return self._init()

    @functools.cached_property
    def _init(self):
        return jax.jit(self.program.make, out_shardings=self.where)

    def reset(self):
        """Back to the first step; returns itself."""
        self.__dict__.pop("state", None)
        return self

    def step(self, batch):
        """One step; returns its metrics."""
        state = self.state
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.compiled(
                state,
                jax.device_put(batch, batch_sharding(self.mesh)),
                self.program.rates(int(state.step)),
            )
        return jax.tree.map(float, metrics)

    def lowered(self):
        """The program before compilation."""
        return self.program.lower(self.task)

    @functools.cached_property
    def compiled(self):
        """The compiled program."""
        return self.lowered().compile()


def whole(tree):
    """The tree as numpy arrays, gathered from all devices."""
    return jax.tree.map(lambda x: np.asarray(x), tree)


def largest_difference(a, b):
    """Of two trees, over all elements."""
    return max(
        jax.tree.leaves(
            jax.tree.map(lambda x, y: float(jnp.abs(jnp.asarray(x) - jnp.asarray(y)).max()), a, b)
        )
    )
