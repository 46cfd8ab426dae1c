"""Train the Llama peer, and log metrics and held-out losses in the formats of our own runs."""

import gc
import time
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.bench.peers.llama_loss import Tensor
from slmjax.bench.peers.llama_model import Peer
from slmjax.data.loader import BatchPlan, heldout_batches, local_batches
from slmjax.data.prepare import Prepared
from slmjax.evals.perplexity import DocumentLosses, document_losses
from slmjax.models import sizes
from slmjax.record.metrics import MetricsWriter
from slmjax.train import evaluation

# Steps before the first speed that counts: compilation and the growth of the allocator's pools.
SETTLED = 20

Losses = dict[str, DocumentLosses]  # by source


def train_llama(
    peer: Peer, prepared: Prepared, plan: BatchPlan, writer: MetricsWriter, folder: Path
) -> tuple[dict[str, Any], Losses]:
    """Train the peer for all steps of its config.

    Returns: (speed, duration and the loss curve [(step, loss), ...]; held-out losses of the end).
    """
    config = peer.config
    steps = config.train.steps
    log_every = config.log.every
    recorder = _Recorder(peer, writer)
    losses: Losses = {}
    pending = None
    began = time.monotonic()
    with local_batches(
        plan,
        start_step=0,
        stop_step=steps,
        local_rows=range(config.train.batch),
        workers=config.data.workers,
    ) as batches:
        for step in range(steps):
            launched = peer.step(next(batches), step)
            # Losses are read one step late, so that the device always has a step to do.
            if pending is not None:
                recorder.add(pending)
            pending = launched
            done = step + 1
            evaluates = done == steps or _due(done, config.eval.every)
            if evaluates or _due(done, log_every):
                recorder.add(pending)
                pending = None
                recorder.log(done, shows=evaluates or _due(done, 10 * log_every))
                if evaluates:
                    losses = _evaluate(peer, prepared)
                    recorder.log_heldout(done, losses)
                    _save(losses, prepared, folder / "heldout.npz")
                # After the evaluation, whose time is not part of the speed.
                recorder.restart()
            if step == 0:
                # The collector need not look through model and libraries again.
                gc.freeze()
    measured = {
        "tokens_per_second": recorder.median_speed(),
        "seconds": time.monotonic() - began,
        "steps": steps,
        "tokens": steps * recorder.step_tokens,
        "loss": recorder.curve,
    }
    return measured, losses


class _Recorder:
    """Log the steps since the last log line, and keep the loss curve and the speeds."""

    def __init__(self, peer: Peer, writer: MetricsWriter):
        train = peer.config.train
        seq_len = peer.config.data.seq_len
        self.peer = peer
        self.writer = writer
        self.steps = train.steps
        self.step_tokens = train.batch * seq_len
        self.token_flops = sizes.train_flops_per_token(peer.arch, seq_len)
        # (step, mean loss of the window that ends there)
        self.curve: list[tuple[int, float]] = []
        self.speeds: list[float] = []
        self.restart()

    def restart(self) -> None:
        """Begin a new window of steps."""
        self.window_losses: list[float] = []
        self.gradient_norm = 0.0  # of the last step
        self.since = time.monotonic()

    def add(self, values: Tensor) -> None:
        """Wait for a step's [loss, gradient norm] and add it to the window."""
        loss, self.gradient_norm = values.tolist()
        self.window_losses.append(loss)

    def log(self, done: int, shows: bool) -> None:
        """Write the window's metrics after `done` steps; print a line if it `shows`."""
        seconds = time.monotonic() - self.since
        window_steps = len(self.window_losses)
        speed = window_steps * self.step_tokens / seconds
        loss = float(np.mean(self.window_losses))
        self.curve.append((done, loss))
        # In a run that is too short to settle, the second half counts.
        settled = min(SETTLED, self.steps // 2)
        if done - window_steps >= settled:
            self.speeds.append(speed)
        row = {
            "train/loss": loss,
            "train/grad_norm": self.gradient_norm,
            "train/learning_rate": float(self.peer.rates[done - 1]),
            "perf/tokens_per_second": speed,
            "perf/peak_memory_bytes": self.peer.peak_memory(),
        }
        self.writer.write(done, row | self._axes(done))
        if shows:
            progress = f"step {done}/{self.steps}  loss {loss:.4f}  {speed:,.0f} tokens/s"
            print(progress, flush=True)

    def log_heldout(self, done: int, losses: Losses) -> None:
        """Write and print held-out bits per byte after `done` steps."""
        metrics = evaluation.metrics(losses)
        self.writer.write(done, metrics | self._axes(done))
        total = metrics.get("eval/bits_per_byte", float("nan"))
        print(f"step {done}: held-out bits per byte {total:.4f}", flush=True)

    def median_speed(self) -> float | None:
        """Return the median tokens per second once settled; None for too short a run."""
        if not self.speeds:
            return None
        return float(np.median(self.speeds))

    def _axes(self, done: int) -> dict[str, int | float]:
        """Return the quantities against which a report plots the others."""
        tokens = done * self.step_tokens
        return {"train/tokens": tokens, "train/flops": tokens * self.token_flops}


def _due(done: int, every: int) -> bool:
    """Return whether something that happens every `every` steps is due; 0 means never."""
    return every > 0 and done % every == 0


def _evaluate(peer: Peer, prepared: Prepared) -> Losses:
    """Score the documents and batches of train.evaluation.HeldOut."""
    config = peer.config
    losses = {}
    for name, shards in prepared.heldout.items():
        # A small source may have no held-out text.
        if len(shards):
            batches = heldout_batches(
                shards,
                seq_len=config.data.seq_len,
                batch=config.train.batch // config.train.microbatches,
                max_tokens=config.eval.tokens,
            )
            losses[name] = document_losses(peer.score, batches, shards.bytes)
    return losses


def _save(losses: Losses, prepared: Prepared, path: Path) -> None:
    """Write heldout.npz as our own runs have it."""
    arrays = {}
    for name, scored in losses.items():
        keys = np.asarray(prepared.heldout[name].keys)
        arrays[f"{name}/keys"] = keys[scored.document]
        arrays[f"{name}/nats"] = scored.nats
        arrays[f"{name}/bytes"] = scored.bytes
        arrays[f"{name}/tokens"] = scored.tokens
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)
