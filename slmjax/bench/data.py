"""How fast the launcher's loader reads packed batches from six mixed sources, in tokens a second.

python -m slmjax.bench data

Where $SLMJAX_SHARED (../shared/data unless set) has pretrain/, the sources are the six domains of
configs/30m.py, prepared as a run prepares them. Another --config with data.sources brings its own.
Otherwise six made-up sources take their place, each with documents of another usual length. A batch
is all that a step gets: tokens, targets, segments, positions and weights. The process and its
workers use two cores unless --cores says otherwise. Each repeat reads batches of its own.
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
# Lengths of made-up documents are log-normal: median in tokens, spread of the logarithm; then the
# number of documents. They are near the six domains, and fewer.
MADE_UP = {
    "books": (4000, 0.8, 700),
    "textbooks": (3500, 0.8, 400),
    "math": (2500, 0.9, 600),
    "docs": (1000, 1.1, 1200),
    "code": (130, 0.5, 3500),
    "reference": (800, 0.8, 300),
}


class _Reading(NamedTuple):
    """How long to read."""

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
    (rows of it), workers, tokens_per_second (median; padding is not counted) with the slowest and
    fastest repeat, and load, the machine's load average before: 1 or more means that other work
    shared the machine. Our rows have max_segments. Where no worker reads, rows have cpu_ns, the
    processor time a token; ours then also have its parts, see loader_stages.

    Raises: UserError for numbers out of range and for text that cannot be prepared.
    """
    least = min(arguments.tokens, arguments.batches, arguments.repeats)
    if least < 1 or arguments.cores < 0:
        raise UserError("--tokens, --batches and --repeats are 1 or more, and --cores 0 or more.")
    reading = _Reading(arguments.batches, arguments.repeats)
    rows = []
    with contextlib.ExitStack() as stack:
        folder = arguments.cache or stack.enter_context(tempfile.TemporaryDirectory())
        kind, train = _sources(arguments, Path(folder))
        # After the text is prepared, which may use all cores.
        stack.enter_context(_cores(arguments.cores))
        for seq_len in arguments.seq_lens:
            batch = max(1, arguments.tokens // seq_len)
            # More steps than are ever read.
            plan = BatchPlan(train, seq_len=seq_len, batch=batch, steps=10**6, seed=0)
            shape = {"sources": kind, "seq_len": seq_len, "batch": batch}
            for workers in arguments.workers:
                columns = _our_columns(plan, workers, reading)
                rows.append({"loader": "slmjax", **shape, **columns})
            if arguments.no_peers:
                continue
            peers = data_peers.packers(train, seq_len=seq_len, batch=batch)
            for name, make in peers.items():
                columns = _timed(make, _text_of_peer, 0, reading)
                rows.append({"loader": name, **shape, **columns})
    return {"bench": "data", "rows": rows}


def _our_columns(plan: BatchPlan, workers: int, reading: _Reading) -> dict[str, Any]:
    """Return the columns of the launcher's loader."""
    steps = reading.batches + _read_ahead(workers)  # of one repeat

    def batches(repeat: int) -> Any:
        first = repeat * steps
        return local_batches(
            plan,
            start_step=first,
            stop_step=first + steps,
            local_rows=range(plan.batch),
            workers=workers,
        )

    def text(batch: Mapping[str, np.ndarray]) -> int:
        return int(batch["weights"].sum())  # padding has weight 0

    columns = _timed(batches, text, workers, reading)
    columns["max_segments"] = plan.max_segments
    if workers:
        return columns
    # Steps that no repeat has read: read text may still be in the page cache.
    unread = reading.repeats * steps
    repeats = []
    for first in range(unread, 2 * unread, steps):
        repeats.append(loader_stages(plan, range(first, first + steps)))
    for name in repeats[0]:
        columns[name] = statistics.median(stages[name] for stages in repeats)
    return columns


def _timed(
    make: Callable[[int], Any], text: Callable[[Any], int], workers: int, reading: _Reading
) -> dict[str, Any]:
    """Return the speed of reading.

    Args:
      make: a context manager over the batches of a repeat.
      text: number of tokens of a batch, without padding.
    """
    load, *_ = os.getloadavg()
    speeds, costs = [], []
    for repeat in range(reading.repeats):
        with make(repeat) as batches:
            # What was read before the clock starts does not count.
            for _ in range(_read_ahead(workers)):
                next(batches)
            began = time.perf_counter()
            cpu_began = time.process_time()
            tokens = sum(text(next(batches)) for _ in range(reading.batches))
            seconds = time.perf_counter() - began
            cpu_seconds = time.process_time() - cpu_began
        speeds.append(tokens / seconds)
        costs.append(cpu_seconds / tokens * 1e9)
    columns = {
        "workers": workers,
        "tokens_per_second": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "load": load,
    }
    # Of this process only: where others read, it would be a part.
    if not workers:
        columns["cpu_ns"] = statistics.median(costs)
    return columns


def _read_ahead(workers: int) -> int:
    """Return the most batches that may be ready before anyone asks for them."""
    # Twice the buffers of the loader, which hold two batches for each reader.
    return 4 * max(1, workers)


def _text_of_peer(batch: Mapping[str, np.ndarray]) -> int:
    # Grain's segments count from 1, as ours; 0 is padding.
    return int((batch["tokens_segment_ids"] > 0).sum())


def _sources(arguments: argparse.Namespace, folder: Path) -> tuple[str, dict[str, ShardSet]]:
    """Return ("prepared" or "made up", the training text of each source)."""
    config = getattr(arguments, "config", None)
    if not arguments.made_up and (config is None or not config.data.sources):
        config = _six_domains()
    if arguments.made_up or config is None:
        sources = {name: _made_up(folder, name, *shape) for name, shape in MADE_UP.items()}
        return "made up", sources
    return "prepared", prepare(config.data, seed=config.seed, cache=folder).train


def _six_domains() -> configs.Config | None:
    """Return the recipe of the six domains; None where it or its text is missing."""
    shared = os.environ.get("SLMJAX_SHARED", "../shared/data")
    text = Path(shared).expanduser() / "pretrain"
    # The installed package has no recipes.
    if not (RECIPE.is_file() and text.is_dir()):
        return None
    return configs.freeze(configs.load_recipe(str(RECIPE)))


def _made_up(folder: Path, name: str, median: float, spread: float, documents: int) -> ShardSet:
    """Write random documents of a source; for the numbers see MADE_UP."""
    # Seeded by the name, so that a source's text does not depend on the others.
    rng = np.random.default_rng(list(name.encode()))
    lengths = np.exp(rng.normal(np.log(median), spread, documents)).astype(int) + 1
    path = f"made-up/{name}.arrayrecord"
    with ShardWriter(folder, path, name, vocab_size=VOCAB_SIZE, eot=0) as writer:
        for line, length in enumerate(lengths.tolist()):
            tokens = rng.integers(1, VOCAB_SIZE, length).tolist()  # 0 ends a document
            writer.add(tokens, 4 * length, line, line)  # about 4 bytes a token, as in English
    folders = [str(folder)] * len(writer.shards)
    return ShardSet(writer.shards, folders, vocab_size=VOCAB_SIZE)


@contextlib.contextmanager
def _cores(count: int) -> Iterator[None]:
    """Keep this process, and those that it starts, on `count` cores; 0: on all."""
    # Only Linux can; elsewhere the figures are those of all cores.
    if not count or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
