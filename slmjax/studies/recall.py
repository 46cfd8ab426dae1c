"""The recall study: small models of each mixer learn tasks of associative recall, copying and induction; a table says who can.

Several learning rates and seeds of one model are trained side by side in one program (a batch axis over the runs): a single model of this
size leaves a GPU idle. All runs of a model see the same batches. The loss is the mean cross-entropy where an answer is asked for.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jaxtyping import Array, Float

from slmjax import config as configs
from slmjax.compiling import use_compile_cache
from slmjax.data.work import write_atomic
from slmjax.errors import UserError, first_line
from slmjax.models import lm, sizes
from slmjax.models.architecture import Architecture
from slmjax.models.pattern import from_config
from slmjax.models.resolve import resolve
from slmjax.parallel import hosts
from slmjax.parallel.mesh import make_mesh
from slmjax.readable import said_if_long
from slmjax.studies import tasks
from slmjax.train import schedule
from slmjax.train.optimizer import Optimizer, clip

CHUNK = 100  # steps in one program
LOOK = 5  # programs from one look at the validation rows to the next


class Data(NamedTuple):
    """A task's batch, and the places where answers are asked for."""

    batch: dict[str, np.ndarray]
    asked: np.ndarray  # [rows, answers]
    answers: np.ndarray  # [rows, answers]


def run(config: configs.Config, workdir: str, *, init_from: str = "", command: str = "") -> int:
    """The stage: every task with every variant; rows go to study.json as they are found, and a study that was stopped goes on there.

    Raises: UserError for settings that make no sense.
    """
    if init_from:
        raise UserError("--init_from: the recall study trains its models from the start.")
    study = settings(config)
    use_compile_cache()
    hosts.check_devices()
    folder = epath.Path(workdir)
    file = folder / "study.json"
    found = earlier_rows(file, config)
    found = {"command": command, "device": jax.devices()[0].device_kind, "rows": [], **found}
    write_atomic(folder / "config.json", configs.to_json(config))
    done = {(row["task"], row["variant"]) for row in found["rows"]}
    for task in study["tasks"]:
        for name, pattern in study["variants"].items():
            if (task, name) in done:
                continue
            with said_if_long(f"training {name} on {task}"):
                row = measure(config, study, task, name, tuple(pattern))
            found["rows"].append(row)
            write_atomic(file, json.dumps(found, indent=1) + "\n")
            print(f"{task:20} {name:12} {scored(row)}  at {row['rate']:g}, {row['steps']} steps", flush=True)
    print("\n" + table(found["rows"]))
    chosen = "at the learning rate that is best on validation rows"
    print(f"\nTest accuracy, mean over {study['seeds']} seeds, {chosen}. Rows: {file}")
    return 0


def earlier_rows(file: epath.Path, config: configs.Config) -> dict[str, Any]:
    """What the study has found so far, with the settings that decide its rows.

    More tasks and more variants may join.
    Raises: UserError where its rows are of other settings, or cannot be read.
    """
    values = configs.to_dict(config)
    study = values["study"]
    variants = study["variants"]
    decide = {name: values[name] for name in ("seed", "train", "model", "precision")}
    decide |= {name: study[name] for name in study if name not in ("tasks", "variants")}
    found, changed = {}, []
    if file.exists():
        try:
            found = json.loads(file.read_text())
            earlier = found.get("settings", decide)
            known = found.get("variants", {})
            changed = [name for name in decide if earlier[name] != decide[name]]
            changed += [name for name in variants if known.get(name, variants[name]) != variants[name]]
            variants = known | variants
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            advice = "remove it or use another --workdir"
            raise UserError(f"'{file}' cannot be read ({error!r}); {advice}.") from error
    if changed:
        raise UserError(f"'{file}' holds rows of other settings ({', '.join(changed)}); use another --workdir.")
    return {**found, "settings": decide, "variants": variants}


