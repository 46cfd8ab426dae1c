"""How fast packed batches are read: tokens a second of the loader that the launcher uses, over six mixed sources.

python -m slmjax.bench data

Where $SLMJAX_SHARED (../shared/data unless set) has pretrain/, the sources are the six domains of configs/30m.py, prepared as a run
prepares them; another --config with data.sources brings its own. Else six made-up sources, of documents of other lengths each, stand in.
A batch is all that a step gets: tokens, targets, segments, positions and weights. The process and its workers may use two cores
unless --cores says otherwise, and no repeat reads the batches of another.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slmjax import config as configs
from slmjax.bench import shell
from slmjax.bench.peers import loaders as data_peers
from slmjax.data.loader import BatchPlan, fold, local_batches, unfold
from slmjax.data.prepare import prepare
from slmjax.data.shards import ShardSet, ShardWriter
from slmjax.errors import UserError

RECIPE = Path(__file__).parents[2] / "configs" / "30m.py"
# Of made-up text: median and spread (of the logarithm) of the documents' tokens, and documents. Near the six domains, and smaller.
VOCAB_SIZE = 16_384
MADE_UP = {
    "books": (4000, 0.8, 700),
    "textbooks": (3500, 0.8, 400),
    "math": (2500, 0.9, 600),
    "docs": (1000, 1.1, 1200),
    "code": (130, 0.5, 3500),
    "reference": (800, 0.8, 300),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m slmjax.bench data`."""
    parser.add_argument(
        "--seq-lens",
        type=shell.numbers(1),
        default="1024,2048",
        help="tokens of a row, comma-separated",
    )
    parser.add_argument(
        "--workers",
        type=shell.numbers(0),
        default="0,1,2",
        help="processes that read, comma-separated; 0: a thread instead",
    )
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens of a batch")
    parser.add_argument("--batches", type=int, default=100, help="batches of one repeat")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median counts")
    parser.add_argument(
        "--cores", type=int, default=2, help="cores that may be used (Linux); 0: all"
    )
    parser.add_argument(
        "--cache",
        default="",
        help="folder for prepared text that is kept; a temporary one unless set",
    )
    parser.add_argument(
        "--made-up",
        action="store_true",
        help="made-up sources although the text of configs/30m.py is at hand",
    )
    parser.add_argument("--no-peers", action="store_true", help="without Grain's own packers")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns {"bench": "data", "rows": [...]}.

    A row has loader ("slmjax" or a peer's name), sources ("prepared" or "made up"), seq_len, rows of a batch, workers,
    tokens_per_second (median; of text, padding not counted) with the slowest and fastest repeat, and load, the machine's load average
    before: 1 or more means that the figures shared the machine. Our rows have max_segments, and where no worker reads also cpu_ns,
    processor time a token, and its parts, each alone in one thread: plan_ns, read_ns and assemble_ns.
    Raises: UserError for numbers out of range and for text that cannot be prepared.
    """
    if min(arguments.tokens, arguments.batches, arguments.repeats) < 1 or arguments.cores < 0:
        raise UserError("--tokens, --batches and --repeats are 1 or more, and --cores 0 or more.")
    rows = []
    with contextlib.ExitStack() as stack:
        folder = arguments.cache or stack.enter_context(tempfile.TemporaryDirectory())
        kind, train = _sources(arguments, Path(folder))
        stack.enter_context(_cores(arguments.cores))
        for seq_len in arguments.seq_lens:
            batch = max(1, arguments.tokens // seq_len)
            plan = BatchPlan(train, seq_len=seq_len, batch=batch, steps=10**6, seed=0)
            shape = {"sources": kind, "seq_len": seq_len, "batch": batch}
            for workers in arguments.workers:
                rows.append({"loader": "slmjax", **shape, **_ours(plan, workers, arguments)})
            if not arguments.no_peers:
                peers = data_peers.packers(train, seq_len=seq_len, batch=batch)
                rows += [
                    {"loader": name, **shape, **_timed(make, _text_of_peer, 0, arguments)}
                    for name, make in peers.items()
                ]
    return {"bench": "data", "rows": rows}


def _ours(plan: BatchPlan, workers: int, arguments: argparse.Namespace) -> dict[str, Any]:
    steps = arguments.batches + _settle(workers)

    def batches(repeat: int) -> Any:
        first = repeat * steps
        return local_batches(
            plan,
            start_step=first,
            stop_step=first + steps,
            local_rows=range(plan.batch),
            workers=workers,
        )

    row = {
        **_timed(batches, lambda batch: int(batch["weights"].sum()), workers, arguments),
        "max_segments": plan.max_segments,
    }
    if workers:
        return row
    ahead = arguments.repeats * steps
    parts = [_stages(plan, range(first, first + steps)) for first in range(ahead, 2 * ahead, steps)]
    return row | {name: statistics.median(part[name] for part in parts) for name in parts[0]}


def _timed(
    make: Callable[[int], Any],
    text: Callable[[Any], int],
    workers: int,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Tokens a second over `batches` batches of each repeat, after as many as may have been read ahead."""
    load, speeds, costs = os.getloadavg()[0], [], []
    for repeat in range(arguments.repeats):
        with make(repeat) as batches:
            for _ in range(_settle(workers)):
                next(batches)
            started, cpu = time.perf_counter(), time.process_time()
            tokens = sum(text(next(batches)) for _ in range(arguments.batches))
            speeds.append(tokens / (time.perf_counter() - started))
            costs.append((time.process_time() - cpu) / tokens * 1e9)
    row = {
        "workers": workers,
        "tokens_per_second": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "load": load,
    }
    return row if workers else row | {"cpu_ns": statistics.median(costs)}


def _settle(workers: int) -> int:
    return 4 * max(1, workers)


def _stages(plan: BatchPlan, steps: range) -> dict[str, float]:
    """Nanoseconds a token of planning, reading and assembling the batches of these steps, one after the other."""
    shards, started = list(plan.train.values()), time.perf_counter()
    planned = [
        [(source, plan.row_plans[source].row(row)) for source, row in plan.rows(step)]
        for step in steps
    ]
    after_plan = time.perf_counter()
    texts = [
        [[shards[source].read(*span) for span in spans] for source, spans in rows]
        for rows in planned
    ]
    after_read = time.perf_counter()
    for rows, read in zip(planned, texts):
        unfold(
            fold([(_Read(iter(row)), spans) for (_, spans), row in zip(rows, read)], plan.seq_len)
        )
    tokens = len(steps) * plan.batch * plan.seq_len / 1e9
    times = {
        "plan_ns": after_plan - started,
        "read_ns": after_read - after_plan,
        "assemble_ns": time.perf_counter() - after_read,
    }
    return {name: seconds / tokens for name, seconds in times.items()}


class _Read:
    """A ShardSet whose spans are in memory, in the order in which they are asked for."""

    def __init__(self, texts: Iterator[np.ndarray]):
        self._texts = texts

    def read(self, doc: int, offset: int, count: int) -> np.ndarray:
        return next(self._texts)


def _text_of_peer(batch: Mapping[str, np.ndarray]) -> int:
    return int((batch["tokens_segment_ids"] > 0).sum())


def _sources(arguments: argparse.Namespace, folder: Path) -> tuple[str, dict[str, ShardSet]]:
    config = getattr(arguments, "config", None)
    if not arguments.made_up and (config is None or not config.data.sources):
        root = Path(os.environ.get("SLMJAX_SHARED", "../shared/data")).expanduser() / "pretrain"
        config = (
            configs.freeze(configs.load_recipe(str(RECIPE)))
            if RECIPE.is_file() and root.is_dir()
            else None
        )
    if arguments.made_up or config is None:
        return "made up", {name: _made_up(folder, name, *shape) for name, shape in MADE_UP.items()}
    return "prepared", prepare(config.data, seed=config.seed, cache=folder).train


def _made_up(folder: Path, name: str, median: float, spread: float, documents: int) -> ShardSet:
    rng = np.random.default_rng(list(name.encode()))
    lengths = np.exp(rng.normal(np.log(median), spread, documents)).astype(int) + 1
    with ShardWriter(
        folder, f"made-up/{name}.arrayrecord", name, vocab_size=VOCAB_SIZE, eot=0
    ) as writer:
        for line, length in enumerate(lengths.tolist()):
            writer.add(rng.integers(1, VOCAB_SIZE, length).tolist(), 4 * length, line, line)
    return ShardSet(writer.shards, [str(folder)] * len(writer.shards), vocab_size=VOCAB_SIZE)


@contextlib.contextmanager
def _cores(count: int) -> Iterator[None]:
    """Keep this process, and those that it starts, on `count` cores."""
    if not count or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
