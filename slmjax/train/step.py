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
from slmjax.train.optimizer import Optimizer, clip
from slmjax.train.schedule import Rates
from slmjax.train.state import TrainState, judge_step, loss_scale, no_spikes
from slmjax.train.trainable import split


def make_step(
    task: Task,
    model: Model,
    optimizer: Optimizer,
    train: TrainConfig,
    seed: int,
    where: TrainState,
    declared: tuple[dict, dict],
) -> Callable:
    """Return step(state, batch, rates) -> (state, metrics), to be jitted by `jit_step`.

    The batch is cut into train.microbatches interleaved parts, so that each part stays split
    over all devices. Loss and gradient are sums, divided once by the task's totals["main"] of the
    whole batch. Observations of buffers combine over the parts as each buffer declares. A step that
    `state.judge_step` rejects changes no parameter, moment or buffer.

    The metrics are {"terms": {name: sum / weight of a task's term}, "weights": {name: that weight}}
    and scalars by their names.

    Args:
      where: shardings of the state.
      declared: declarations of the parameters and of the buffers.
    """
    compute = model.arch.compute
    declared_params, declared_buffers = declared
    fields = task.rows.shapes(0)
    # Fields with a batch axis are cut into microbatches; all others go whole to each.
    by_rows = frozenset(name for name, field in fields.items() if field.by_rows)

    def cast(weight, param, sharding):
        """Cast one parameter before devices gather it: the compute type is less to send."""
        if not weight.in_compute_type:
            return param
        return jax.lax.with_sharding_constraint(param.astype(compute), sharding)

    def loss(trained, cotangents, frozen, forward, batch, totals, key, step, scale):
        """Return the scaled sum of a part's losses, to be differentiated, and its Loss."""
        params = jax.tree.map(cast, declared_params, merged(trained, frozen), where.params)
        buffers = merged(cotangents, forward)
        task_loss = task.loss(model, params, buffers, batch, totals, key=key, step=step)
        return task_loss.sum * scale, task_loss

    # With respect to `trained` and `cotangents`. The "gradient" of a buffer with a cotangent
    # channel is its observation.
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

    def step(state: TrainState, batch: dict, rates: Rates):
        # A function of seed and step alone, so that a resumed run draws the same.
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        scale = loss_scale(state.spikes) if compute == "float16" else 1.0
        # Denominators of the whole batch: means are exact even where microbatches are unequal.
        totals = task.totals(batch)
        # Gradient and optimizer state exist for the trained leaves only.
        trained, frozen = split(state.params, optimizer.trainable)
        cotangents = keep_channel(declared_buffers, state.buffers, "cotangent")
        forward = keep_channel(declared_buffers, state.buffers, "forward")

        def sums(part, key):
            """Return sums over one part of the batch, and the observations of buffers in it."""
            (total, task_loss), (gradients, cotangent_seen) = gradient(
                trained, cotangents, frozen, forward, part, totals, key, state.step, scale
            )
            # Laid out as the buffers, which lie below "stack"; {} without forward buffers.
            forward_seen = {}
            if any(task_loss.seen.values()):
                forward_seen = {"stack": task_loss.seen}
            return (total, task_loss.terms, gradients), merged(cotangent_seen, forward_seen)

        (total, terms, gradients), seen = _accumulate(
            sums, batch, by_rows, key, train.microbatches, declared_buffers
        )
        # The only division: `total` and `gradients` are sums over all parts.
        divisor = totals["main"] * scale
        mean = total / divisor
        gradients = jax.tree.map(lambda g: g / divisor, gradients)
        gradients, norm = clip(gradients, train.clip)
        keep, spikes = judge_step(state.spikes, jnp.stack([mean, norm]), train.spike_sigma)

        # The update is computed for a rejected step too: `kept` chooses, without a branch.
        updated_params, moments = optimizer.update(gradients, state.optimizer, trained, rates)
        params = merged(updated_params, frozen)
        buffers = updated(declared_buffers, state.buffers, seen)

        def kept(new, old):
            """Return the new leaves, or the old leaves where the step is rejected."""
            return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)

        new_state = TrainState(
            step=state.step + 1,
            params=kept(params, state.params),
            buffers=kept(buffers, state.buffers),
            optimizer=kept(moments, state.optimizer),
            spikes=spikes,
        )
        means, weights = {}, {}
        for name, (term_sum, weight) in terms.items():
            means[name] = term_sum / jnp.maximum(weight, 1e-9)  # 0 where no token has a weight
            weights[name] = weight
        metrics = {
            "terms": means,
            "weights": weights,
            "loss": mean,
            "grad_norm": norm,
            "learning_rate": rates.learning,
            "skips": spikes.skips,
        }
        return new_state, metrics

    return step