def settings(config: configs.Config) -> dict[str, Any]:
    """config.study, checked.

    tasks ("recall:LENGTH:PAIRS", "copy:LENGTH:TOKENS", "induction:LENGTH"), variants {name: pattern}, rates (instead of train.lr), seeds,
    examples (training rows, read over and over), tested (rows, and as many that choose the rate), vocab (of recall), enough (accuracy on
    the validation rows, mean over seeds, at which no rate is trained longer; Zoology stops at 0.99). How long at most and how is
    config.train's.

    Raises: UserError for a setting that is missing or unknown, and for a task that does not parse.
    """
    study = dataclasses.asdict(config.study)
    for name in ("tasks", "variants", "rates"):
        if not study[name]:
            raise UserError(f"config.study.{name} is empty; configs/studies/recall.py has an example.")
    variants = study["variants"]
    if not isinstance(variants, dict) or not variants:
        raise UserError(f"config.study.variants is {variants!r}; expected patterns by name, such as {{'mine': ('gdn', 'attention')}}.")
    variants = {name: (of,) if isinstance(of, str) else of for name, of in variants.items()}
    for name, pattern in variants.items():
        if not isinstance(pattern, list | tuple):
            raise UserError(f"config.study.variants.{name} is {pattern!r}; expected a pattern, such as ('gdn', 'attention').")
        from_config(with_pattern(config, pattern).model, study["vocab"])
    asked = study["tasks"]
    for task in asked:
        make, _ = maker(str(task), study["vocab"])
        try:
            make(1, 0)
        except ValueError as error:
            raise UserError(f"config.study.tasks: '{task}' cannot be made: {first_line(error).rstrip('.')}.") from error
    study |= {"variants": variants, "tasks": asked}
    return study


def maker(task: str, vocab: int) -> tuple[Callable[[int, int], tasks.Batch], int]:
    """(make(rows, seed), tokens of the vocabulary) of "recall:64:4", "copy:256:16" or "induction:256".

    Raises: UserError where it is none of these.
    """
    kind, *words = task.split(":")
    try:
        numbers = [int(word) for word in words]
        if min(numbers, default=0) < 1:
            raise ValueError
        if kind == "recall":
            length, pairs = numbers
            return lambda rows, seed: tasks.associative_recall(rows, length, pairs, seed=seed, vocab=vocab), vocab
        if kind == "copy":
            length, copied = numbers
            return lambda rows, seed: tasks.selective_copy(rows, length, copied, seed=seed), 16
        if kind == "induction":
            (length,) = numbers
            return lambda rows, seed: tasks.induction(rows, length, seed=seed), 16
    except ValueError:
        pass
    raise UserError(f"config.study.tasks: '{task}' is none of recall:LENGTH:PAIRS, copy:LENGTH:TOKENS, induction:LENGTH.")


def measure(config: configs.Config, study: Mapping[str, Any], task: str, name: str, pattern: tuple[str, ...]) -> dict[str, Any]:
    """The row of a task and a variant: test accuracy of each learning rate and seed, and of the rate that is best on validation rows.

    All rates end with the first that has enough: what the others have by then says nothing about what they would reach.
    """
    make, vocab = maker(task, study["vocab"])
    config = with_pattern(config, pattern)
    arch, _ = resolve(config.model, config.precision, make_mesh({"data": 1}, jax.local_devices()[:1]), vocab)
    arch = dataclasses.replace(arch, attention="blockwise")  # cuDNN's attention has no axis for runs
    counts = (study["examples"], study["tested"], study["tested"])
    data, valid, test = (drawn(make, rows, config.seed + number) for number, rows in enumerate(counts))
    rates, seeds = [float(rate) for rate in study["rates"]], int(study["seeds"])
    validation, accuracy, steps = fit(config, arch, data, valid, test, rates=rates, seeds=seeds, enough=float(study["enough"]))
    best = int(validation.mean(1).argmax())
    length = data.batch["tokens"].shape[1]
    return {
        "task": task, "variant": name, "accuracy": float(accuracy[best].mean()), "deviation": float(accuracy[best].std()),
        "rate": rates[best], "steps": steps, "parameters": sizes.parameters(arch).total, "state_bytes": sizes.cache_bytes(arch, length),
        "by_rate": {f"{rate:g}": of.tolist() for rate, of in zip(rates, accuracy)},
    }  # fmt: skip


