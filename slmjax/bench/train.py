"""Tokens per second of the launcher's own compiled train step, beside what a user would write in PyTorch."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from slmjax import config as configs
from slmjax.bench.ladder import ladder
from slmjax.models import sizes
from slmjax.models.architecture import from_config
from slmjax.models.resolve import vocab_rows
from slmjax.parallel.mesh import batch_sharding, make_mesh
from slmjax.train.program import make_program

WINDOW = 4  # steps between two looks at the clock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m slmjax.bench train`."""
    parser.add_argument("--steps", type=int, default=24, help="measured steps")
    parser.add_argument("--documents", type=int, default=1, help="documents in a row; 1 asks nothing but causality of attention")
    parser.add_argument("--peers", action="store_true", help="PyTorch under torch.compile first, in a process of its own")
    parser.add_argument("--ladder", action="store_true", help="the pieces of the step too")


def run(arguments: argparse.Namespace) -> dict:
    """Rows: who, step_ms (median), tokens_per_second, mfu, peak_gib, compile_s, first_step_s; `ladder` where asked for."""
    config = arguments.config
    rows = peer_rows(config, arguments.steps) if arguments.peers else []  # first: JAX takes most of a GPU's memory
    found = measure(config, arguments.steps, arguments.documents, with_ladder=arguments.ladder)
    pieces = found.pop("ladder")
    fastest = max((row["tokens_per_second"] for row in rows if "tokens_per_second" in row), default=None)
    if fastest:
        found["times_the_peer"] = found["tokens_per_second"] / fastest
    return {"bench": "train", "rows": [*rows, found], "ladder": pieces}


def measure(config: ConfigDict, steps: int, documents: int = 1, *, with_ladder: bool = False) -> dict[str, Any]:
    """Compile the train step of a config as the launcher does, and time it on random tokens."""
    mesh = make_mesh(config.mesh.to_dict())
    shape = (config.train.batch, config.data.seq_len)
    program = make_program(config, mesh, config.model.vocab_size or config.data.vocab_size, (documents, documents))
    with jax.set_mesh(mesh):
        began = time.perf_counter()
        step = program.compile()
        compile_s = time.perf_counter() - began
        batches = [jax.device_put(random_batch(*shape, program.arch.vocab_size, documents, seed), batch_sharding(mesh)) for seed in (0, 1)]
        state = jax.block_until_ready(program.init())
        began = time.perf_counter()
        state, metrics = step(state, batches[0])
        loss = float(metrics["loss"])
        first = time.perf_counter() - began
        times = []
        for _ in range(max(3, steps // WINDOW)):
            began = time.perf_counter()
            for number in range(WINDOW):  # as in training, where the host does not wait for a step
                state, metrics = step(state, batches[number % 2])
            jax.block_until_ready((state, metrics))
            times.append((time.perf_counter() - began) / WINDOW)
        memory = step.memory_analysis()
        del state
        pieces = ladder(program, batches[0]) if with_ladder else []
    ms, tokens = 1e3 * statistics.median(times), shape[0] * shape[1]
    speed = 1e3 * tokens / ms
    peak = sizes.peak_flops(program.device.name, program.arch.compute)
    row = {
        "who": f"slmjax, {program.arch.attention} attention", "documents": documents, "step_ms": ms, "tokens_per_second": speed,
        "mfu": sizes.mfu(speed, program.flops_per_token, peak and peak * mesh.size),
        "peak_gib": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30,
        "compile_s": compile_s, "first_step_s": first, "fastest_ms": 1e3 * min(times), "first_loss": loss, "ladder": pieces,
    }  # fmt: skip
    return {name: value for name, value in row.items() if value is not None}


def random_batch(rows: int, length: int, vocab: int, documents: int, seed: int) -> dict[str, np.ndarray]:
    """Random tokens in rows of equal documents, without padding."""
    tokens = np.random.default_rng(seed).integers(0, vocab, (rows, length + 1), dtype=np.int32)
    segments = np.arange(length, dtype=np.int32) * documents // length + 1
    starts = np.searchsorted(segments, segments)
    whole = {"segments": segments, "positions": (np.arange(length) - starts).astype(np.int32), "weights": np.ones(length, np.float32)}
    batch = {name: np.tile(row, (rows, 1)) for name, row in whole.items()}
    return {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()} | batch


def peer_rows(config: ConfigDict, steps: int) -> list[dict[str, Any]]:
    """The peer's row, from a process of its own; a row that says why where it could not run."""
    shape = {"batch": config.train.batch, "length": config.data.seq_len, "steps": steps}
    vocab = vocab_rows(config.model.vocab_size, config.model.vocab_size or config.data.vocab_size)
    spec = {"config": configs.to_dict(config), "vocab": vocab} | shape
    done = subprocess.run([sys.executable, "-m", "slmjax.bench.peers"], input=json.dumps(spec), capture_output=True, text=True, check=False)
    if done.returncode:
        return [{"who": "PyTorch", "skipped": (done.stderr.strip().splitlines() or ["failed"])[-1]}]
    found = json.loads(done.stdout.splitlines()[-1])
    tokens = shape["batch"] * shape["length"]
    speed = 1e3 * tokens / found["step_ms"]
    arch = from_config(config, vocab, compute=found["compute"])
    peak = sizes.peak_flops(found["device"], arch.compute)
    row = {
        "who": found["who"], "documents": 1, "step_ms": found["step_ms"], "tokens_per_second": speed,
        "mfu": sizes.mfu(speed, sizes.train_flops_per_token(arch, shape["length"]), peak),
        "peak_gib": found["peak_bytes"] and found["peak_bytes"] / 2**30, "first_step_s": found["first_step_s"], "first_loss": found["loss"],
    }  # fmt: skip
    return [{name: value for name, value in row.items() if value is not None}]
