"""How much of each evaluation item the training text holds, and figures by that share.

Two measures. `copied` is the decontaminator's: the largest share of an item's words that one
document holds in order and in one place. `familiar` is the share of an item's words that are in
runs of five words which the training text holds anywhere: it also tells items apart of which no
document holds a copy.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from slmjax.curate.decontaminate import EvalIndex, build_index
from slmjax.curate.eval_items import EvalSets, read_passages, words_and_numbers
from slmjax.curate.eval_runs import LEAST, RUN
from slmjax.curate.normalise import normalise
from slmjax.curate.whole_records import searched_texts
from slmjax.data.prepared import Prepared
from slmjax.errors import UserError
from slmjax.text.hashing import Matcher, hash_runs
from slmjax.text.readers import read_documents
from slmjax.text.records import TEXT, Fault, Source
from slmjax.text.source_files import list_files

# Fields of an item in two common formats: multiple choice, and a text with its continuation.
CHOICES = ("query", "choices")
CONTINUED = ("context", "continuation")
# Evaluation sets: (file in the shared folder, without ENDING; fields whose text makes an item).
EVALUATION_SETS = {
    "gsm8k": ("gsm8k/test", ("question", "answer")),
    "gsm_symbolic": ("gsm_symbolic/templates", ("question", "answer")),
    "math": ("evals/math", ("context", "chain_of_thought")),
    "human_eval": ("evals/human_eval", ("prompt", "canonical_solution")),
    "arc_easy": ("evals/arc_easy", CHOICES),
    "arc_challenge": ("evals/arc_challenge", CHOICES),
    "piqa": ("evals/piqa", CHOICES),
    "copa": ("evals/copa", CHOICES),
    "openbook_qa": ("evals/openbook_qa", CHOICES),
    "boolq": ("evals/boolq", ("query",)),
    "winogrande": ("evals/winogrande", ("context_options", "continuation")),
    "lambada_openai": ("evals/lambada_openai", CONTINUED),
    "triviaqa_sm_sub": ("evals/triviaqa_sm_sub", ("context", "answer")),
    "bigbench_operators": ("evals/bigbench_operators", CONTINUED),
    "bigbench_repeat_copy_logic": ("evals/bigbench_repeat_copy_logic", CONTINUED),
    "bigbench_cs_algorithms": ("evals/bigbench_cs_algorithms", CONTINUED),
    "bigbench_qa_wikidata": ("evals/bigbench_qa_wikidata", CONTINUED),
    "bigbench_dyck_languages": ("evals/bigbench_dyck_languages", CONTINUED),
    "bigbench_strategy_qa": ("evals/bigbench_strategy_qa", ("query",)),
    "blimp": ("evals/blimp", ("sentence_good",)),
}
ENDING = ".jsonl.xz"
PARTS = 4  # into which items are cut by their coverage


class Copy(NamedTuple):
    """An evaluation item in a training document.

    Attributes:
      item: its line in the file of the set; of equal items the first.
      coverage: the share of its words that the document holds in order and in one place.
      passage: the place in the document.
    """

    set: str
    item: int
    coverage: float
    source: str
    passage: str


@dataclasses.dataclass(frozen=True)
class SetCoverage:
    """The items of one evaluation set, in the order of its file.

    Attributes:
      copied: largest share of the item's words that one document holds in one place; 0 below
        `decontaminate.THRESHOLD`.
      familiar: share of the item's words that are in runs of five words of the training text.
      decided: whether the item can be looked for: it is long enough and unlike many others. The
        other two are 0 where it is not.
      hits: {source: how many items its documents hold a copy of}.
    """

    copied: Float[np.ndarray, " items"]
    familiar: Float[np.ndarray, " items"]
    decided: Bool[np.ndarray, " items"]
    hits: dict[str, int]


@dataclasses.dataclass(frozen=True)
class TrainingCoverage:
    """What was looked through, and how much of each evaluation set it holds.

    Attributes:
      documents: {source: texts that were looked through}.
      faults: {source: records that could not be read}.
      sets: {name: its items}.
      found: the best copy of each item in each source, the surest first.
    """

    documents: dict[str, int]
    faults: dict[str, int]
    sets: dict[str, SetCoverage]
    found: list[Copy]


def evaluation_sets(folder: Path) -> EvalSets:
    """Return EVALUATION_SETS in the shared folder, as `decontaminate.build_index` takes them."""
    sets = {}
    for name, (path, fields) in EVALUATION_SETS.items():
        sets[name] = {"path": str(folder / f"{path}{ENDING}"), "fields": list(fields)}
    return sets


def source_texts(sources: Sequence[Source]) -> Iterator[tuple[str, str | None]]:
    """Yield (source, text) of each document of the files of sources; None for a faulty record.

    A dialogue is one text; a pair is two: the prompt with either answer. Sources that are not
    trained on (weight 0) are left out. Held-out documents count as training text.
    """
    for source in sources:
        if source.weight == 0:
            continue
        for file in list_files(source, lambda message: None):
            for document in read_documents(file, source):
                if isinstance(document, Fault):
                    yield source.name, None
                elif source.kind == TEXT:
                    yield source.name, document.text
                else:
                    for text in searched_texts(document, source.kind):
                        yield source.name, text


def prepared_texts(prepared: Prepared) -> Iterator[tuple[str, str]]:
    """Yield (source, text) of each training document of prepared text, without special tokens.

    A pair is one text: its prompt, then both answers.
    """
    for name, documents in prepared.train.items():
        for tokens in documents:
            yield name, prepared.tokenizer.decode(tokens)


def training_coverage(sets: EvalSets, texts: Iterable[tuple[str, str | None]]) -> TrainingCoverage:
    """Look for every item of evaluation sets in training text.

    Args:
      sets: see `decontaminate.build_index`.
      texts: (source, text) of each training document, see `source_texts` and `prepared_texts`.
    Raises: UserError for sets that cannot be read, and where most of a source's text cannot be.
    """
    index = build_index(sets)
    known_runs = Matcher(index.arrays["runs"])
    is_familiar = np.zeros(len(index.arrays["runs"]), bool)
    documents: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    copies: dict[tuple[str, int], dict[str, Copy]] = {}  # of (set, item): {source: the best}
    for source, text in texts:
        if text is None:
            faults[source] += 1
            continue
        documents[source] += 1
        text = normalise(text)
        runs = known_runs.find(hash_runs(words_and_numbers(text).hashes, RUN))
        is_familiar[runs] = True
        if not len(runs):  # as in most documents
            continue
        for hit in index.find_all(text):
            in_source = copies.setdefault((hit.set, hit.item), {})
            if source not in in_source or in_source[source].coverage < hit.coverage:
                passage = " ".join(text[hit.start : hit.end].split())
                in_source[source] = Copy(hit.set, hit.item, hit.coverage, source, passage)
    if not documents:
        raise UserError("no training document could be read; nothing was looked through.")
    for source, count in faults.items():
        if count > documents[source]:
            raise UserError(
                f"data.sources.{source}: {documents[source]} documents could be read and {count} "
                "could not; nothing can be said about contamination."
            )
    found = [copy for in_source in copies.values() for copy in in_source.values()]
    found.sort(key=lambda copy: -copy.coverage)
    covered = _by_set(sets, index, found, _familiar_shares(index, is_familiar), list(documents))
    return TrainingCoverage(dict(documents), dict(faults), covered, found)


def by_coverage(
    coverage: Float[np.ndarray, " items"], right: Bool[np.ndarray, " items"]
) -> list[dict[str, float]]:
    """Return the accuracy on items at 0 coverage, and on four parts of the others by coverage.

    A model that only remembers scores higher on later rows. Items of equal coverage are in one row.

    Args:
      coverage: of decided items, see `SetCoverage`.
      right: whether a model answers each item right.
    Returns: rows of {"from", "to" (least and largest coverage), "items", "accuracy"}, without empty
      ones.
    Raises: ValueError without items.
    """
    if not len(coverage):
        raise ValueError("there are no items to cut by coverage")
    others = coverage[coverage > 0]
    part = np.zeros(len(coverage), int)
    if len(others):
        bounds = np.quantile(others, np.arange(1, PARTS) / PARTS)
        part = np.where(coverage > 0, 1 + np.searchsorted(bounds, coverage, "left"), 0)
    rows = []
    for number in np.unique(part):
        inside = part == number
        rows.append(
            {
                "from": float(coverage[inside].min()),
                "to": float(coverage[inside].max()),
                "items": int(inside.sum()),
                "accuracy": float(right[inside].mean()),
            }
        )
    return rows


def _familiar_shares(index: EvalIndex, is_familiar: Bool[np.ndarray, " runs"]) -> dict[int, float]:
    """Return {item: share of its counted words that are in familiar runs}; the item as in `index`.

    Of an item's two passages, its question and all of it, the larger share counts.
    """
    arrays = index.arrays
    run_of_pointer = np.repeat(np.arange(len(is_familiar)), np.diff(arrays["first"]))
    begins = arrays["at"][is_familiar[run_of_pointer]]
    covered = np.zeros(len(arrays["words"]), bool)
    for k in range(RUN):
        covered[begins + k] = True
    passages = len(arrays["item"])
    passage_of = np.repeat(np.arange(passages), np.diff(arrays["offsets"]))
    counted = np.bincount(passage_of, arrays["counts"], passages)
    shares = np.bincount(passage_of, arrays["counts"] & covered, passages) / counted
    result: dict[int, float] = {}
    for item, share in zip(arrays["item"].tolist(), shares.tolist(), strict=True):
        result[item] = max(share, result.get(item, 0.0))
    return result


def _by_set(
    sets: EvalSets,
    index: EvalIndex,
    found: Sequence[Copy],
    familiar: Mapping[int, float],
    sources: Sequence[str],
) -> dict[str, SetCoverage]:
    """Return the coverage of every item, also of those that are equal to an item of another set.

    The index has each passage once, for the first item with its words: its owner. What is true of
    the owner is true of all items with that passage.
    """
    # A text is an item's question, or all of the item.
    set_of_text, line, passage = read_passages(sets, LEAST).origins.T
    code = set_of_text << 32 | line
    _, first_text, same_passage = np.unique(passage, return_index=True, return_inverse=True)
    owner = np.where(passage < 0, -1, code[first_text[same_passage]])
    items, item_of_text = np.unique(code, return_inverse=True)

    def of_items(values: Mapping[int, float]) -> Float[np.ndarray, " items"]:
        """Return each item's largest value among the owners of its texts, 0 without any."""
        of_texts = np.array([values.get(number, 0.0) for number in owner.tolist()])
        result = np.zeros(len(items))
        np.maximum.at(result, item_of_text, of_texts)
        return result

    number_of_set = {name: number for number, name in enumerate(sets)}
    by_source: dict[str, dict[int, float]] = {source: {} for source in sources}
    for copy in found:
        by_source[copy.source][number_of_set[copy.set] << 32 | copy.item] = copy.coverage
    copied = {source: of_items(values) for source, values in by_source.items()}
    most_copied = np.max(list(copied.values()), axis=0)
    shares = of_items(familiar)
    decided = ~np.isin(items, index.arrays["undecided"])
    result = {}
    for name, number in number_of_set.items():
        own = items >> 32 == number
        hits = {source: int((values[own] > 0).sum()) for source, values in copied.items()}
        result[name] = SetCoverage(most_copied[own], shares[own], decided[own], hits)
    return result
