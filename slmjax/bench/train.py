"""Tokens per second of the launcher's own compiled train step, beside what a user would write in PyTorch."""

import argparse
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from slmjax import config as configs
from slmjax.bench import shell
from slmjax.bench.device_kernels import kernels
from slmjax.bench.ladder import ladder
from slmjax.data.loader import batch_rows, local_batches
from slmjax.data.prepare import Prepared
from slmjax.data.prepare_stage import batch_plan, prepared_text
from slmjax.data.rows import Arrays, Fields, text_fields
from slmjax.models import sizes
from slmjax.models.architecture import vocab_rows
from slmjax.models.pattern import from_config
from slmjax.parallel import devices, hosts
from slmjax.parallel.mesh import batch_sharding, make_mesh
from slmjax.parallel.rules import field_shardings
from slmjax.tasks.language_modeling import LanguageModeling
from slmjax.tasks.task import Task
from slmjax.train.program import Program, make_program

WINDOW = 4  # steps between two looks at the clock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m slmjax.bench train`."""
    parser.add_argument("--steps", type=int, default=24, help="measured steps")
    parser.add_argument(
        "--documents",
        type=int,
        default=1,
        help="documents in a row; 1 asks nothing but causality of attention",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help="PyTorch under torch.compile first, in a process of its own",
    )
    parser.add_argument(
        "--text",
        action="store_true",
        help="packed rows of config.data.sources too: one batch again and again, and the loader's",
    )
    parser.add_argument(
        "--kernels", action="store_true", help="where the device's time goes, of each of our rows"
    )
    parser.add_argument("--ladder", action="store_true", help="the pieces of the step too")


def run(arguments: argparse.Namespace) -> dict:
    """Rows: who, step_ms (median), tokens_per_second, mfu, peak_gib, compile_s, first_step_s; `ladder` and `kernels` where asked for.

    With --text, two rows more, of config.data.sources (else the embedded textbook) packed as in training: one batch again and again, and
    the batches that the launcher's loader reads meanwhile.
    """
    config, steps = arguments.config, arguments.steps
    text = prepared_text(config.data, "runs/bench") if arguments.text else None
    rows, messages = (
        peer_rows(config, steps) if arguments.peers else ([], [])
    )  # first: JAX takes most of a GPU's memory
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    with jax.set_mesh(mesh):
        random, pieces = measure(
            config,
            mesh,
            steps,
            arguments.documents,
            with_ladder=arguments.ladder,
            with_kernels=arguments.kernels,
        )
        fastest = max(
            (row["tokens_per_second"] for row in rows if "tokens_per_second" in row), default=None
        )
        if fastest:
            random["times_the_peer"] = random["tokens_per_second"] / fastest
        ours = [
            random,
            *(
                measure_text(config, mesh, text, steps, with_kernels=arguments.kernels)
                if text
                else []
            ),
        ]
    found = {"windows_ms": {row["who"]: row.pop("windows_ms") for row in ours}}
    kinds = [{"of": row["who"], **kind} for row in ours for kind in row.pop("kernels", ())]
    return {
        "bench": "train",
        "rows": [*rows, *ours],
        "ladder": pieces,
        "kernels": kinds,
        "messages": messages,
        **found,
    }


