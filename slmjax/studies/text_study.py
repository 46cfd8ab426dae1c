"""What studies on text share: how they begin and end, parts of sources, and scores of sources."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from slmjax.config import Config
from slmjax.data.prepare_stage import prepared_text
from slmjax.data.prepared import Prepared
from slmjax.errors import UserError, nearest
from slmjax.parallel import hosts
from slmjax.parallel.compiling import use_compile_cache
from slmjax.studies.study_report import write_study_report
from slmjax.studies.study_runs import StudyRuns
from slmjax.studies.study_table import StudyTable
from slmjax.text.sources import parse_sources


def begin_text_study(config: Config, workdir: str, init_from: str) -> tuple[Config, Prepared]:
    """Prepare the text of a study; return the config with its cache, and the text.

    Raises: UserError for --init_from, without sources, and with phases.
    """
    if init_from:
        raise UserError(f"--init_from: the stage {config.stage} trains its models from the start.")
    if not config.data.sources:
        raise UserError(
            f"config.data.sources is empty; the stage {config.stage} needs text, such as "
            "logic=textbook:logic,units=textbook:units."
        )
    if config.data.phases:
        raise UserError(
            f"config.data.phases: the stage {config.stage} sets mixture and learning rate of its "
            "runs itself; leave the phases out."
        )
    use_compile_cache()
    hosts.check_devices()
    # All runs read the text that is prepared here.
    cache = config.data.cache or str(epath.Path(workdir).parent / "prepared")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache=cache))
    return config, prepared_text(config.data, workdir)


def end_text_study(
    study: StudyRuns,
    tables: Sequence[StudyTable],
    sentences: Sequence[str],
    figures: Sequence[str] = (),
) -> None:
    """Print what a study says, and write its report."""
    for table in tables:
        print(f"\n{table.title}\n\n{table.markdown()}")
    print("\n" + "\n".join(sentences))
    print(f"Report: {write_study_report(study, tables, sentences, figures)}")


def domain_tokens(config: Config, prepared: Prepared) -> dict[str, float]:
    """Return {source: its training tokens} of those with a weight other than 0.

    Of a source with a fraction, these are the tokens of that part, on average.
    """
    tokens = {}
    for source in parse_sources(config.data.sources):
        if source.weight != 0:
            tokens[source.name] = prepared.train[source.name].tokens * source.fraction
    return tokens


def read_in_part(
    sources: Mapping[str, Any], names: Sequence[str], fraction: float, **changed: Any
) -> dict[str, Any]:
    """Return data.sources, of which the named ones are read in part.

    Args:
      fraction: of what each of them reads without it.
      changed: more fields of the named ones.
    """
    parts = dict(sources)
    for name in names:
        entry = sources[name]
        fields = dict(entry) if isinstance(entry, Mapping) else {"path": entry}
        parts[name] = {**fields, **changed, "fraction": fraction * fields.get("fraction", 1.0)}
    return parts


def scored_sources(field: str, basket: Sequence[str], prepared: Prepared) -> tuple[str, ...]:
    """Return the sources whose held-out text is scored: the basket, or all that have some.

    Args:
      field: the config field of the basket, for messages.
    Raises: UserError without held-out text, or for a source of the basket without any.
    """
    with_text = [name for name, shards in prepared.heldout.items() if len(shards)]
    if not with_text:
        raise UserError("config.data.heldout: the study needs held-out text; found none.")
    for name in basket:
        if name not in with_text:
            raise UserError(
                f"{field}: no held-out text of '{name}'; there is some of {', '.join(with_text)}."
                f"{nearest(name, with_text)}"
            )
    return tuple(basket or with_text)


def source_bits(columns: Mapping[str, np.ndarray]) -> float:
    """Return bits per byte of a source's documents, from their columns of heldout.npz."""
    return float(columns["nats"].sum() / columns["bytes"].sum() / np.log(2))


def heldout_identity(keys: Sequence[np.ndarray]) -> str:
    """Return a short text that is the same for the same held-out documents."""
    together = np.concatenate(keys)
    return f"{len(together)} documents, {int(np.bitwise_xor.reduce(together)):016x}"
