"""The train step: one compiled function from (state, batch) to (state, metrics)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.config import TrainConfig
from slmjax.data.rows import Fields
from slmjax.models.declare import combined, keep_channel, merged, nothing_seen, updated
from slmjax.models.lm import Model
from slmjax.parallel.compiling import compiler_options
from slmjax.parallel.mesh import BATCH, DeviceKind
from slmjax.parallel.rules import field_shardings, like_parameters, shardings
from slmjax.tasks.task import Task
from slmjax.train import schedule
from slmjax.train.optimizer import Optimizer, clip
from slmjax.train.state import TrainState, judge_step, loss_scale, no_spikes
from slmjax.train.trainable import split


def init_state(
    init_params: Callable, optimizer: Optimizer, init_buffers: Callable = dict
) -> TrainState:
    """The state before the first step; run inside jit with out_shardings so that no device ever holds all of it."""
    params = init_params()
    return TrainState(
        jnp.zeros((), jnp.int32), params, init_buffers(), optimizer.init(params), no_spikes()
    )


def state_shardings(state: TrainState, declared: dict, mesh: Mesh) -> TrainState:
    """NamedShardings in the state's shape (state may hold ShapeDtypeStructs); `declared` of the parameters."""
    of_params = shardings(declared, mesh)
    whole = functools.partial(jax.tree.map, lambda _: NamedSharding(mesh, P()))
    return TrainState(
        whole(state.step),
        of_params,
        whole(state.buffers),
        like_parameters(state.optimizer, state.params, of_params, mesh),
        whole(state.spikes),
    )


def make_step(
    task: Task,
    model: Model,
    optimizer: Optimizer,
    train: TrainConfig,
    seed: int,
    where: TrainState,
    declared: tuple[dict, dict],
) -> Callable:
    """step(state, batch) -> (state, metrics), to be jitted by `jit_step`.

    The batch is cut into train.microbatches interleaved parts, so that each part stays split
    over all devices. Loss and gradient are sums, divided once by the task's totals["main"] of the
    whole batch. Observations of buffers combine over the parts as each buffer declares. A step that
    `state.judge` rejects changes no parameter, moment or buffer.

    Args:
      where: shardings of the state.
      declared: declarations of the parameters and of the buffers.
    Returns: metrics: {"terms": the task's terms as sum / weight, and scalars}.
    """
    compute = model.arch.compute
    weights, of_buffers = declared
    by_rows = frozenset(name for name, field in task.rows.shapes(0).items() if field.by_rows)

    def loss(trained, cotangents, frozen, forward, batch, totals, key, step, scale):
        # Cast here, with the parameter's own sharding, so that devices gather the compute type and not the masters.
        def ready(known, p, sharding):
            return (
                jax.lax.with_sharding_constraint(p.astype(compute), sharding)
                if known.in_compute_type
                else p
            )

        cast = jax.tree.map(ready, weights, merged(trained, frozen), where.params)
        found = task.loss(
            model, cast, merged(cotangents, forward), batch, totals, key=key, step=step
        )
        return found.sum * scale, found

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

    def step(state: TrainState, batch: dict):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        scale = loss_scale(state.spikes) if compute == "float16" else 1.0
        totals = task.totals(batch)
        trained, frozen = split(state.params, optimizer.trainable)
        channels = [
            keep_channel(of_buffers, state.buffers, kind) for kind in ("cotangent", "forward")
        ]

        def sums(piece, key):
            arguments = (
                trained,
                channels[0],
                frozen,
                channels[1],
                piece,
                totals,
                key,
                state.step,
                scale,
            )
            (total, found), (gradients, cotangents) = gradient(*arguments)
            seen = {"stack": found.seen} if any(found.seen.values()) else {}
            return (total, found.terms, gradients), merged(cotangents, seen)

        (total, terms, gradients), seen = _accumulate(
            sums, batch, by_rows, key, train.microbatches, of_buffers
        )
        whole = totals["main"] * scale
        mean = total / whole
        gradients, norm = clip(jax.tree.map(lambda g: g / whole, gradients), train.clip)
        keep, spikes = judge_step(state.spikes, jnp.stack([mean, norm]), train.spike_sigma)
        factor = schedule.factor(train, state.step)
        changed, moments = optimizer.update(gradients, state.optimizer, trained, factor)
        params = merged(changed, frozen)
        buffers = updated(of_buffers, state.buffers, seen)
        kept = functools.partial(jax.tree.map, lambda new, old: jnp.where(keep, new, old))
        new = TrainState(
            state.step + 1,
            kept(params, state.params),
            kept(buffers, state.buffers),
            kept(moments, state.optimizer),
            spikes,
        )
        metrics = {"terms": {name: s / jnp.maximum(w, 1e-9) for name, (s, w) in terms.items()}}
        metrics |= {
            "loss": mean,
            "grad_norm": norm,
            "learning_rate": train.lr * factor,
            "skips": spikes.skips,
        }
        return new, metrics

    return step


def jit_step(
    step: Callable,
    where: TrainState,
    fields: Fields,
    mesh: Mesh,
    device: DeviceKind,
    deterministic: bool = False,
) -> Callable:
    """The step as one program with the state donated and the device's compiler options."""
    return jax.jit(
        step,
        in_shardings=(where, field_shardings(fields, mesh)),
        out_shardings=(where, NamedSharding(mesh, P())),
        donate_argnums=0,
        compiler_options=compiler_options(device.platform, deterministic=deterministic),
    )


def _accumulate(
    sums: Callable, batch: dict, by_rows: frozenset, key: jax.Array, parts: int, declared: dict
) -> tuple:
    """((loss sum, terms, gradient sums), observations of buffers) of a batch, one part after the other.

    by_rows: names of the fields that are cut into parts; each part gets the others whole.
    """
    if parts == 1:
        return sums(batch, key)

    def cut(x):  # interleaved, so that every part lies on all devices
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, P(None, BATCH))

    rows = {name: cut(x) for name, x in batch.items() if name in by_rows}
    same = {name: x for name, x in batch.items() if name not in by_rows}

    def one(so_far, part):
        number, piece = part
        added, seen = sums(piece | same, jax.random.fold_in(key, number))
        return (jax.tree.map(jnp.add, so_far[0], added), combined(declared, so_far[1], seen)), None

    shapes, seen = jax.eval_shape(sums, jax.tree.map(lambda x: x[0], rows) | same, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(one, (zeros, nothing_seen(declared, seen)), (jnp.arange(parts), rows))[0]
