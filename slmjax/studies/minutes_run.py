"""Train the best model that this machine trains in config.train.minutes.

The size is chosen on the machine: one size is compiled and timed on the run's own batches, a
scaling law says which size makes the most of the time, and the time that is left gives the steps.
Then the run is an ordinary one with these steps. Its config.json holds the choice.
"""

import contextlib
import copy
import dataclasses
import datetime
import functools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from slmjax import config as configs
from slmjax.checkpoint import Checkpoints, digest
from slmjax.config import Config
from slmjax.data.loader import local_batches
from slmjax.data.prepare_stage import plan_settings
from slmjax.errors import UserError
from slmjax.models import sizes
from slmjax.models.architecture import vocab_rows
from slmjax.models.choose_shape import parse_params
from slmjax.models.resolve import resolve
from slmjax.parallel import devices, hosts
from slmjax.parallel.compiling import use_compile_cache
from slmjax.parallel.mesh import device_kind, device_memory, make_mesh
from slmjax.parallel.rules import field_shardings
from slmjax.readable import count, duration
from slmjax.studies.time_budget import alternatives, best_size
from slmjax.studies.time_plan import (
    FEWEST_STEPS,
    TimedStep,
    chosen_again,
    chosen_lines,
    decide_size,
    family_flops,
    guessed_speeds,
    sized,
    steps_in,
    text_settings,
    with_steps,
)
from slmjax.text.claims import Claim
from slmjax.train.builders import builder_of, task_of
from slmjax.train.program import check_model, cuts
from slmjax.train.resume import Start, differing_fields, refuse_export
from slmjax.train.run import (
    Built,
    build,
    check_batch,
    compile_all,
    held_rows,
    run_train,
)
from slmjax.train.state import TrainState, saved
from slmjax.train.text import TextBuilder

# Seconds of the first start on a machine until the first step, for the guess alone.
START_SECONDS = {"cpu": 15.0}
ACCELERATOR_START_SECONDS = 45.0
# Share of the minutes in which steps are timed, at most so many seconds; at least so many steps.
TIMED_SHARE, TIMED_SECONDS, LEAST_TIMED = 0.02, 10.0, 4
# What follows the last step besides evaluations: a checkpoint takes a second and its bytes at this
# rate, report and figures take another second.
CHECKPOINT_SECONDS, DISK_BYTES_PER_SECOND, REPORT_SECONDS = 1.0, 300e6, 1.0
# A matrix product that shows how fast a CPU is: side and repetitions.
PRODUCT, PRODUCTS = 768, 10


def run_minutes(
    config: Config,
    workdir: str,
    *,
    init_from: str = "",
    command: str = "",
    began: float | None = None,
    claim: Claim | None = None,
) -> int:
    """Choose size and steps for config.train.minutes, and train; return the exit status.

    A work directory with a choice in it goes on with that choice.

    Args:
      began: Unix time from which the minutes count; None: now.
      init_from, command, claim: see `run_train`.
    Raises: UserError for --init_from, a work directory with a run of other settings, too few
      minutes, and what `run_train` refuses.
    """
    began = began or time.time()
    folder = epath.Path(workdir)
    if init_from:
        raise UserError("--init_from: config.train.minutes trains a new model from the start.")
    refuse_export(workdir)
    use_compile_cache()
    hosts.check_devices()
    built = None
    # The config.json of such a run has its choice.
    if not config.train.chosen:
        earlier = earlier_config(folder)
        if earlier is None:
            config, built = _choose(config, folder, began)
        else:
            config = _with_earlier_choice(config, earlier, folder)
    promise = built.facts["minutes"] if built else {}
    status = run_train(
        config,
        workdir,
        command=command,
        began=began,
        claim=claim,
        built=built,
    )
    if promise and not status and hosts.is_first():
        taken = time.time() - began - promise["text_seconds"]
        print(f"Promised {duration(promise['promised_seconds'])}, taken {duration(taken)}.")
    return status


