"""How fast the launcher's loader reads packed batches from six mixed sources, in tokens a second.

python -m slmjax.bench data

Where $SLMJAX_SHARED (../shared/data unless set) has pretrain/, the sources are the six domains of
configs/30m.py, prepared as a run prepares them. Another --config with data.sources brings its own.
Otherwise six made-up sources take their place, which differ in the length of their documents. A
batch is all that a step gets: tokens, targets, segments, positions and weights. The process and its
workers use two cores unless --cores says otherwise. No two repeats read the same batches.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slmjax import config as configs
from slmjax.bench import shell
from slmjax.bench.loader_stages import loader_stages
from slmjax.bench.peers import loaders as data_peers
from slmjax.data.loader import BatchPlan, local_batches
from slmjax.data.prepare import prepare
from slmjax.data.shards import ShardSet, ShardWriter
from slmjax.errors import UserError

RECIPE = Path(__file__).parents[2] / "configs" / "30m.py"
VOCAB_SIZE = 16_384  # of made-up text
# Made-up sources: (median length of a document in tokens, standard deviation of its logarithm,
# number of documents). Lengths are log-normal. They are close to those of the six domains, which
# have more documents.
MADE_UP = {
    "books": (4000, 0.8, 700),
    "textbooks": (3500, 0.8, 400),
    "math": (2500, 0.9, 600),
    "docs": (1000, 1.1, 1200),
    "code": (130, 0.5, 3500),
    "reference": (800, 0.8, 300),
}


class _Reading(NamedTuple):
    """How much is read."""

    batches: int  # of one repeat
    repeats: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench data`."""
    add = parser.add_argument
    add(
        "--seq-lens",
        type=shell.numbers(1),
        default="1024,2048",
        help="tokens of a row, comma-separated",
    )
    add(
        "--workers",
        type=shell.numbers(0),
        default="0,1,2",
        help="processes that read, comma-separated; 0: a thread instead",
    )
    add("--tokens", type=int, default=65_536, help="tokens of a batch")
    add("--batches", type=int, default=100, help="batches of one repeat")
    add("--repeats", type=int, default=5, help="of which the median counts")
    add("--cores", type=int, default=2, help="cores that may be used (Linux); 0: all")
    add(
        "--cache",
        default="",
        help="folder for prepared text that is kept; a temporary one unless set",
    )
    add(
        "--made-up",
        action="store_true",
        help="made-up sources although the text of configs/30m.py is at hand",
    )
    add("--no-peers", action="store_true", help="without Grain's own packers")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the loader and its peers; returns {"bench": "data", "rows": [...]}.

    A row has loader ("slmjax" or a peer's name), sources ("prepared" or "made up"), seq_len, batch
    (rows of a batch), workers, tokens_per_second (median; padding is not counted), slowest and
    fastest (the same of single repeats), and load, the machine's load average beforehand: 1 or more
    means that other work shared the machine. Our rows have max_segments. Without workers, rows have
    cpu_ns, the processor time a token; ours then also have its parts, see loader_stages.

    Raises: UserError for numbers out of range and for text that cannot be prepared.
    """
    least = min(arguments.tokens, arguments.batches, arguments.repeats)
    if least < 1 or arguments.cores < 0:
        raise UserError("--tokens, --batches and --repeats are 1 or more, and --cores 0 or more.")
    reading = _Reading(arguments.batches, arguments.repeats)
    rows = []
    with contextlib.ExitStack() as stack:
        folder = arguments.cache or stack.enter_context(tempfile.TemporaryDirectory())
        sources_name, train = _sources(arguments, Path(folder))
        # Only now, as preparing the text may use all cores.
        stack.enter_context(_on_cores(arguments.cores))
        for seq_len in arguments.seq_lens:
            batch = max(1, arguments.tokens // seq_len)
            # 10**6 are more steps than are ever read.
            plan = BatchPlan(train, seq_len=seq_len, batch=batch, steps=10**6, seed=0)
            case = {"sources": sources_name, "seq_len": seq_len, "batch": batch}
            for workers in arguments.workers:
                columns = _our_columns(plan, workers, reading)
                rows.append({"loader": "slmjax", **case, **columns})
            if arguments.no_peers:
                continue
            peers = data_peers.packers(train, seq_len=seq_len, batch=batch)
            for name, open_batches in peers.items():
                columns = _timed(open_batches, _count_peer_tokens, 0, reading)
                rows.append({"loader": name, **case, **columns})
    return {"bench": "data", "rows": rows}


def _our_columns(plan: BatchPlan, workers: int, reading: _Reading) -> dict[str, Any]:
    """Return the columns of the launcher's loader: its speed and, without workers, its parts."""
    steps = reading.batches + _read_ahead(workers)  # of one repeat

    def open_batches(repeat: int) -> Any:
        first = repeat * steps
        return local_batches(
            plan,
            start_step=first,
            stop_step=first + steps,
            local_rows=range(plan.batch),
            workers=workers,
        )

    def count_tokens(batch: Mapping[str, np.ndarray]) -> int:
        return int(batch["weights"].sum())  # padding has weight 0

    columns = _timed(open_batches, count_tokens, workers, reading)
    columns["max_segments"] = plan.max_segments
    if workers:
        return columns
    # Other steps than above: text that was read there may still be in the page cache.
    first_unread = reading.repeats * steps
    stages_of_repeats = []
    for repeat in range(reading.repeats):
        first = first_unread + repeat * steps
        stages_of_repeats.append(loader_stages(plan, range(first, first + steps)))
    for name in stages_of_repeats[0]:
        columns[name] = statistics.median(stages[name] for stages in stages_of_repeats)
    return columns


def _timed(
    open_batches: Callable[[int], Any],
    count_tokens: Callable[[Any], int],
    workers: int,
    reading: _Reading,
) -> dict[str, Any]:
    """Read batches and return the columns of speed.

    Args:
      open_batches: from the number of a repeat to a context manager over an iterator of batches.
      count_tokens: from a batch to the number of its tokens, without padding.
    """
    load, *_ = os.getloadavg()
    speeds, cpu_ns = [], []  # of each repeat
    for repeat in range(reading.repeats):
        with open_batches(repeat) as batches:
            # Batches that may be ready before the clock starts do not count.
            for _ in range(_read_ahead(workers)):
                next(batches)
            began = time.perf_counter()
            cpu_began = time.process_time()
            tokens = sum(count_tokens(next(batches)) for _ in range(reading.batches))
            seconds = time.perf_counter() - began
            cpu_seconds = time.process_time() - cpu_began
        speeds.append(tokens / seconds)
        cpu_ns.append(cpu_seconds / tokens * 1e9)
    columns = {
        "workers": workers,
        "tokens_per_second": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "load": load,
    }
    # Processor time is that of this process, and with workers others do most of the reading.
    if not workers:
        columns["cpu_ns"] = statistics.median(cpu_ns)
    return columns


def _read_ahead(workers: int) -> int:
    """Return the most batches that may be ready before anyone asks for them."""
    # The loader's buffers hold two batches for each reader; twice as many, to be safe.
    return 4 * max(1, workers)


def _count_peer_tokens(batch: Mapping[str, np.ndarray]) -> int:
    # Grain's segments count from 1, as ours; 0 is padding.
    return int((batch["tokens_segment_ids"] > 0).sum())


def _sources(arguments: argparse.Namespace, folder: Path) -> tuple[str, dict[str, ShardSet]]:
    """Return ("prepared" or "made up", the training text of each source)."""
    if not arguments.made_up:
        # None if `run` is called without a recipe, as by its tests.
        config = getattr(arguments, "config", None)
        if config is None or not config.data.sources:
            config = _six_domains()
        if config is not None:
            return "prepared", prepare(config.data, seed=config.seed, cache=folder).train
    sources = {name: _made_up(folder, name, *shape) for name, shape in MADE_UP.items()}
    return "made up", sources


def _six_domains() -> configs.Config | None:
    """Return the recipe of the six domains; None where it or its text is missing."""
    shared = os.environ.get("SLMJAX_SHARED", "../shared/data")
    text = Path(shared).expanduser() / "pretrain"
    # The installed package has no recipes.
    if not (RECIPE.is_file() and text.is_dir()):
        return None
    return configs.freeze(configs.load_recipe(str(RECIPE)))


def _made_up(folder: Path, name: str, median: float, spread: float, documents: int) -> ShardSet:
    """Write random documents of a source and return them; for the numbers see MADE_UP."""
    # Seeded by the name, so that a source's text does not depend on the others.
    rng = np.random.default_rng(list(name.encode()))
    log_lengths = rng.normal(np.log(median), spread, documents)
    lengths = np.exp(log_lengths).astype(int) + 1
    path = f"made-up/{name}.arrayrecord"
    with ShardWriter(folder, path, name, vocab_size=VOCAB_SIZE, eot=0) as writer:
        for line, length in enumerate(lengths.tolist()):
            tokens = rng.integers(1, VOCAB_SIZE, length).tolist()  # 0 ends a document
            size = 4 * length  # bytes; about 4 a token, as in English
            writer.add(tokens, size, line, line)
    folders = [str(folder)] * len(writer.shards)
    return ShardSet(writer.shards, folders, vocab_size=VOCAB_SIZE)


@contextlib.contextmanager
def _on_cores(count: int) -> Iterator[None]:
    """Keep this process, and those that it starts, on `count` cores; 0: on all."""
    # Only Linux can do this; elsewhere the figures are those of all cores.
    if not count or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
