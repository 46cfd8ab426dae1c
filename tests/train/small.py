"""The smallest training set-up that tests share: a model, a packed batch, and the launcher's own step on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from slmjax import config as configs
from slmjax.models import lm
from slmjax.models.resolve import resolve
from slmjax.objectives.lm import objective
from slmjax.parallel.mesh import batch_sharding, device_kind, make_mesh
from slmjax.train.optimizer import Optimizer
from slmjax.train.program import batch_shapes
from slmjax.train.step import init_state, jit_step, make_step, state_shardings

TOKENS = 512


def small_config(**train):
    """Width 64, two layers, every option of the model on; `train` overrides config.train."""
    c = configs.base()
    c.model.update(
        {"width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "ff_width": 96, "qk_norm": True, "output_gate": True}
    )
    c.model.unroll = "False"  # half the time to compile
    c.data.seq_len = 24
    c.train.update({"batch": 16, "warmup": 2, "steps": 20, "eps": 1e-3, **train})  # with a small eps AdamW makes signs of rounding noise
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
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segments": segments, "positions": positions, "weights": weights}


def objective_with_holes(arch, **settings):
    """The library's objective, but not a number where every token is 7: programs that must skip a step are those that must not."""
    plain = objective(arch, **settings)

    def holed(params, buffers, batch, **rest):
        total, weight, aux = plain(params, buffers, batch, **rest)
        return jnp.where(jnp.all(batch["tokens"] == 7), jnp.nan, total), weight, aux

    return holed


class Setup:
    """The launcher's step on a mesh over the first `devices` devices; compiled once, when it is first run or read."""

    def __init__(self, config, mesh=None, devices=1, chunks=2, of=objective_with_holes):
        self.config = config
        self.mesh = make_mesh(mesh or {}, jax.devices()[:devices])
        self.arch, _ = resolve(config, self.mesh, TOKENS)
        optimizer = Optimizer(config.train, config.model.multipliers)
        make = lambda: init_state(lambda: lm.init(self.arch, jax.random.key(config.seed)), optimizer, lambda: lm.init_buffers(self.arch))  # noqa: E731
        with jax.set_mesh(self.mesh):
            shapes = jax.eval_shape(make)
            self.where = state_shardings(shapes, self.mesh)
            self.shapes = jax.tree.map(lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), shapes, self.where)
            self.make = jax.jit(make, out_shardings=self.where)
            step = make_step(of(self.arch, z_loss=config.train.z_loss, chunks=chunks), optimizer, config, self.where, self.arch.compute)
            self.jitted = jit_step(step, self.where, self.mesh, device_kind(self.mesh))

    @functools.cached_property
    def state(self):
        """The state, at first that before the first step."""
        with jax.set_mesh(self.mesh):
            return self.make()

    def reset(self):
        """Back to the first step; returns itself."""
        self.__dict__.pop("state", None)
        return self

    def step(self, batch):
        """One step; returns its metrics."""
        state = self.state
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.compiled(state, jax.device_put(batch, batch_sharding(self.mesh)))
        return {name: float(value) for name, value in metrics.items()}

    def lowered(self):
        """The program before compilation."""
        with jax.set_mesh(self.mesh):
            shape = (self.config.train.batch, self.config.data.seq_len)
            return self.jitted.lower(self.shapes, batch_shapes(shape, batch_sharding(self.mesh)))

    @functools.cached_property
    def compiled(self):
        """The compiled program."""
        with jax.set_mesh(self.mesh):
            return self.lowered().compile()


def whole(tree):
    """The tree as numpy arrays, gathered from all devices."""
    return jax.tree.map(lambda x: np.asarray(x), tree)


def largest_difference(a, b):
    """Of two trees, over all elements."""
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.abs(jnp.asarray(x) - jnp.asarray(y)).max()), a, b)))