def earlier_config(folder: epath.Path) -> Config | None:
    """Return the config of the run in a work directory; None where there is none to go on with.

    Raises: UserError where it was not made by config.train.minutes and has trained.
    """
    checkpoints = Checkpoints(folder)
    saved_configs = []
    for step in reversed(checkpoints.steps()):
        meta = checkpoints.meta(step)
        if meta:
            saved_configs.append(meta["config"])
    trained = bool(saved_configs)
    with contextlib.suppress(OSError, ValueError):
        saved_configs.append(json.loads((folder / "config.json").read_text()))
    for stored in saved_configs:
        with contextlib.suppress(UserError, ValueError, TypeError, AttributeError):
            config = configs.freeze(configs.from_dict(stored))
            if config.train.chosen:
                return config
    if trained:
        raise UserError(
            f"--workdir={folder} holds a run that config.train.minutes has not begun; use another."
        )
    return None


def _with_earlier_choice(config: Config, earlier: Config, folder: epath.Path) -> Config:
    """Return the config of a run that goes on, with the choice that it began with.

    Raises: UserError where the command asks for other minutes, another size or other settings.
    """
    config = chosen_again(config, earlier)
    then, now = configs.to_dict(earlier), configs.to_dict(config)
    differences = differing_fields(then, now, ("learning", "chance", "order"))
    if differences:
        raise UserError(
            f"--workdir={folder} holds a run that was begun otherwise: "
            f"{'; '.join(differences.values())}. Use another --workdir."
        )
    if hosts.is_first():
        print("The work directory holds a choice of size and steps; the run goes on with it.")
    return config


def _choose(config: Config, folder: epath.Path, began: float) -> tuple[Config, Built]:
    """Measure this machine, and return the config of the run and what it makes.

    All processes measure together; the first one's clock decides.
    """
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    device = device_kind(mesh)
    minutes = config.train.minutes
    vocabulary, seq_len = text_settings(
        minutes, device.platform, own_text=bool(config.data.sources)
    )
    data = dataclasses.replace(
        config.data,
        vocab_size=config.data.vocab_size or vocabulary,
        seq_len=config.data.seq_len or seq_len,
    )
    config = dataclasses.replace(config, data=data)
    check_model(config.model, config.precision, mesh, config.train.deterministic)
    text_began = time.time()
    builder = builder_of(config, str(folder), "")
    if not isinstance(builder, TextBuilder):
        raise UserError(
            f"config.train.minutes is {minutes:g}, but config.task is '{config.task}'; minutes are "
            "for next-token training on text."
        )
    text_seconds = time.time() - text_began
    deadline = began + 60 * minutes + text_seconds
    return _Chooser(config, mesh, builder, deadline, text_seconds).choose()


