"""The train step: one compiled function from (state, batch) to (state, metrics)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from slmjax.compiling import compiler_options
from slmjax.models.declare import updated
from slmjax.parallel.mesh import BATCH, DeviceKind, batch_sharding
from slmjax.parallel.rules import like_parameters, shardings
from slmjax.train import schedule
from slmjax.train.optimizer import Optimizer, clip
from slmjax.train.state import TrainState, judge, loss_scale, no_spikes


def init_state(init_params: Callable, optimizer: Optimizer, init_buffers: Callable = dict) -> TrainState:
    """The state before the first step; run inside jit with out_shardings so that no device ever holds all of it."""
    params = init_params()
    return TrainState(jnp.zeros((), jnp.int32), params, init_buffers(), optimizer.init(params), no_spikes())


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
    objective: Callable, optimizer: Optimizer, config: ConfigDict, where: TrainState, compute: str, declared: tuple[dict, dict]
) -> Callable:
    """step(state, batch) -> (state, metrics), to be jitted by `jit_step`.

    The batch is cut into config.train.microbatches interleaved parts, so that each part stays split over all devices; loss and gradient
    are sums over tokens, divided once by the weight of the whole batch. What stands for the gradient of buffers is what the step has seen
    of them (ops.fp8.products): the largest over the parts decides about the next step's. A step that `state.judge` rejects changes no
    parameter, moment or buffer. metrics: scalars, and `aux` terms as sum / weight.
    """
    t = config.train

    def loss(params, buffers, batch, key, step, scale):
        # Cast here, with the parameter's own sharding, so that devices gather the compute type and not the masters.
        def ready(known, p, sharding):
            return jax.lax.with_sharding_constraint(p.astype(compute), sharding) if known.in_compute_type else p

        cast = jax.tree.map(ready, declared[0], params, where.params)
        total, weight, aux = objective(cast, buffers, batch, key=key, step=step)
        return total * scale, (weight, aux)

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

    def step(state: TrainState, batch: dict):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        scale = loss_scale(state.spikes) if compute == "float16" else 1.0
        (total, weight, aux, gradients), seen = _accumulate(gradient, state, batch, key, scale, t.microbatches)
        mean = total / (weight * scale)
        gradients, norm = clip(jax.tree.map(lambda g: g / (weight * scale), gradients), t.clip)
        keep, spikes = judge(state.spikes, jnp.stack([mean, norm]), t.spike_sigma)
        factor = schedule.factor(t, state.step)
        params, moments = optimizer.update(gradients, state.optimizer, state.params, factor)
        buffers = updated(declared[1], state.buffers, seen)
        kept = functools.partial(jax.tree.map, lambda new, old: jnp.where(keep, new, old))
        new = TrainState(
            state.step + 1, kept(params, state.params), kept(buffers, state.buffers), kept(moments, state.optimizer), spikes
        )  # fmt: skip
        metrics = {name: s / jnp.maximum(w, 1e-9) for name, (s, w) in aux.items()}
        metrics |= {"loss": mean, "grad_norm": norm, "learning_rate": t.lr * factor, "skips": spikes.skips, "tokens": weight}
        return new, metrics

    return step


def jit_step(step: Callable, where: TrainState, mesh: Mesh, device: DeviceKind, deterministic: bool = False) -> Callable:
    """The step as one program with the state donated and the device's compiler options."""
    return jax.jit(
        step,
        in_shardings=(where, batch_sharding(mesh)),
        out_shardings=(where, NamedSharding(mesh, P())),
        donate_argnums=0,
        compiler_options=compiler_options(device.platform, deterministic=deterministic),
    )


def _accumulate(gradient, state, batch, key, scale, parts):
    """((loss sum, weight, aux sums, gradient sums), largest seen of buffers) of a batch, one part after the other."""

    def sums(piece, key):
        (total, (weight, aux)), (gradients, seen) = gradient(state.params, state.buffers, piece, key, state.step, scale)
        return (total, weight, aux, gradients), seen

    if parts == 1:
        return sums(batch, key)

    def cut(x):  # interleaved, so that every part lies on all devices
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, P(None, BATCH))

    def one(so_far, part):
        number, piece = part
        added, seen = sums(piece, jax.random.fold_in(key, number))
        return (jax.tree.map(jnp.add, so_far[0], added), jax.tree.map(jnp.maximum, so_far[1], seen)), None

    pieces = jax.tree.map(cut, batch)
    shapes = jax.eval_shape(sums, jax.tree.map(lambda x: x[0], pieces), key)
    return jax.lax.scan(one, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), (jnp.arange(parts), pieces))[0]