def with_pattern(config: configs.Config, pattern: Sequence[str]) -> configs.Config:
    """The config of a variant."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, pattern=tuple(pattern)))


def drawn(make: Callable[[int, int], tasks.Batch], rows: int, seed: int) -> Data:
    """Rows of a task with the places where an answer is asked for, as many in each row."""
    batch = make(rows, seed)
    asked = np.nonzero(batch["weights"])[1].reshape(rows, -1)
    return Data(batch, asked, np.take_along_axis(batch["targets"], asked, axis=1))


def fit(
    config: configs.Config, arch: Architecture, data: Data, valid: Data, test: Data, *, rates: Sequence[float], seeds: int, enough: float
) -> tuple[Float[np.ndarray, "rates seeds"], Float[np.ndarray, "rates seeds"], int]:
    """(accuracy on `valid`, on `test`, steps) of a model for each rate and seed, trained on batches of `data`.

    How is config.train's, with each rate for its own; no longer than until one rate's mean over seeds on `valid` is `enough`.
    """
    train, examples = config.train, len(data.asked)
    optimizer = Optimizer(train, config.model.multipliers, lm.declare(arch))
    epochs = -(-train.steps * train.batch // examples)
    order = np.concatenate([np.random.default_rng(epoch).permutation(examples) for epoch in range(epochs)])
    order = jnp.asarray(order[: train.steps * train.batch].reshape(train.steps, train.batch))
    device = jax.tree.map(jnp.asarray, data)

    def init(key):
        params = lm.init(arch, key)
        return params, optimizer.init(params)

    def step(state, rate, number, picked):
        params, moments = state
        part = jax.tree.map(lambda of: of[picked], device)
        gradients, _ = clip(jax.grad(lambda params: _scores(arch, params, part)[0])(params), train.clip)
        return optimizer.update(gradients, moments, params, rate / train.lr * schedule.factor(train, number))

    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(states, peaks, first, picked):
        def one(states, at):
            number, picked = at
            return jax.vmap(step, in_axes=(0, 0, None, None))(states, peaks, number, picked), None

        return jax.lax.scan(one, states, (first + jnp.arange(len(picked)), picked))[0]

    peaks = jnp.repeat(jnp.asarray(rates), seeds)
    keys = jnp.tile(jax.vmap(jax.random.key)(jnp.arange(seeds)), len(rates))
    states = jax.jit(jax.vmap(init))(keys)
    right = jax.jit(jax.vmap(lambda params, part: _scores(arch, params, part)[1], in_axes=(0, None)))

    def accuracy(of):
        starts = range(0, len(of.asked), train.batch)
        parts = [jax.tree.map(lambda rows, at=at: jnp.asarray(rows[at : at + train.batch]), of) for at in starts]
        return (sum(np.asarray(right(states[0], part)) for part in parts) / of.answers.size).reshape(len(rates), seeds)

    for first in range(0, train.steps, CHUNK):
        states = chunk(states, peaks, first, order[first : first + CHUNK])
        last = min(first + CHUNK, train.steps)
        if last == train.steps or last % (LOOK * CHUNK) == 0:
            validation = accuracy(valid)
            if validation.mean(1).max() >= enough:
                break
    return validation, accuracy(test), last


def _scores(arch: Architecture, params: dict, data: Data) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(mean nats of the answers, how many are right); logits are made where answers are asked for only."""
    hidden = lm.forward(arch, params, {}, data.batch)[0]
    logits = lm.logits(arch, params, jnp.take_along_axis(hidden, data.asked[..., None], axis=1))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, data.answers)
    return nats.mean(), (logits.argmax(-1) == data.answers).sum().astype(jnp.float32)


def scored(row: Mapping[str, Any]) -> str:
    """A row's accuracy, with the deviation over seeds where there are several."""
    several = len(next(iter(row["by_rate"].values()))) > 1
    return f"{row['accuracy']:.3f}" + (f" ± {row['deviation']:.3f}" if several else "")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each variant, a column for each task."""
    names, columns = (list(dict.fromkeys(row[what] for row in rows)) for what in ("variant", "task"))
    cells = {(row["variant"], row["task"]): scored(row) for row in rows}
    lines = [["mixer", *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *(cells.get((name, task), "") for task in columns)] for name in names]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