class _Chooser:
    """Chooses size and steps, once the text is prepared.

    Args:
      deadline: Unix time at which the report must be there; the first process's counts.
      text_seconds: in which the text was prepared.
    """

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        builder: TextBuilder,
        deadline: float,
        text_seconds: float,
    ):
        self.config, self.mesh, self.builder = config, mesh, builder
        self.device = device_kind(mesh)
        self.deadline, self.text_seconds = deadline, text_seconds
        self.vocab_size = vocab_rows(config.model.vocab_size, builder.vocab_size)
        settings = plan_settings(config.data, config.train, builder.prepared, seed=0, cuts=None)
        self.unique_tokens = float(sum(shards.tokens for shards in settings["train"].values()))
        self.guessed: dict[int, float] = {}

    def choose(self) -> tuple[Config, Built]:
        """Return the config of the run and what it makes, with the executables that were timed."""
        model, seq_len = self.config.model, self.config.data.seq_len
        flops = family_flops(model, self.vocab_size, seq_len, device_memory(self.device))
        self.guessed = guessed_speeds(flops, self._product_flops(), self.device.platform)
        guess = _on_first(self._guess)
        # The newest measurement is the last.
        timed: list[TimedStep] = []
        decision = guess
        while decision["other"]:
            size, tokens = decision["other"]
            if timed and hosts.is_first():
                print(f"another size promises more and is measured: {count(size)} parameters")
            # The state of the size before must not take a device's memory.
            built = None
            built, newest = self._measure(size, tokens)
            timed.append(newest)
            decide = functools.partial(self._decision, built.program.config, timed)
            decision = _on_first(decide)
        return self._finished(built, decision)

    def _guess(self) -> dict[str, Any]:
        """Return {"other": (parameters, tokens)} of the first size to measure."""
        left = self.deadline - time.time()
        reserve = START_SECONDS.get(self.device.platform, ACCELERATOR_START_SECONDS)
        if left <= 0:
            raise UserError(
                f"config.train.minutes is {self.config.train.minutes:g}, too short for this "
                "machine: they are over before the first step is compiled."
            )
        # However long the start takes, something is left for steps.
        seconds = max(left - reserve, 0.4 * left)
        if self.config.train.size:
            size = parse_params(self.config.train.size)
            guess = alternatives(size, seconds, self.guessed, self.unique_tokens)
        else:
            guess = best_size(seconds, self.guessed, self.unique_tokens)
        return {"other": (guess.best.parameters, guess.best.tokens)}

    def _decision(self, config: Config, timed: list[TimedStep]) -> dict[str, Any]:
        """Decide whether the newest size stays, and for how many steps.

        Args:
          config: of the newest size.
        Returns: "other": (parameters, tokens) of a size that is worth measuring, or None; "steps"
          of the run; "chosen", see config.train.
        """
        # Raises where too little time is left.
        steps = steps_in(timed[-1], self.config.train.minutes)
        may_change = len(timed) == 1 and not self.config.train.size
        budget, is_other = decide_size(timed, self.guessed, self.unique_tokens, may_change)
        if is_other:
            return {"other": (budget.best.parameters, budget.best.tokens)}
        config = self._with_steps(config, steps)
        done = datetime.datetime.fromtimestamp(self.deadline).strftime("%H:%M:%S")
        given = bool(self.config.train.size)
        lines = chosen_lines(config, timed[-1], budget, given, self.text_seconds, done)
        return {"other": None, "steps": steps, "chosen": lines}

    def _measure(self, parameters: float, tokens: float) -> tuple[Built, TimedStep]:
        """Compile a size, and time its steps, evaluations and checkpoints.

        Args:
          tokens: of the run, about; they decide the batch.
        """
        began = time.time()
        ways = cuts(self.config.train, self.mesh)[1]
        config = sized(
            self.config,
            parameters,
            tokens,
            vocab_size=self.vocab_size,
            device=self.device,
            ways=ways,
        )
        check_batch(config, self.mesh)
        step_tokens = config.train.batch * config.data.seq_len
        # Their number is not known yet, and the executable does not depend on it.
        steps = max(FEWEST_STEPS, round(tokens / step_tokens))
        train = dataclasses.replace(config.train, steps=steps, warmup=0)
        config = dataclasses.replace(config, train=train)
        built = build(config, self.mesh, self._builder(config))
        program, task = built.program, built.task
        with jax.set_mesh(self.mesh):
            init = jax.jit(program.make, out_shardings=program.where)
            state = init()
            steps_by_shape = compile_all(program, task, Start("fresh", 0), state)
            built = dataclasses.replace(built, steps=steps_by_shape)
            evaluation = _evaluation_seconds(built, state)
            checkpoint = _checkpoint_seconds(state)
            limit = min(TIMED_SECONDS, TIMED_SHARE * 60 * config.train.minutes)
            step = _step_seconds(built, state, limit)
            # The steps have taken the first state over.
            built = dataclasses.replace(built, state=init())
        # What happens now and then is part of each step.
        step += checkpoint / config.checkpoint.every
        if config.eval.every:
            step += evaluation / config.eval.every
        # Two checkpoints: where the decay begins, and the last one.
        after = evaluation + 2 * checkpoint + REPORT_SECONDS
        now = time.time()
        size = sizes.parameters(program.arch).total
        left = self.deadline - now - after
        return built, TimedStep(size, step, step_tokens, left, now - began)

    def _finished(self, built: Built, decision: dict[str, Any]) -> tuple[Config, Built]:
        """Return the config of the run, and what it makes of what was measured."""
        config = self._with_steps(built.program.config, decision["steps"])
        train = dataclasses.replace(config.train, chosen=tuple(decision["chosen"]))
        config = dataclasses.replace(config, train=train)
        program = dataclasses.replace(built.program, config=config)
        builder = self._builder(config)
        task = task_of(builder, program)
        # Those that are compiled. They do not depend on the number of steps.
        task = dataclasses.replace(task, evaluations=built.task.evaluations)
        minutes = {
            "promised_seconds": 60 * train.minutes,
            "text_seconds": self.text_seconds,
            "deadline": self.deadline,
        }
        return config, Built(builder, program, task, built.steps, built.state, {"minutes": minutes})

    def _with_steps(self, config: Config, steps: int) -> Config:
        """Return a measured config with the steps of the run, and the warmup that was asked for."""
        train = dataclasses.replace(config.train, warmup=self.config.train.warmup)
        return with_steps(dataclasses.replace(config, train=train), steps)

    def _builder(self, config: Config) -> TextBuilder:
        """Return the builder for another config on the same text, which is not read again."""
        builder = copy.copy(self.builder)
        builder.config = config
        return builder

    def _product_flops(self) -> float:
        """Return FLOP/s of matrix products on all devices: known, or else timed on this host."""
        config = self.config
        arch, _ = resolve(config.model, config.precision, self.mesh, self.vocab_size)
        peak = devices.peak_flops(self.device.name, arch.compute)
        if peak:
            return peak * self.mesh.size
        matrix = jnp.ones((PRODUCT, PRODUCT), arch.compute)
        product = jax.jit(jnp.matmul)
        product(matrix, matrix).block_until_ready()
        began = time.perf_counter()
        for _ in range(PRODUCTS):
            # The mean: what else the machine does slows training too.
            product(matrix, matrix).block_until_ready()
        seconds = (time.perf_counter() - began) / PRODUCTS
        # The devices of a CPU share its cores.
        shares = jax.process_count()
        if self.device.platform != "cpu":
            shares = self.mesh.size
        return shares * 2 * PRODUCT**3 / seconds