def measure(
    config: configs.Config,
    mesh: Mesh,
    steps: int,
    documents: int = 1,
    *,
    with_ladder: bool = False,
    with_kernels: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(row, ladder) of the train step of a config, compiled as the launcher does, on random tokens; the mesh is set."""
    program = make_program(config, mesh, config.model.vocab_size or config.data.vocab_size)
    rows = RandomRows(config, program.arch.vocab_size, documents, program.place_cuts)
    where, held = field_shardings(rows.shapes(0), mesh), np.arange(config.train.batch)
    batches = [
        hosts.global_batch(batch_rows(rows, step, held.tolist()), rows.shapes(step), where, held)
        for step in (0, 1)
    ]
    trial, feed = (
        Trial(program, LanguageModeling(rows, z_loss=config.train.z_loss), batches[0]),
        itertools.cycle(batches),
    )
    times = [trial.window(feed, WINDOW) for _ in range(max(3, steps // WINDOW))]
    row = trial.row(f"slmjax, {program.arch.attention} attention", documents, times)
    row |= {"kernels": trial.kernels(feed)} if with_kernels else {}
    del trial
    return row, ladder(program, batches[0]) if with_ladder else []


def measure_text(
    config: configs.Config, mesh: Mesh, text: Prepared, steps: int, *, with_kernels: bool = False
) -> list[dict[str, Any]]:
    """Rows of the step on one packed batch that is there, and on batches that the launcher's loader reads meanwhile, in turns.

    The mesh is set. All batches go through the program of the usual number of documents, also the rare ones that training gives to
    another program.
    """
    program = make_program(config, mesh, text.tokenizer.vocab_size)
    plan = batch_plan(config.data, config.train, text, seed=config.seed, cuts=program.place_cuts)
    fields, window = plan.shapes(0), max(WINDOW, steps // 6)
    where, held = (
        field_shardings(fields, mesh),
        hosts.local_rows(batch_sharding(mesh), *fields["tokens"].shape),
    )
    reader = local_batches(
        plan, start_step=0, stop_step=10**6, local_rows=held.tolist(), workers=config.data.workers
    )
    with reader as batches:
        read = (hosts.global_batch(batch, fields, where, held) for batch in batches)
        one = next(read)
        trial = Trial(program, LanguageModeling(plan, z_loss=config.train.z_loss), one)
        feeds: dict[str, Iterator] = {"one batch": itertools.repeat(one), "the loader's": read}
        per_row = (plan.usual_places if plan.cuts else plan.max_segments * len(held)) // len(held)
        times: dict[str, list[float]] = {name: [] for name in feeds}
        for _ in range(6):
            for name, feed in feeds.items():
                times[name].append(trial.window(feed, window))
        rows = [
            trial.row(f"slmjax, packed text, {name}", per_row, seconds)
            for name, seconds in times.items()
        ]
        rows[0] |= {"kernels": trial.kernels(feeds["one batch"])} if with_kernels else {}
    rows[1]["times_one_batch"] = rows[1]["tokens_per_second"] / rows[0]["tokens_per_second"]
    return rows


class Trial:
    """A program's compiled step and its state, which every window of steps goes on with."""

    def __init__(self, program: Program, task: Task, batch: dict):
        self.program = program
        began = time.perf_counter()
        self.step = program.compile(task)
        compile_s = time.perf_counter() - began
        self.state = jax.block_until_ready(program.init())
        began = time.perf_counter()
        self.state, metrics = self.step(self.state, batch)
        loss = float(metrics["loss"])
        memory = self.step.memory_analysis()
        peak = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30
        self.facts = {
            "peak_gib": peak,
            "compile_s": compile_s,
            "first_step_s": time.perf_counter() - began,
            "first_loss": loss,
        }

    def window(self, batches: Iterator, count: int) -> float:
        """Seconds a step of `count` steps that the host does not wait for, as in training, but for the last."""
        began = time.perf_counter()
        self._go(batches, count)
        return (time.perf_counter() - began) / count

    def kernels(self, batches: Iterator) -> list[dict[str, Any]]:
        """See bench/kernels.py."""
        return kernels(lambda: self._go(batches, WINDOW), WINDOW)

    def row(self, who: str, documents: int, times: list[float]) -> dict[str, Any]:
        """The table's row for these windows' times, and the times themselves."""
        ms = 1e3 * statistics.median(times)
        speed = 1e3 * self.program.config.train.batch * self.program.config.data.seq_len / ms
        row = {
            "who": who,
            "documents": documents,
            "step_ms": ms,
            "tokens_per_second": speed,
            "mfu": self.program.mfu(speed),
            **self.facts,
        }
        row |= {"fastest_ms": 1e3 * min(times), "windows_ms": [1e3 * seconds for seconds in times]}
        return {name: value for name, value in row.items() if value is not None}

    def _go(self, batches: Iterator, count: int) -> None:
        for batch in itertools.islice(batches, count):
            self.state, metrics = self.step(self.state, batch)
        jax.block_until_ready((self.state, metrics))


class RandomRows:
    """Rows of random tokens, in equal documents."""

    def __init__(
        self, config: configs.Config, vocab: int, documents: int, cuts: tuple[int, int] | None
    ):
        self.shape, self.vocab, self.documents = (
            (config.train.batch, config.data.seq_len),
            vocab,
            documents,
        )
        self.places = cuts and documents * config.train.batch // math.prod(cuts)

    def shapes(self, step: int) -> Fields:
        """See Rows."""
        return text_fields(*self.shape, self.places)

    def read(self, step: int, rows: Sequence[int]) -> Arrays:
        """See Rows."""
        batch = random_batch(*self.shape, self.vocab, self.documents, step)
        return {name: array[rows] for name, array in batch.items()}

    def unpack(self, compact: Arrays) -> Arrays:
        """See Rows."""
        return compact

    def fingerprint(self, step: int) -> str:
        """See Rows."""
        return f"random {self.shape} {self.vocab} {self.documents}"


def random_batch(
    rows: int, length: int, vocab: int, documents: int, seed: int
) -> dict[str, np.ndarray]:
    """Random tokens (see shell.random_tokens) in rows of equal documents, without padding."""
    tokens = shell.random_tokens((rows, length + 1), vocab, seed).astype(np.int32)
    segments = np.arange(length, dtype=np.int32) * documents // length + 1
    starts = np.searchsorted(segments, segments)
    whole = {
        "segments": segments,
        "positions": (np.arange(length) - starts).astype(np.int32),
        "weights": np.ones(length, np.float32),
    }
    batch = {name: np.tile(row, (rows, 1)) for name, row in whole.items()}
    return {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()} | batch


def peer_rows(config: configs.Config, steps: int) -> tuple[list[dict[str, Any]], list[str]]:
    """(the peer's row, or one that says why it could not run; messages)."""
    shape = {"batch": config.train.batch, "length": config.data.seq_len, "steps": steps}
    vocab = vocab_rows(config.model.vocab_size, config.model.vocab_size or config.data.vocab_size)
    answers, fault = shell.ask(
        "slmjax.bench.peers.torch_decoder",
        {"config": configs.to_dict(config), "vocab": vocab} | shape,
    )
    if fault:
        return [{"who": "PyTorch", "skipped": fault}], []
    (found,) = answers
    speed = 1e3 * shape["batch"] * shape["length"] / found["step_ms"]
    arch = from_config(config.model, vocab, compute=found["compute"])
    peak = devices.peak_flops(found["device"], arch.compute)
    row = {
        "who": found["who"],
        "documents": 1,
        "step_ms": found["step_ms"],
        "tokens_per_second": speed,
        "mfu": devices.mfu(speed, sizes.train_flops_per_token(arch, shape["length"]), peak),
        "peak_gib": found["peak_bytes"] and found["peak_bytes"] / 2**30,
        "first_step_s": found["first_step_s"],
        "first_loss": found["loss"],
    }
    attention = ", ".join(f"{name} {ms:.3g} ms" for name, ms in found["attention_ms"].items())
    messages = (
        [f"PyTorch's attention, one layer forward and backward: {attention}"] if attention else []
    )
    return [{name: value for name, value in row.items() if value is not None}], messages
