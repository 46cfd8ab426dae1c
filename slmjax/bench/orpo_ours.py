"""The part of bench/orpo_comparison.py that needs JAX, in a process of its own.

A run of the library, its weights in transformers' names, and the scores of its own evaluation.
"""

import contextlib
import dataclasses
import json
import sys
import time
from typing import Any

import jax
import numpy as np

from slmjax import config as configs
from slmjax import launch
from slmjax.bench.peers.llama_weights import llama_weights
from slmjax.config import Config
from slmjax.data.prepare_stage import prepared_text
from slmjax.errors import UserError
from slmjax.evals.perplexity import DocumentLosses
from slmjax.infer.load import load_model
from slmjax.parallel.mesh import make_mesh
from slmjax.record import metrics
from slmjax.text.records import PAIRS
from slmjax.train.evaluation import HeldoutScorer
from slmjax.train.inherit import inherit, parents
from slmjax.train.program import make_program

# What a task answers: as JSON.
Facts = dict[str, Any]


def identify(init_from: str) -> Facts:
    """Return {"hash": that of the newest checkpoint of a run or of its export}."""
    return {"hash": parents(init_from)[0]["hash"]}


def export_weights(workdir: str, path: str) -> Facts:
    """Write the newest weights of a run to an .npz file, in transformers' names and layout.

    Returns: {"vocab": rows of the embedding}.
    """
    loaded = load_model(workdir)
    np.savez(path, **llama_weights(loaded.arch, loaded.params))
    return {"vocab": loaded.arch.vocab_size}


def run_launcher(words: list[str], workdir: str, weights: str) -> Facts:
    """Run the launcher and write the weights.

    Args:
      words: the launcher's arguments.
    Returns: a dict with seconds (of the launcher, with compilation), before and after (bits per
      byte of held-out text; None without text), and own_accuracy (of all held-out pairs, by the
      run's own evaluation).
    """
    began = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        status = launch.main(words)
    if status:
        sys.exit(status)  # the launcher's sentence is the last line of stderr
    seconds = time.perf_counter() - began
    export_weights(workdir, weights)
    records = metrics.read(workdir)
    _, bits = metrics.series(records, "eval/bits_per_byte")
    scores = metrics.last_event(records, "preferences")["sources"]
    # There is a total, also of one source.
    total = scores["preferences"]
    return {
        "seconds": seconds,
        "before": float(bits[0]) if len(bits) else None,
        "after": float(bits[-1]) if len(bits) else None,
        "own_accuracy": total["accuracy"],
    }


def score(config: dict, init_from: str, workdir: str) -> Facts:
    """Score held-out pairs with the library's own evaluation, in float32.

    Args:
      config: as config.json holds it.
      workdir: next to it is the prepared text.
    Returns: {"nats": a pair of sums for each pair, source by source}.
    """
    settings = configs.freeze(configs.from_dict(config))
    settings = dataclasses.replace(
        settings,
        precision=dataclasses.replace(settings.precision, compute="float32"),
        # Other kernels may need bfloat16.
        model=dataclasses.replace(settings.model, attention="reference"),
    )
    nats = []
    with jax.default_matmul_precision("highest"):  # no TF32
        losses_of_sources = heldout_losses(settings, init_from, workdir)
    for losses in losses_of_sources.values():
        nats += losses.nats.reshape(-1, 2).tolist()
    return {"nats": nats}


def heldout_losses(config: Config, init_from: str, workdir: str) -> dict[str, DocumentLosses]:
    """Return the losses of both answers of every held-out pair, by source."""
    prepared = prepared_text(config.data, workdir, init_from=init_from)
    sources = {}
    for name, shards in prepared.heldout.items():
        if shards.kind == PAIRS:
            sources[name] = shards
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    with jax.set_mesh(mesh):
        program = make_program(config, mesh, prepared.tokenizer.vocab_size)
        _, buffers = program.declared
        state, _, _ = inherit(
            init_from, program.init(), program.shapes, buffers, prepared.tokenizer.sha256
        )
        scorer = HeldoutScorer(program, sources, max_segments=16, max_tokens=None)
        return scorer.losses(state.params, state.buffers)


TASKS = {"identify": identify, "export": export_weights, "train": run_launcher, "score": score}


def main() -> None:
    """Read {"do": name of a task, ...its arguments} as JSON from stdin; print a line of JSON."""
    launch.keep_freed_memory()
    question = json.load(sys.stdin)
    task = TASKS[question.pop("do")]
    try:
        answer = task(**question)
    except UserError as error:
        sys.exit(str(error))  # shell.ask reports the last line of stderr
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