def _on_first(decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the first process's answer, on every process. Raises: UserError, on all of them."""
    answer: dict[str, Any] = {}
    if hosts.is_first():
        try:
            answer = decide()
        except UserError as error:
            # All processes must end, not only this one.
            answer = {"refused": str(error)}
    answer = json.loads(hosts.agree_text(json.dumps(answer)))
    if "refused" in answer:
        raise UserError(answer["refused"])
    return answer


def _evaluation_seconds(built: Built, state: TrainState) -> float:
    """Return how long the evaluations take, which are compiled. The model is not trained yet."""
    began = time.time()
    for evaluation in built.task.evaluations:
        evaluation(
            built.program.model,
            state.params,
            state.buffers,
            step=0,
            note=lambda text: None,
            there={},
        )
    return time.time() - began


def _checkpoint_seconds(state: TrainState) -> float:
    """Return about how long a checkpoint takes: its checksums are timed, writing is estimated."""
    began = time.time()
    size = 0
    for item in saved(state).values():
        digest(item)
        size += sum(leaf.nbytes for leaf in jax.tree.leaves(item))
    return time.time() - began + CHECKPOINT_SECONDS + size / DISK_BYTES_PER_SECOND


def _step_seconds(built: Built, state: TrainState, limit: float) -> float:
    """Return the mean time of a step on the run's first batches; the state is given up.

    Args:
      limit: seconds to spend, as long as a few steps take no longer.
    """
    program, task = built.program, built.task
    held = held_rows(program)
    shardings = field_shardings(task.rows.shapes(0), program.mesh)
    (step,) = built.steps.values()

    def run(number: int) -> float:
        """Take steps, and return the seconds that they took."""
        nonlocal state
        began = time.perf_counter()
        for at in range(number):
            fields = task.rows.shapes(0)
            batch = hosts.global_batch(next(batches), fields, shardings, held(at))
            state, metrics = step(state, batch, program.rates(at))
        jax.block_until_ready(metrics)
        return time.perf_counter() - began

    total = program.config.train.steps
    with local_batches(task.rows, start_step=0, stop_step=total, local_rows=held) as batches:
        # The first steps also reserve memory and wait for the first batch.
        run(2)
        seconds = run(LEAST_TIMED)
        # All processes must take the same number of steps.
        more = int((limit - seconds) / seconds * LEAST_TIMED)
        more = hosts.agree(max(0, min(more, total - 2 - LEAST_TIMED)))
        if more:
            seconds += run(more)
    return seconds / (LEAST_TIMED + more)
