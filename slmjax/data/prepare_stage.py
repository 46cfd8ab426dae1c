"""The stage `prepare`, and the same step inside training: from a config to prepared text.

It needs no accelerator.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from slmjax.config import Config, DataConfig, TrainConfig, parent_folders
from slmjax.config.run_phases import run_phases
from slmjax.data import embedded_text
from slmjax.data.batch_plan import BatchPlan
from slmjax.data.phased_plan import PhasedPlan, plan_of_phases
from slmjax.data.phases import check_phases
from slmjax.data.prepare import prepare
from slmjax.data.prepared import Prepared, preparation_summary
from slmjax.data.shard_part import ShardPart
from slmjax.errors import HOW_TO_RESTORE, UserError
from slmjax.readable import said_if_long
from slmjax.text.sources import parse_sources
from slmjax.text.tokenizer import EOT, SPECIAL, load_tokenizer

# Seed of every preparation. It is not config.seed: runs with different seeds share text, tokenizer
# and held-out documents, so that they can be compared.
SEED = 0


def run_prepare(
    config: Config,
    workdir: str,
    *,
    init_from: str = "",
    command: str = "",
    process: int = 0,
    processes: int = 1,
) -> None:
    """Prepare config.data and print a table of the result.

    Args:
      workdir, init_from: see `prepared_text`.
      command: not used; every stage is called with it.
      process, processes: number of this process among those that share the work, and how many.
    """
    prepared = prepared_text(
        config.data, workdir, init_from=init_from, process=process, processes=processes
    )
    # One table for all hosts.
    if process == 0:
        print(preparation_summary(prepared))


def prepared_text(
    data: DataConfig, workdir: str, *, init_from: str = "", process: int = 0, processes: int = 1
) -> Prepared:
    """Return the prepared text of config.data: the embedded textbook where it names no sources.

    Args:
      workdir: the run's. Without config.data.cache, the cache is the folder `prepared` next to it.
      init_from: a work directory (the first of several) whose tokenizer is used where
        config.data.tokenizer is empty.
      process, processes: number of this process and how many there are. They share the work
        through a common file system.
    Raises: UserError for a tokenizer that is not there, invalid phases, and what `prepare` refuses.
    """
    _check_tokenizer(data.tokenizer)
    cache = data.cache or str(epath.Path(workdir).parent / "prepared")
    if not data.cache and "://" in workdir:
        # Shards cannot be read from a bucket. Each host prepares all of the text on its own disk,
        # and all get the same result.
        cache, process, processes = "runs/prepared", 0, 1
    # Only the first process prints messages.
    is_first = process == 0
    textbook_folder = Path(cache).expanduser() / "textbook"
    if not data.sources:
        with said_if_long("writing the embedded textbook", active=is_first):
            sources = embedded_text.embedded_sources(textbook_folder, SEED)
        data = dataclasses.replace(data, sources=sources)
    if init_from and not data.tokenizer:
        data = dataclasses.replace(data, tokenizer=_tokenizer_of(init_from))
    # Checked now, so that a mistake in the phases does not show after an hour of preparing.
    sources = parse_sources(data.sources)
    weights = {source.name: source.weight for source in sources}
    check_phases(data.phases, list(weights), weights)
    sources = embedded_text.with_files(sources, textbook_folder, SEED)
    data = dataclasses.replace(data, sources={source.name: source for source in sources})
    # Only a tokenizer that is trained gets these special tokens; a given one has its own.
    special = tuple(SPECIAL)
    if not data.tokenizer:
        special = special_tokens(workdir)
    with said_if_long("preparing the text; it is kept for later runs", active=is_first):
        return prepare(
            data,
            seed=SEED,
            cache=cache,
            special=special,
            process_index=process,
            process_count=processes,
        )


def special_tokens(workdir: str) -> tuple[str, ...]:
    """Return the special tokens of the tokenizer that a run trains.

    A new run gets all of SPECIAL. A run that goes on keeps those that it began with, which was EOT
    alone before ids were reserved for the others.
    """
    try:
        ids = load_tokenizer(f"{workdir}/tokenizer.json").special
    except UserError:
        # The run is new, or its file is damaged and will be written again.
        return tuple(SPECIAL)
    names = tuple(sorted(ids, key=ids.get))
    # A tokenizer with another first special token was not trained here.
    return names if names[0] == EOT else tuple(SPECIAL)


def batch_plan(
    data: DataConfig,
    train: TrainConfig,
    prepared: Prepared,
    *,
    seed: int,
    cuts: tuple[int, int] | None = None,
    make: Callable[..., BatchPlan] = BatchPlan,
) -> BatchPlan | PhasedPlan:
    """Return the batches of every step of a run.

    A source of weight 0 has no rows: only its held-out part is used.

    Args:
      seed: of the order of documents and sources.
      cuts: see BatchPlan.
      make: BatchPlan, or a subclass of it.
    Raises: UserError where every source has the weight 0, and what BatchPlan raises.
    """
    settings = plan_settings(data, train, prepared, seed=seed, cuts=cuts)
    return plan_of_phases(make, settings, run_phases(data, train))


def plan_settings(
    data: DataConfig,
    train: TrainConfig,
    prepared: Prepared,
    *,
    seed: int,
    cuts: tuple[int, int] | None,
) -> dict[str, Any]:
    """Return the arguments of a BatchPlan in a run whose batches have one shape."""
    sources = []
    all_sources = parse_sources(data.sources)
    for source in all_sources:
        # With phases, these say when a source has which weight.
        if source.weight != 0 or data.phases:
            sources.append(source)
    if all_sources and not sources:
        raise UserError(
            "data.sources: every source has weight 0, so there is nothing to train on; give one a "
            "weight above 0."
        )
    # The embedded textbook has no entries in the config.
    names = [source.name for source in sources] or list(prepared.train)
    train_shards: dict[str, Any] = {name: prepared.train[name] for name in names}
    for source in sources:
        if source.fraction < 1:
            train_shards[source.name] = ShardPart(prepared.train[source.name], source.fraction)
    return {
        "train": train_shards,
        "seq_len": data.seq_len,
        "batch": train.batch,
        "steps": train.steps,
        "seed": seed,
        "packing": data.packing,
        "phases": data.phases,
        "weights": {source.name: source.weight for source in sources},
        "max_epochs": {source.name: source.max_epochs for source in sources},
        "scores": {source.name: source.score for source in sources},
        "cuts": cuts,
    }


def facts(prepared: Prepared, epochs: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Return {source: {name of a fact: value}} for a run's report.

    Args:
      epochs: {source: how often the run reads it}.
    """
    facts_of_sources = {}
    for name, entry in prepared.manifest["sources"].items():
        train = prepared.train[name]
        facts_of_sources[name] = {
            "documents": len(train),
            "tokens": int(train.tokens),
            "epochs": epochs.get(name, 0.0),
            "bytes": int(train.bytes.sum()),
            "bad_records": sum(entry["faults"].values()),
            "heldout_documents": len(prepared.heldout[name]),
            "removed_as_duplicates_share": float(entry["removed"]["bytes_share"]),
        }
        # Running text has no questions, so a report on text alone has no such column.
        if "heldout_elsewhere" in entry:
            facts_of_sources[name]["heldout_elsewhere"] = entry["heldout_elsewhere"]
    return facts_of_sources


def _check_tokenizer(path: str) -> None:
    """Raise a UserError for the path of a local file that does not exist."""
    if not path or path.startswith(("gs://", "hf://")):
        return
    if not Path(path).expanduser().exists():
        raise UserError(f"config.data.tokenizer: there is no file '{path}'.")


def _tokenizer_of(init_from: str) -> str:
    """Return the path of the tokenizer in a run's work directory.

    Raises: UserError where it has none.
    """
    init_from = parent_folders(init_from)[0]
    path = epath.Path(init_from) / "tokenizer.json"
    if not path.exists():
        raise UserError(
            f"--init_from={init_from}: there is no tokenizer.json; expected the work directory of "
            f"a training run. If somebody has deleted it: {HOW_TO_RESTORE}."
        )
    return str(path)
