"""Items of GSM8K hidden in real text are found, and nothing else is flagged (70 s, two cores)."""

import os
from pathlib import Path

import pytest

from slmjax.bench import find_contamination as decontaminate
from tests.bench.test_find_contamination import arguments_of

SHARED = Path(os.environ.get("SLMJAX_SHARED", "../shared/data"))


@pytest.mark.skipif(
    not (SHARED / "gsm8k").is_dir(),
    reason="needs the shared data: SLMJAX_SHARED names the folder that holds gsm8k/",
)
def test_hidden_gsm8k_items_are_found_and_the_corpus_is_not_flagged():
    found = decontaminate.run(arguments_of())
    shares = {row["hidden"]: row["share"] for row in found["rows"]}
    assert shares["verbatim"] == shares["case and punctuation"] == 1
    assert shares["mid-line"] >= 0.95 and shares["names"] >= 0.9
    (every,) = (row for row in found["clean"] if row["domain"] == "all")
    assert every["documents"] > 50_000 and every["gsm8k_%"] <= 0.05
    assert {21: 633, 1315: 603, 3727: 825}.items() <= {
        hit["line"]: hit["item"] for hit in found["train"]
    }.items()  # near-copies, read
