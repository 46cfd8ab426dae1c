"""The decontamination bench: it hides what it says and counts what is found; .ci/drills holds its bars on the real corpus."""

import argparse
import json
import random
import re

import pytest

from slmjax.bench import find_contamination as decontaminate
from slmjax.bench import planted
from slmjax.errors import UserError

ITEM = {
    "question": "Marta keeps 14 hens behind the bakery. Each hen lays five eggs a week, and Marta sells them by the dozen to Olu for $4. "
    "How much money does she earn from Olu in six weeks?",
    "answer": "The hens lay 14 * 5 = 70 eggs a week.\nIn six weeks Marta has 35 dozen.\nOlu pays her $<<35*4=140>>140.\n#### 140",
}
PROSE = "The morning after the storm the children walked down to the water.\nNobody spoke for a while, and the boats lay in the reeds.\n"


def arguments_of(*flags):
    parser = argparse.ArgumentParser()
    decontaminate.add_arguments(parser)
    return parser.parse_args(list(flags))


@pytest.mark.parametrize("kind", list(planted.KINDS))
def test_what_the_bench_hides_is_what_its_kind_says(kind):
    text = planted.variant(ITEM, kind, random.Random(1))
    document, place = planted.plant(text, PROSE, kind, random.Random(2))
    assert document[place : place + len(text)] == text and len(document) > len(PROSE) + len(text)
    assert planted.names_in(ITEM) == {"Marta", "Olu"}
    assert ("marta" in text.lower() or "olu" in text.lower()) == (not kind.startswith("names"))
    assert (re.findall(r"\d+", text)[:2] == ["14", "4"]) == (kind != "names and numbers")
    assert ("####" in text) == (kind != "question") and (
        "Marta sells them by the dozen" in text
    ) == (kind in ("verbatim", "mid-line", "question"))
    assert (text == f"{ITEM['question']}\n{ITEM['answer']}") == (kind == "verbatim") and (
        text == ITEM["question"]
    ) == (kind == "question")


def test_rows_say_what_was_found_flagged_and_left_undecided(tmp_path, monkeypatch):
    def write(path, records):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))

    monkeypatch.setenv("SLMJAX_SHARED", str(tmp_path))
    monkeypatch.setattr(decontaminate, "SETS", {"gsm8k": ("gsm8k/test", ("question", "answer"))})
    monkeypatch.setattr(decontaminate, "ENDING", ".jsonl")
    write(
        tmp_path / "gsm8k" / "test.jsonl",
        [{"question": "What is 1 + 1?", "answer": "2"}, ITEM, ITEM],
    )
    write(
        tmp_path / "gsm8k" / "train.jsonl",
        [{"question": "Why?", "answer": "So."}, {**ITEM, "answer": "None"}],
    )
    for domain in decontaminate.DOMAINS:
        leak = (
            [{"text": PROSE + ITEM["question"].upper(), "id": "leak"}] if domain == "docs" else []
        )
        write(
            tmp_path / "pretrain" / domain / "a.jsonl",
            [{"text": PROSE, "id": "a"}, {"text": PROSE, "id": "b"}, *leak],
        )
    found = decontaminate.run(arguments_of("--planted=40"))
    assert json.dumps(found) and {row["hidden"] for row in found["rows"]} == set(planted.KINDS)
    assert all(
        0 < row["found"] < 40 or row["hidden"].startswith("names") for row in found["rows"]
    )  # one is too short, and equal ones count as the first
    assert {row["domain"]: (row["documents"], row["gsm8k"]) for row in found["clean"]} == {
        **dict.fromkeys(decontaminate.DOMAINS, (2, 0)),
        "docs": (3, 1),
        "all": (13, 1),
    }
    assert found["sets"] == [
        {
            "set": "gsm8k",
            "items": 3,
            "undecided": 1,
            **dict.fromkeys(decontaminate.DOMAINS, 0),
            "docs": 1,
        }
    ]
    assert [(hit["line"], hit["item"], hit["coverage"]) for hit in found["train"]] == [(2, 2, 1.0)]
    assert any("docs leak: MARTA KEEPS" in message for message in found["messages"])


def test_missing_data_and_numbers_that_cannot_be_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SLMJAX_SHARED", str(tmp_path))
    with pytest.raises(UserError, match="holds no gsm8k"):
        decontaminate.run(arguments_of())
    with pytest.raises(UserError, match="--threshold above 0"):
        decontaminate.run(arguments_of("--threshold=0"))
