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

# Steps at the beginning whose speed does not count: they compile, and the allocator's pools grow.
SETTLED = 20

Losses = dict[str, DocumentLosses]  # by source


def train_llama(
    peer: Peer, prepared: Prepared, plan: BatchPlan, writer: MetricsWriter, folder: Path
) -> tuple[dict[str, Any], Losses]:
    """Train the peer for all steps of its config.

    Returns: (tokens_per_second, seconds, steps, tokens and loss, the curve [(step, loss), ...];
      held-out losses at the end).
    """
    config = peer.config
    steps = config.train.steps
    log_every = config.log.every
    recorder = _Recorder(peer, writer)
    losses: Losses = {}
    pending = None  # [loss, gradient norm] of the last step, until it is read
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
            # Reading a loss waits for its step. It is read one step late, so that the device always
            # has the next step to do.
            if pending is not None:
                recorder.add(pending)
            pending = launched
            done = step + 1
            evaluates = done == steps or _due(done, config.eval.every)
            if evaluates or _due(done, log_every):
                recorder.add(pending)
                pending = None
                recorder.log(done, prints=evaluates or _due(done, 10 * log_every))
                if evaluates:
                    losses = _evaluate(peer, prepared)
                    recorder.log_heldout(done, losses)
                    _save(losses, prepared, folder / "heldout.npz")
                # After the evaluation, so that its time does not lower the speed.
                recorder.restart()
            if step == 0:
                # The garbage collector need not look through model and libraries again.
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
    """Logs windows of steps, from one log line to the next; keeps the loss curve and the speeds."""

    def __init__(self, peer: Peer, writer: MetricsWriter):
        train = peer.config.train
        seq_len = peer.config.data.seq_len
        self.peer = peer
        self.writer = writer
        self.steps = train.steps
        self.step_tokens = train.batch * seq_len
        self.token_flops = sizes.train_flops_per_token(peer.arch, seq_len)
        # (last step of a window, mean loss of the window)
        self.curve: list[tuple[int, float]] = []
        self.speeds: list[float] = []  # tokens per second of each window that counts
        self.restart()

    def restart(self) -> None:
        """Begin a new window of steps."""
        self.window_losses: list[float] = []
        self.gradient_norm = 0.0  # of the last step
        self.window_began = time.monotonic()

    def add(self, loss_and_norm: Tensor) -> None:
        """Wait for a step's [loss, gradient norm] and add it to the window."""
        loss, self.gradient_norm = loss_and_norm.tolist()
        self.window_losses.append(loss)

    def log(self, done: int, prints: bool) -> None:
        """Write the metrics of the window that ends after `done` steps; print a line if asked."""
        seconds = time.monotonic() - self.window_began
        window_steps = len(self.window_losses)
        speed = window_steps * self.step_tokens / seconds
        loss = float(np.mean(self.window_losses))
        self.curve.append((done, loss))
        # In a short run the windows of the second half count.
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
        if prints:
            progress = f"step {done}/{self.steps}  loss {loss:.4f}  {speed:,.0f} tokens/s"
            print(progress, flush=True)

    def log_heldout(self, done: int, losses: Losses) -> None:
        """Write and print held-out bits per byte after `done` steps."""
        metrics = evaluation.metrics(losses)
        self.writer.write(done, metrics | self._axes(done))
        total = metrics.get("eval/bits_per_byte", float("nan"))
        print(f"step {done}: held-out bits per byte {total:.4f}", flush=True)

    def median_speed(self) -> float | None:
        """Return the median tokens per second of the windows that count; None if there is none."""
        if not self.speeds:
            return None
        return float(np.median(self.speeds))

    def _axes(self, done: int) -> dict[str, int | float]:
        """Return tokens and FLOPs so far, against which a report plots the other metrics."""
        tokens = done * self.step_tokens
        return {"train/tokens": tokens, "train/flops": tokens * self.token_flops}


def _due(done: int, every: int) -> bool:
    """Return whether `done` steps are a multiple of `every`; with 0, nothing is ever due."""
    return every > 0 and done % every == 0


def _evaluate(peer: Peer, prepared: Prepared) -> Losses:
    """Return the losses of held-out documents, in the batches of train.evaluation.HeldOut."""
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
