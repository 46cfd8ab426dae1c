"""Tokens per second of the launcher's own compiled train step, next to plain PyTorch."""

import argparse
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from slmjax import config as configs
from slmjax.bench import shell
from slmjax.bench.ladder import ladder
from slmjax.bench.trial import WINDOW, Trial, known_values
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
from slmjax.train.program import make_program

TURNS = 6  # timed windows of the repeated batch, and as many of the loader's batches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench train`."""
    add = parser.add_argument
    add("--steps", type=int, default=24, help="measured steps")
    add(
        "--documents",
        type=int,
        default=1,
        help="documents packed into each row; with 1, attention needs only its causal mask",
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
    add("--ladder", action="store_true", help="measure the pieces of the step too")


def run(arguments: argparse.Namespace) -> dict:
    """Measure the step; returns {"rows": [...], ...}.

    A row has who, step_ms (median), tokens_per_second, mfu, peak_gib, compile_s and first_step_s.
    "ladder" and "kernels" are empty lists unless they are asked for. With --text there are two more
    rows, on text of config.data.sources (else the embedded textbook) that is packed as in training:
    one batch again and again, and the batches that the launcher's loader reads meanwhile.
    """
    config = arguments.config
    steps = arguments.steps
    text = None
    if arguments.text:
        text = prepared_text(config.data, "runs/bench")
    peers, messages = [], []
    if arguments.peers:
        # Before our own step: JAX takes most of a GPU's memory once it has begun.
        peers, messages = peer_rows(config, steps)
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    with jax.set_mesh(mesh):
        random_row, ladder_rows = measure(
            config,
            mesh,
            steps,
            arguments.documents,
            with_ladder=arguments.ladder,
            with_kernels=arguments.kernels,
        )
        ours = [random_row]
        if text:
            ours += measure_text(config, mesh, text, steps, with_kernels=arguments.kernels)
    # A peer that could not run has a reason instead of a speed.
    speeds = [row["tokens_per_second"] for row in peers if "tokens_per_second" in row]
    if speeds:
        random_row["times_the_peer"] = random_row["tokens_per_second"] / max(speeds)
    # Lists do not fit into cells: they go into the JSON, or into a table of their own.
    windows_ms, kernel_rows = {}, []
    for row in ours:
        who = row["who"]
        windows_ms[who] = row.pop("windows_ms")
        for kernel_row in row.pop("kernels", ()):
            kernel_rows.append({"of": who, **kernel_row})
    return {
        "bench": "train",
        "rows": [*peers, *ours],
        "ladder": ladder_rows,
        "kernels": kernel_rows,
        "messages": messages,
        "windows_ms": windows_ms,
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

    The caller has set the mesh (jax.set_mesh).

    Args:
      documents: equally long documents in a row.
    Returns: (the table's row, see Trial.row, with "kernels" if asked for; the rows of the ladder,
      none unless asked for).
    """
    # No text is read, so there is no tokenizer that could decide the rows of the embedding.
    program = make_program(config, mesh, config.model.vocab_size or config.data.vocab_size)
    rows = RandomRows(config, program.arch.vocab_size, documents, program.place_cuts)
    fields = rows.shapes(0)
    shardings = field_shardings(fields, mesh)
    local_rows = np.arange(config.train.batch)  # one process holds all rows
    batches = []
    # Two in turn: as in training, no step has the batch of the step before.
    for step in (0, 1):
        arrays = batch_rows(rows, step, local_rows.tolist())
        batches.append(hosts.global_batch(arrays, fields, shardings, local_rows))
    task = LanguageModeling(rows, z_loss=config.train.z_loss)
    trial = Trial(program, task, batches[0])
    feed = itertools.cycle(batches)
    windows = max(3, steps // WINDOW)  # of fewer than three a median means nothing
    times = [trial.window(feed, WINDOW) for _ in range(windows)]
    row = trial.row(f"slmjax, {program.arch.attention} attention", documents, times)
    if with_kernels:
        row["kernels"] = trial.kernels(feed)
    del trial  # the ladder needs its memory
    ladder_rows = []
    if with_ladder:
        ladder_rows = ladder(program, batches[0])
    return row, ladder_rows


def measure_text(
    config: configs.Config, mesh: Mesh, text: Prepared, steps: int, *, with_kernels: bool = False
) -> list[dict[str, Any]]:
    """Measure the step on packed text, in turns on one repeated batch and on the loader's batches.

    The caller has set the mesh (jax.set_mesh). All batches go through the program for the usual
    number of documents, even the rare ones for which training compiles another program.

    Returns: the rows of the repeated batch and of the loader's batches, see Trial.row. The first
      has "kernels" if asked for, the second has times_one_batch, a ratio of speeds.
    """
    program = make_program(config, mesh, text.tokenizer.vocab_size)
    plan = batch_plan(config.data, config.train, text, seed=config.seed, cuts=program.place_cuts)
    fields = plan.shapes(0)
    shardings = field_shardings(fields, mesh)
    local_rows = hosts.local_rows(batch_sharding(mesh), *fields["tokens"].shape)
    reader = local_batches(
        plan,
        start_step=0,
        stop_step=10**6,  # more steps than are read
        local_rows=local_rows.tolist(),
        workers=config.data.workers,
    )
    with reader as batches:
        loaded = (hosts.global_batch(batch, fields, shardings, local_rows) for batch in batches)
        first = next(loaded)
        task = LanguageModeling(plan, z_loss=config.train.z_loss)
        trial = Trial(program, task, first)
        feeds: dict[str, Iterator] = {
            "one batch": itertools.repeat(first),
            "the loader's": loaded,
        }
        times: dict[str, list[float]] = {name: [] for name in feeds}
        window_steps = max(WINDOW, steps // TURNS)
        # In turns: if the GPU lowers its clock, both feeds get slower.
        for _ in range(TURNS):
            for name, feed in feeds.items():
                times[name].append(trial.window(feed, window_steps))
        # The documents a row that the program has room for; these rows may hold fewer.
        documents = plan.max_segments
        if plan.cuts:
            # `usual_places` counts the documents of a device's rows of a microbatch.
            device_rows = plan.batch // math.prod(plan.cuts)
            documents = plan.usual_places // device_rows
        rows = []
        for name, seconds in times.items():
            rows.append(trial.row(f"slmjax, packed text, {name}", documents, seconds))
        if with_kernels:
            rows[0]["kernels"] = trial.kernels(feeds["one batch"])
    one_batch, from_loader = rows
    ratio = from_loader["tokens_per_second"] / one_batch["tokens_per_second"]
    from_loader["times_one_batch"] = ratio
    return rows


class RandomRows:
    """Rows of random tokens, each row cut into equally long documents; implements data.rows.Rows.

    Args:
      documents: in a row.
      cuts: (microbatches, devices that a microbatch's rows are split over); None where the
        attention kernel needs no places for documents.
    """

    def __init__(
        self, config: configs.Config, vocab: int, documents: int, cuts: tuple[int, int] | None
    ):
        self.shape = config.train.batch, config.data.seq_len
        self.vocab = vocab
        self.documents = documents
        # Documents in a device's rows of a microbatch, for which its kernel keeps places.
        self.places = None
        if cuts:
            self.places = documents * config.train.batch // math.prod(cuts)

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
    """Return a batch of equally long documents without padding, arrays as in data.rows.text_fields.

    For the tokens see shell.random_tokens.
    """
    # One more token than a row has: the last target.
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
    """Return ([PyTorch's row, or one that says why it could not run], messages to print)."""
    batch = config.train.batch
    length = config.data.seq_len
    # As many rows as the embedding has in the program of `measure`.
    vocab = vocab_rows(config.model.vocab_size, config.model.vocab_size or config.data.vocab_size)
    question = {
        "config": configs.to_dict(config),
        "vocab": vocab,
        "batch": batch,
        "length": length,
        "steps": steps,
    }
    answers, fault = shell.ask("slmjax.bench.peers.torch_decoder", question)
    if fault:
        return [{"who": "PyTorch", "skipped": fault}], []
    (answer,) = answers
    speed = 1e3 * batch * length / answer["step_ms"]
    # mfu counts the FLOPs of our own step, so that both rows compare.
    arch = from_config(config.model, vocab, compute=answer["compute"])
    flops = sizes.train_flops_per_token(arch, length)
    peak_flops = devices.peak_flops(answer["device"], arch.compute)
    row = {
        "who": answer["who"],
        "documents": 1,
        "step_ms": answer["step_ms"],
        "tokens_per_second": speed,
        "mfu": devices.mfu(speed, flops, peak_flops),
        "peak_gib": answer["peak_bytes"] and answer["peak_bytes"] / 2**30,
        "first_step_s": answer["first_step_s"],
        "first_loss": answer["loss"],
    }
    messages = []
    attention_ms = answer["attention_ms"]
    # If PyTorch is slow, its kernel may be the reason: the times of all of them are printed.
    if attention_ms:
        times = ", ".join(f"{name} {ms:.3g} ms" for name, ms in attention_ms.items())
        messages.append(f"PyTorch's attention, one layer forward and backward: {times}")
    return [known_values(row)], messages
