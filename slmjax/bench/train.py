"""Tokens per second of the launcher's own compiled train step, next to plain PyTorch."""

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
TURNS = 6  # windows of each feed of packed text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench train`."""
    add = parser.add_argument
    add("--steps", type=int, default=24, help="measured steps")
    add(
        "--documents",
        type=int,
        default=1,
        help="documents in a row; 1 asks nothing but causality of attention",
    )
    add(
        "--peers",
        action="store_true",
        help="PyTorch under torch.compile first, in a process of its own",
    )
    add(
        "--text",
        action="store_true",
        help="packed rows of config.data.sources too: one batch again and again, and the loader's",
    )
    add("--kernels", action="store_true", help="where the device's time goes, for our rows")
    add("--ladder", action="store_true", help="the pieces of the step too")


def run(arguments: argparse.Namespace) -> dict:
    """Measure the step; returns {"rows": [...], ...}.

    A row has who, step_ms (median), tokens_per_second, mfu, peak_gib, compile_s and first_step_s.
    `ladder` and `kernels` are there where asked for. With --text there are two rows more, of
    config.data.sources (else the embedded textbook) packed as in training: one batch again and
    again, and the batches that the launcher's loader reads meanwhile.
    """
    config, steps, with_kernels = arguments.config, arguments.steps, arguments.kernels
    text = prepared_text(config.data, "runs/bench") if arguments.text else None
    peers, messages = [], []
    if arguments.peers:  # first, since JAX takes most of a GPU's memory
        peers, messages = peer_rows(config, steps)
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    with jax.set_mesh(mesh):
        random, pieces = measure(
            config,
            mesh,
            steps,
            arguments.documents,
            with_ladder=arguments.ladder,
            with_kernels=with_kernels,
        )
        ours = [random]
        if text:
            ours += measure_text(config, mesh, text, steps, with_kernels=with_kernels)
    speeds = [row["tokens_per_second"] for row in peers if "tokens_per_second" in row]
    if speeds:
        random["times_the_peer"] = random["tokens_per_second"] / max(speeds)
    windows, kinds = {}, []
    for row in ours:
        windows[row["who"]] = row.pop("windows_ms")
        kinds += [{"of": row["who"], **kind} for kind in row.pop("kernels", ())]
    return {
        "bench": "train",
        "rows": [*peers, *ours],
        "ladder": pieces,
        "kernels": kinds,
        "messages": messages,
        "windows_ms": windows,
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
    """Measure a config's train step on random tokens, compiled as the launcher compiles it.

    The mesh is set.
    Returns: (row, ladder).
    """
    program = make_program(config, mesh, config.model.vocab_size or config.data.vocab_size)
    rows = RandomRows(config, program.arch.vocab_size, documents, program.place_cuts)
    fields = rows.shapes(0)
    where, held = field_shardings(fields, mesh), np.arange(config.train.batch)
    batches = []
    for step in (0, 1):
        local = batch_rows(rows, step, held.tolist())
        batches.append(hosts.global_batch(local, fields, where, held))
    task = LanguageModeling(rows, z_loss=config.train.z_loss)
    trial = Trial(program, task, batches[0])
    feed = itertools.cycle(batches)
    times = [trial.window(feed, WINDOW) for _ in range(max(3, steps // WINDOW))]
    row = trial.row(f"slmjax, {program.arch.attention} attention", documents, times)
    if with_kernels:
        row["kernels"] = trial.kernels(feed)
    del trial  # the pieces need its memory
    return row, ladder(program, batches[0]) if with_ladder else []


def measure_text(
    config: configs.Config, mesh: Mesh, text: Prepared, steps: int, *, with_kernels: bool = False
) -> list[dict[str, Any]]:
    """Measure the step on packed text, in turns: on one batch, and on the loader's batches.

    The mesh is set. All batches go through the program of the usual number of documents, also the
    rare ones that training gives to another program.
    """
    program = make_program(config, mesh, text.tokenizer.vocab_size)
    plan = batch_plan(config, text, program.place_cuts)
    fields, window = plan.shapes(0), max(WINDOW, steps // TURNS)
    where = field_shardings(fields, mesh)
    held = hosts.local_rows(batch_sharding(mesh), *fields["tokens"].shape)
    reader = local_batches(
        plan, start_step=0, stop_step=10**6, local_rows=held.tolist(), workers=config.data.workers
    )
    with reader as batches:
        loaded = (hosts.global_batch(batch, fields, where, held) for batch in batches)
        first = next(loaded)
        trial = Trial(program, LanguageModeling(plan, z_loss=config.train.z_loss), first)
        feeds: dict[str, Iterator] = {"one batch": itertools.repeat(first), "the loader's": loaded}
        times: dict[str, list[float]] = {name: [] for name in feeds}
        for _ in range(TURNS):
            for name, feed in feeds.items():
                times[name].append(trial.window(feed, window))
        places = plan.usual_places if plan.cuts else plan.max_segments * len(held)
        rows = []
        for name, seconds in times.items():
            rows.append(trial.row(f"slmjax, packed text, {name}", places // len(held), seconds))
        if with_kernels:
            rows[0]["kernels"] = trial.kernels(feeds["one batch"])
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
        loss = float(metrics["loss"])  # waits for the step
        first_step_s = time.perf_counter() - began
        memory = self.step.memory_analysis()
        peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        self.facts = {
            "peak_gib": peak / 2**30,
            "compile_s": compile_s,
            "first_step_s": first_step_s,
            "first_loss": loss,
        }

    def window(self, batches: Iterator, count: int) -> float:
        """Return the seconds of a step, over `count` steps.

        As in training, the host waits for the last one only.
        """
        began = time.perf_counter()
        self._go(batches, count)
        return (time.perf_counter() - began) / count

    def kernels(self, batches: Iterator) -> list[dict[str, Any]]:
        """See bench/device_kernels.py."""
        return kernels(lambda: self._go(batches, WINDOW), WINDOW)

    def row(self, who: str, documents: int, times: list[float]) -> dict[str, Any]:
        """Return the table's row for these windows' times, with the times themselves."""
        config = self.program.config
        ms = 1e3 * statistics.median(times)
        speed = 1e3 * config.train.batch * config.data.seq_len / ms
        row = {
            "who": who,
            "documents": documents,
            "step_ms": ms,
            "tokens_per_second": speed,
            "mfu": self.program.mfu(speed),
            **self.facts,
            "fastest_ms": 1e3 * min(times),
            "windows_ms": [1e3 * seconds for seconds in times],
        }
        return _known(row)

    def _go(self, batches: Iterator, count: int) -> None:
        for batch in itertools.islice(batches, count):
            self.state, metrics = self.step(self.state, batch)
        jax.block_until_ready((self.state, metrics))


class RandomRows:
    """Rows of random tokens, in equal documents. See Rows."""

    def __init__(
        self, config: configs.Config, vocab: int, documents: int, cuts: tuple[int, int] | None
    ):
        self.shape = config.train.batch, config.data.seq_len
        self.vocab, self.documents = vocab, documents
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
    """Return random tokens (see shell.random_tokens) in rows of equal documents, without padding."""
    tokens = shell.random_tokens((rows, length + 1), vocab, seed).astype(np.int32)
    segments = np.arange(length, dtype=np.int32) * documents // length + 1
    starts = np.searchsorted(segments, segments)  # where each token's document begins
    positions = (np.arange(length) - starts).astype(np.int32)
    return {
        "tokens": tokens[:, :-1].copy(),
        "targets": tokens[:, 1:].copy(),
        "segments": np.tile(segments, (rows, 1)),
        "positions": np.tile(positions, (rows, 1)),
        "weights": np.ones((rows, length), np.float32),
    }


def peer_rows(config: configs.Config, steps: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return (PyTorch's row, or one with the reason why it could not run; messages)."""
    shape = {"batch": config.train.batch, "length": config.data.seq_len, "steps": steps}
    vocab = vocab_rows(config.model.vocab_size, config.model.vocab_size or config.data.vocab_size)
    question = {"config": configs.to_dict(config), "vocab": vocab, **shape}
    answers, fault = shell.ask("slmjax.bench.peers.torch_decoder", question)
    if fault:
        return [{"who": "PyTorch", "skipped": fault}], []
    (answer,) = answers
    speed = 1e3 * shape["batch"] * shape["length"] / answer["step_ms"]
    arch = from_config(config.model, vocab, compute=answer["compute"])
    peak = devices.peak_flops(answer["device"], arch.compute)
    row = {
        "who": answer["who"],
        "documents": 1,
        "step_ms": answer["step_ms"],
        "tokens_per_second": speed,
        "mfu": devices.mfu(speed, sizes.train_flops_per_token(arch, shape["length"]), peak),
        "peak_gib": answer["peak_bytes"] and answer["peak_bytes"] / 2**30,
        "first_step_s": answer["first_step_s"],
        "first_loss": answer["loss"],
    }
    messages = []
    if answer["attention_ms"]:
        times = ", ".join(f"{name} {ms:.3g} ms" for name, ms in answer["attention_ms"].items())
        messages.append(f"PyTorch's attention, one layer forward and backward: {times}")
    return [_known(row)], messages


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the values that are not known here."""
    return {name: value for name, value in row.items() if value is not None}
