"""The stage `prepare`, and the same step inside training: from a config to prepared text. Needs no accelerator."""

import dataclasses
from pathlib import Path

from etils import epath

from slmjax.config import Config, DataConfig
from slmjax.data.loader import BatchPlan
from slmjax.data.phases import check_phases
from slmjax.data.prepare import Prepared, preparation_summary, prepare
from slmjax.errors import ANEW, UserError
from slmjax.readable import said_if_long
from slmjax.text.sources import parse_sources
from slmjax.text.tokenizer import EOT, SPECIAL, load_tokenizer
from slmjax.textbook import passages as textbook

# What the embedded textbook writes: a few passes of a small model over it in a minute and a half on two cores.
TRAIN_PER_KIND = 4000
HELDOUT_PER_KIND = 300
SEED = 0  # of the text; runs that differ in config.seed share text, tokenizer and held-out documents, so that they can be compared


def run_prepare(
    config: Config,
    workdir: str,
    *,
    init_from: str = "",
    command: str = "",
    process: int = 0,
    processes: int = 1,
) -> None:
    """Prepare config.data and say what came out; `init_from` gives the tokenizer, `process` is this one of `processes` that share it."""
    prepared = prepared_text(
        config.data, workdir, init_from=init_from, process=process, processes=processes
    )
    if process == 0:
        print(preparation_summary(prepared))


def prepared_text(
    data: DataConfig, workdir: str, *, init_from: str = "", process: int = 0, processes: int = 1
) -> Prepared:
    """Return the prepared text of config.data: the embedded textbook where it names no sources.

    Args:
      workdir: `prepared` beside it is the cache unless config.data.cache names one.
      init_from: a work directory whose tokenizer is used where config.data.tokenizer is empty.
      process, processes: of several hosts, which share the work through a common file system.
    """
    _check_tokenizer(data.tokenizer)
    cache = data.cache or str(epath.Path(workdir).parent / "prepared")
    if not data.cache and "://" in workdir:
        # Shards are read from a disk of the host: each prepares all of the text by itself, and all get the same.
        cache, process, processes = "runs/prepared", 0, 1
    if not data.sources:
        folder = epath.Path(cache) / "textbook"
        with said_if_long("writing the embedded textbook", active=process == 0):
            counts = {"train_per_kind": TRAIN_PER_KIND, "heldout_per_kind": HELDOUT_PER_KIND}
            data = dataclasses.replace(
                data, sources=textbook.write_corpus(folder, seed=SEED, **counts)
            )
    if init_from and not data.tokenizer:
        tokenizer = epath.Path(init_from) / "tokenizer.json"
        if not tokenizer.exists():
            raise UserError(
                f"--init_from={init_from}: there is no tokenizer.json; expected the work directory of a "
                f"training run. If somebody has deleted it: {ANEW}."
            )
        data = dataclasses.replace(data, tokenizer=str(tokenizer))
    check_phases(data.phases, [source.name for source in parse_sources(data.sources)])
    with said_if_long("preparing the text; it is kept for later runs", active=process == 0):
        host = {"process_index": process, "process_count": processes}
        special = tuple(SPECIAL) if data.tokenizer else special_tokens(workdir)
        return prepare(data, seed=SEED, cache=cache, special=special, **host)


def special_tokens(workdir: str) -> tuple[str, ...]:
    """Return the special tokens of the tokenizer that a run trains: those that it began with.

    A new run has all of SPECIAL. A run that began before ids were reserved has the end of text only.
    """
    try:
        ids = load_tokenizer(f"{workdir}/tokenizer.json").special
    except UserError:  # a new run, or a file that the run writes anew
        return tuple(SPECIAL)
    names = tuple(sorted(ids, key=ids.get))
    return names if names[0] == EOT else tuple(SPECIAL)  # another first one: not trained here


def _check_tokenizer(path: str) -> None:
    """Raises: UserError for a file of this machine that is not there."""
    if path and not path.startswith(("gs://", "hf://")) and not Path(path).expanduser().exists():
        raise UserError(f"config.data.tokenizer: there is no file '{path}'.")


def batch_plan(
    config: Config, prepared: Prepared, cuts: tuple[int, int] | None = None
) -> BatchPlan:
    """Return the batches of every step of a run; `cuts`: see BatchPlan."""
    sources = parse_sources(config.data.sources)
    weights, max_epochs, scores = (
        {s.name: getattr(s, field) for s in sources} for field in ("weight", "max_epochs", "score")
    )
    return BatchPlan(
        prepared.train,
        seq_len=config.data.seq_len,
        batch=config.train.batch,
        steps=config.train.steps,
        seed=config.seed,
        packing=config.data.packing,
        phases=config.data.phases,
        weights=weights,
        max_epochs=max_epochs,
        scores=scores,
        cuts=cuts,
    )


def facts(prepared: Prepared, epochs: dict[str, float]) -> dict[str, dict]:
    """What a report says of each source; epochs: how often the run reads each."""
    out = {}
    for name, entry in prepared.manifest["sources"].items():
        train = prepared.train[name]
        out[name] = {
            "documents": len(train),
            "tokens": int(train.tokens),
            "epochs": epochs[name],
            "bytes": int(train.bytes.sum()),
            "bad_records": sum(entry["faults"].values()),
            "heldout_documents": len(prepared.heldout[name]),
            "removed_as_duplicates_share": float(entry["removed"]["bytes_share"]),
        }
    return out