def jit_step(
    step: Callable,
    where: TrainState,
    fields: Fields,
    mesh: Mesh,
    device: DeviceKind,
    deterministic: bool = False,
) -> Callable:
    """Return the step as one program, with the state donated and the device's compiler options."""
    return jax.jit(
        step,
        in_shardings=(where, field_shardings(fields, mesh), NamedSharding(mesh, P())),
        out_shardings=(where, NamedSharding(mesh, P())),
        donate_argnums=0,  # the new state takes the old one's memory
        compiler_options=compiler_options(device.platform, deterministic=deterministic),
    )


def init_state(
    init_params: Callable, optimizer: Optimizer, init_buffers: Callable = dict
) -> TrainState:
    """Return the state before the first step.

    Run it inside jit with out_shardings, so that no device ever holds all of it.
    """
    params = init_params()
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        buffers=init_buffers(),
        optimizer=optimizer.init(params),
        spikes=no_spikes(),
    )


def state_shardings(state: TrainState, declared: dict, mesh: Mesh) -> TrainState:
    """Return NamedShardings in the state's structure.

    Args:
      state: may hold ShapeDtypeStructs.
      declared: the declaration of every parameter.
    """
    param_shardings = shardings(declared, mesh)
    replicated = functools.partial(jax.tree.map, lambda _: NamedSharding(mesh, P()))
    return TrainState(
        step=replicated(state.step),
        params=param_shardings,
        buffers=replicated(state.buffers),  # small, and read by every device
        optimizer=like_parameters(state.optimizer, state.params, param_shardings, mesh),
        spikes=replicated(state.spikes),  # a few numbers
    )


def _accumulate(
    sums: Callable, batch: dict, by_rows: frozenset, key: jax.Array, parts: int, declared: dict
) -> tuple:
    """Sum over a batch, one of its `parts` microbatches after the other.

    Args:
      sums: (part of the batch, key) -> ((loss sum, terms, gradients), observations of buffers).
      by_rows: names of the fields that are cut into parts; each part gets the others whole.
      declared: the declaration of every buffer.
    Returns: what `sums` returns, for the whole batch.
    """
    if parts == 1:
        return sums(batch, key)

    def cut(x):
        """[B, ...] -> [parts, B / parts, ...], interleaved: every part lies on all devices."""
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, P(None, BATCH))

    # [parts, rows of a part, ...]
    rows = {name: cut(x) for name, x in batch.items() if name in by_rows}
    uncut = {name: x for name, x in batch.items() if name not in by_rows}

    def add_part(so_far, numbered_part):
        number, part = numbered_part
        totals, seen = so_far
        added, seen_here = sums(part | uncut, jax.random.fold_in(key, number))
        totals = jax.tree.map(jnp.add, totals, added)
        seen = combined(declared, seen, seen_here)
        return (totals, seen), None

    # The sums start at zeros, in the shapes of the first part's sums; nothing is computed here.
    first = jax.tree.map(lambda x: x[0], rows)
    shapes, seen_shapes = jax.eval_shape(sums, first | uncut, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    start = (zeros, nothing_seen(declared, seen_shapes))
    summed, _ = jax.lax.scan(add_part, start, (jnp.arange(parts), rows))
    return summed
