"""The mixture study: small models on different mixtures of the sources, and what follows from them.

Where config.mixture.mixtures names mixtures, they are compared. Where it names none, mixtures are
drawn, a model is trained on each, and the mixture with the lowest predicted loss is sought; it is
written to weights.json, which a recipe reads.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float

from slmjax.config import Config
from slmjax.data.shard_part import is_kept
from slmjax.errors import UserError
from slmjax.record.comparison import Scores, read_scores
from slmjax.studies.mixture_choice import BOOTSTRAPS, MixtureChoice, choose_mixture
from slmjax.studies.mixture_comparison import compare_mixtures, comparison_table
from slmjax.studies.mixture_figure import comparison_figure, search_figure
from slmjax.studies.mixture_file import write_weights
from slmjax.studies.mixture_fit import Proxies
from slmjax.studies.mixture_plan import MixturePlan, plan_mixtures, proxy_runs
from slmjax.studies.study_runs import StudyRuns, StudyStopped
from slmjax.studies.study_table import StudyTable
from slmjax.studies.text_study import (
    begin_text_study,
    end_text_study,
    heldout_identity,
    source_bits,
)

# Documents are halved by another hash than the one that chooses a part of a source.
HALF_SALT = np.uint64(0x9E6C63D0876A9A35)


def run_mixture(config: Config, workdir: str, *, init_from: str = "", command: str = "") -> int:
    """Train a model on each mixture, then compare them or seek the best one.

    Returns: the exit status.
    Raises: UserError for invalid settings, and where the folder has runs of other settings.
    """
    config, prepared = begin_text_study(config, workdir, init_from)
    plan = plan_mixtures(config, prepared)
    folder = epath.Path(workdir)
    study = StudyRuns(
        folder,
        config,
        identity=prepared.fingerprint,
        vocab_size=prepared.tokenizer.vocab_size,
        command=command,
    )
    try:
        results = study.train(proxy_runs(config, plan))
    except StudyStopped as stopped:
        print("Saved and left as asked; the same command goes on from here.")
        return stopped.status
    diverged = [name for name, result in results.items() if result["diverged"]]
    if diverged:
        raise UserError(
            f"{len(diverged)} of {len(results)} runs diverged ({', '.join(diverged[:3])}); use a "
            "smaller config.train.lr and another --workdir."
        )
    scores = {}
    for name in results:
        heldout = read_scores(study.scores_file(name).read_bytes())
        scores[name] = chosen_documents(heldout, plan.basket, config.mixture.documents)
    check_same_documents(scores)
    figures = []
    if config.mixture.mixtures:
        comparison = compare_mixtures(plan, scores, config.mixture.seeds)
        tables = [comparison_table(comparison)]
        if len(comparison.mixtures) > 1:
            figures.append(comparison_figure(comparison))
        sentences = [
            "This compares the mixtures that were tried. It is not an optimum over others."
        ]
    else:
        losses = mixture_losses(plan, scores, config.mixture.seeds)
        mixtures = np.stack(list(plan.mixtures.values()))
        proxies = Proxies(plan.domains, mixtures, plan.basket, losses)
        choice = choose_mixture(
            proxies, plan.limits, plan.natural, bootstraps=BOOTSTRAPS, seed=config.seed
        )
        file = folder / "weights.json"
        write_weights(file, choice, proxies, plan.limits, plan.natural)
        tables = [weights_table(plan, choice), regressor_table(choice)]
        sentences = [f"{choice.sentence}.", f"Weights: {file}"]
        figures.append(search_figure(choice, losses.mean(1)))
    end_text_study(study, tables, sentences, figures)
    return 0


def chosen_documents(scores: Scores, basket: Sequence[str], documents: str) -> Scores:
    """Return the scores of the basket's sources, on one half of their documents or on all.

    Args:
      documents: "first half", "second half" or "all". A document belongs to the same half in every
        study.
    Raises: UserError where a source has no document in that half.
    """
    chosen: Scores = {}
    for source in basket:
        columns = scores[source]
        in_first_half = is_kept(columns["keys"] + HALF_SALT, 0.5)
        kept = {"first half": in_first_half, "second half": ~in_first_half}.get(
            documents, np.ones_like(in_first_half)
        )
        if not kept.any():
            raise UserError(
                f"config.mixture.documents: '{source}' has no held-out document in the "
                f"{documents}; hold more out, or set it to all."
            )
        chosen[source] = {name: column[kept] for name, column in columns.items()}
    return chosen


def check_same_documents(scores: Mapping[str, Scores]) -> None:
    """Raises: UserError where a run was scored on other documents than the first run."""
    identities = {}
    for name, sources in scores.items():
        identities[name] = heldout_identity([columns["keys"] for columns in sources.values()])
    first = next(iter(identities))
    for name, identity in identities.items():
        if identity != identities[first]:
            raise UserError(
                f"the run '{name}' was scored on {identity}, and '{first}' on "
                f"{identities[first]}: config.eval.tokens must be the same for all; use another "
                "--workdir."
            )


def mixture_losses(
    plan: MixturePlan, scores: Mapping[str, Scores], seeds: int
) -> Float[np.ndarray, "mixtures sources"]:
    """Return bits per byte of each mixture and source of the basket, mean over seeds."""
    rows = []
    for name in plan.mixtures:
        of_seeds = []
        for seed in range(seeds):
            columns = scores[f"{name}-{seed}"]
            of_seeds.append([source_bits(columns[source]) for source in plan.basket])
        rows.append(np.mean(of_seeds, 0))
    return np.array(rows)


def weights_table(plan: MixturePlan, choice: MixtureChoice) -> StudyTable:
    """Return a row for each domain: its natural and its chosen share, and how often it is read."""
    rows = []
    for number, domain in enumerate(plan.domains):
        share = choice.mixture[number]
        interval = "-"
        if choice.low is not None:
            interval = f"{choice.low[number]:.3f} to {choice.high[number]:.3f}"
        epochs = share * plan.budget / plan.tokens[number]
        natural = f"{plan.natural[number]:.3f}"
        rows.append([domain, natural, f"{share:.3f}", interval, f"{epochs:.2f}"])
    head = ["domain", "natural", "chosen", "95 %", "epochs"]
    return StudyTable("Weights", head, rows)


def regressor_table(choice: MixtureChoice) -> StudyTable:
    """Return the leave-one-out error of every regressor and target."""
    rows = []
    for score in choice.scores:
        rank = "-" if score["rank"] is None else f"{score['rank']:.3f}"
        cells = [f"{score['error']:.4f}", rank, f"{score['share']:.2f}"]
        rows.append([score["regressor"], score["target"], *cells])
    head = ["regressor", "target", "error", "rank correlation", "share"]
    return StudyTable("Leave-one-out on the proxies", head, rows)
