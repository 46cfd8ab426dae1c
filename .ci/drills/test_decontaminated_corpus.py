"""Items of GSM8K hidden in real text are found, and little else is flagged (70 s, two cores)."""

import os
from pathlib import Path

import pytest

from slmjax.bench import find_contamination
from tests.bench.test_find_contamination import arguments_of

SHARED = Path(os.environ.get("SLMJAX_SHARED", "../shared/data"))


@pytest.mark.skipif(
    not (SHARED / "gsm8k").is_dir(),
    reason="needs the shared data: SLMJAX_SHARED names the folder that holds gsm8k/",
)
def test_hidden_gsm8k_items_are_found_and_the_corpus_is_not_flagged():
    results = find_contamination.run(arguments_of())
    # How an item was changed before it was hidden: the share of such items that is found.
    shares = {row["hidden"]: row["share"] for row in results["rows"]}
    assert shares["verbatim"] == shares["case and punctuation"] == 1
    assert shares["mid-line"] >= 0.95 and shares["names"] >= 0.9
    (all_domains,) = (row for row in results["clean"] if row["domain"] == "all")
    assert all_domains["documents"] > 50_000 and all_domains["gsm8k_%"] <= 0.05
    # {line of GSM8K train: item of GSM8K test}, near-copies that a person has read.
    near_copies = {21: 633, 1315: 603, 3727: 825}
    items = {hit["line"]: hit["item"] for hit in results["train"]}
    assert near_copies.items() <= items.items()
