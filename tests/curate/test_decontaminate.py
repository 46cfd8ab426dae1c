"""Decontamination: an item is found wherever and however it is written; what only sounds like one, or is scattered, is not."""

import dataclasses
import json
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.curate import decontaminate
from slmjax.curate.decontaminate import EvalIndex, Hit, build_index
from slmjax.errors import UserError

ITEMS = [
    {
        "question": "Marta keeps 14 hens behind the bakery. Each hen lays five eggs a week, and Marta sells them by the dozen to Olu "
        "for $4. How much money does she earn from Olu in six weeks?",
        "answer": "The hens lay 14 * 5 = <<14*5=70>>70 eggs a week.\nIn six weeks Marta has 420 eggs, which is 35 dozen.\n"
        "Olu pays her 35 * 4 = $<<35*4=140>>140.\n#### 140",
    },
    {
        "question": "A ferry leaves the northern harbour with 120 passengers; at the first island a quarter of them get off and 18 "
        "cyclists come aboard. How many people are on the ferry when it reaches the lighthouse?",
        "answer": "A quarter of 120 is 30, so 90 stay aboard.\nWith the cyclists 108 people reach the lighthouse.\n#### 108",
    },
    {
        "question": "Which of these best explains why the pond behind the school freezes later than the puddles in the yard do?",
        "answer": [
            "It is deeper and holds more heat.",
            "It has more fish.",
            "It is shaded.",
            "Its water is salt.",
        ],
    },
    {"question": "What is 12 + 30?", "answer": "12 + 30 = 42"},
    {"question": "Who wrote Emma?", "answer": "Jane Austen"},
]
PROSE = (
    "The morning after the storm the children walked down to the water, where boats lay upside down in the reeds. Nobody spoke for a "
    "while. Then the eldest said that it would be better to count what was left before the tide came back, and so they began.\n\n"
) * 6


def write(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return {"path": str(path), "fields": ["question", "answer"]}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return build_index({"made": write(tmp_path_factory.mktemp("evals") / "made.jsonl", ITEMS)})


def text_of(item):
    return "\n".join(
        [
            item["question"],
            *([item["answer"]] if isinstance(item["answer"], str) else item["answer"]),
        ]
    )


def in_prose(text, glue="\n"):
    middle = PROSE.index("would be better")
    return PROSE[:middle] + text + glue + PROSE[middle:]


@pytest.mark.parametrize("item", [0, 1, 2])
@pytest.mark.parametrize(
    "change",
    [
        str,
        str.upper,
        str.lower,
        str.title,
        lambda t: re.sub(r"[^\w\s]", "", t),
        lambda t: " ".join(t.split()),
    ],
)
def test_an_item_in_any_case_and_punctuation_is_found_in_the_middle_of_a_line(index, item, change):
    document = in_prose(change(text_of(ITEMS[item])), glue=" ")
    hit = index.find(document)
    assert (hit.set, hit.item) == ("made", item + 1) and hit.coverage > 0.8
    begin = PROSE.index("would be better")
    assert begin <= hit.start < begin + 20 and document[hit.start : hit.end].lower().startswith(
        text_of(ITEMS[item])[:4].lower()
    )


def test_a_question_without_its_answer_is_found_and_an_answer_alone_is_not(index):
    assert index.find(in_prose(ITEMS[0]["question"])).item == 1
    assert index.find(in_prose(ITEMS[0]["answer"])) is None


def test_other_names_and_other_numbers_do_not_hide_an_item(index):
    other = {
        "Marta": "Jean Paul",
        "Olu": "Siobhan",
        "14": "23",
        "35": "1,350",
        "140": "9.75",
        "420": "8",
    }
    changed = re.sub(
        "|".join(sorted(other, key=len, reverse=True)),
        lambda m: other[m.group()],
        text_of(ITEMS[0]),
    )
    for text in (changed, changed.upper()):
        assert index.find(in_prose(text)).item == 1


def test_one_long_phrase_in_common_is_not_an_item(index):
    phrase = "at the first island a quarter of them get off and 18 cyclists come aboard"  # 14 words in a row: a hit by the 13-gram rule
    assert phrase in ITEMS[1]["question"]
    assert (
        index.find(in_prose(f"In the old story {phrase}, which is how the quarrel begins.")) is None
    )


def test_a_sentence_of_the_same_template_is_not_an_item(index):
    assert (
        index.find(
            in_prose(
                "Which of these best explains why the price of bread rose faster than wages did in those years?"
            )
        )
        is None
    )


def test_the_words_of_an_item_far_apart_or_in_another_order_are_not_the_item(index):
    words = text_of(ITEMS[0]).split()
    apart = "".join(PROSE[:400] + " ".join(words[i : i + 6]) for i in range(0, len(words), 6))
    shuffled = random.Random(0).sample(words, len(words))
    turned = [" ".join(words[i : i + 6]) for i in range(0, len(words), 6)][::-1]
    assert index.find(in_prose(" ".join(words))) is not None
    for text in (apart, in_prose(" ".join(shuffled)), in_prose(" ".join(turned))):
        assert index.find(text) is None


def test_a_phrase_that_an_item_repeats_counts_once_for_each_time_a_document_has_it(tmp_path):
    phrase = "the whole number of boats in the old harbour"
    question = f"If {phrase} doubles and {phrase} then halves, how does {phrase} compare?"
    index = build_index(
        {"made": write(tmp_path / "a.jsonl", [{"question": question, "answer": "It is equal"}])}
    )
    assert index.find(in_prose(question)) and index.find(in_prose(f"{phrase}.")) is None


def test_items_too_short_to_be_told_from_common_phrases_are_named_and_never_found(index):
    assert index.undecided() == {"made": ([4, 5], 5)}
    assert (
        index.find(in_prose(text_of(ITEMS[3]))) is None
        and index.find(in_prose(text_of(ITEMS[4]))) is None
    )


def test_words_that_most_items_share_do_not_make_one(tmp_path):
    template = "Complete the rest of the following sequence, making sure that all of the open parentheses are closed properly again: "
    items = [
        {"question": f"{template}{name} {name}", "answer": ""}
        for name in map("word{}".format, range(decontaminate.COMMON + 1))
    ]
    few = build_index({"made": write(tmp_path / "few.jsonl", items[:-1])})
    many = build_index({"made": write(tmp_path / "many.jsonl", items)})
    assert few.find(in_prose(template)) and not few.undecided()["made"][0]
    assert many.find(in_prose(template)) is None and len(many.undecided()["made"][0]) == len(items)


ANY_TEXT = st.text(
    st.one_of(st.sampled_from("abc  .,\n3'İß"), st.characters(codec="utf-8")), max_size=60
)


@given(
    before=ANY_TEXT,
    after=ANY_TEXT,
    item=st.sampled_from([0, 1, 2]),
    glue=st.sampled_from([" ", "\n", "\n\n", ", ", ' "', "("]),
)
def test_an_item_at_any_place_of_any_text_is_found_where_it_is(index, before, after, item, glue):
    text = text_of(ITEMS[item])
    hit = index.find(before + glue + text + glue + after)
    begin = len(before + glue)
    assert hit.item == item + 1 and hit.coverage == 1
    assert hit.start <= begin + 20 and hit.end >= begin + len(text) - 20


@given(cut=st.floats(0.1, 0.9))
def test_coverage_is_the_share_of_telling_words_that_are_there(index, cut):
    """The slow count, where a question's end is missing: no numbers, single letters and names ('How' is one in these few items)."""
    pieces = list(re.finditer(r"\w+", ITEMS[1]["question"]))
    kept = pieces[: max(8, int(cut * len(pieces)))]
    document = "zzz. " + ITEMS[1]["question"][: kept[-1].end()] + ". zzz"
    told = [
        [
            w.group()
            for w in some
            if len(w.group()) > 1 and not w.group().isdigit() and w.group() != "How"
        ]
        for some in (kept, pieces)
    ]
    hits = index.find_all(document, threshold=0.01)
    share = len(told[0]) / len(told[1])
    assert [hit.coverage for hit in hits] == (
        [pytest.approx(share)] if len(told[0]) >= decontaminate.LEAST else []
    )
    assert (index.find(document) is not None) == (share >= decontaminate.THRESHOLD)


def test_a_saved_index_finds_the_same(index, tmp_path):
    index.save(tmp_path / "index.npz")
    loaded = EvalIndex.load(tmp_path / "index.npz")
    assert loaded.arrays.keys() == index.arrays.keys()
    for name, array in index.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
    for item in ITEMS:
        assert loaded.find_all(in_prose(text_of(item))) == index.find_all(in_prose(text_of(item)))
    assert loaded.undecided() == index.undecided()


def test_an_index_of_another_version_or_no_index_is_refused(index, tmp_path):
    EvalIndex({**index.arrays, "scheme": index.arrays["scheme"] + 1}).save(tmp_path / "old.npz")
    (tmp_path / "text.npz").write_text("no index")
    for name, reason in (("old", "another version"), ("text", "no index"), ("none", "no index")):
        with pytest.raises(UserError, match=rf"{name}\.npz.*{reason}.*build it again"):
            EvalIndex.load(tmp_path / f"{name}.npz")


@given(order=st.permutations(range(len(ITEMS))), turned=st.booleans())
def test_neither_the_order_of_items_nor_of_sets_changes_what_is_found(
    index, order, turned, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("order")
    shuffled = write(folder / "made.jsonl", [ITEMS[i] for i in order])
    other = write(
        folder / "other.jsonl",
        [{"question": "Why does a kettle sing before it boils over?", "answer": ""}],
    )
    sets = {"made": shuffled, "other": other}
    again = build_index(dict(reversed(sets.items())) if turned else sets)
    document = "\n".join(in_prose(text_of(item)) for item in ITEMS)

    def found(index: EvalIndex, lines) -> set[Hit]:
        return {
            dataclasses.replace(hit, item=lines[hit.item - 1]) for hit in index.find_all(document)
        }

    assert (
        found(again, order) == found(index, range(len(ITEMS)))
        and len(found(index, range(len(ITEMS)))) == 3
    )


@pytest.mark.parametrize("items", [[], [{"question": "", "answer": ""}], [ITEMS[3]]])
def test_sets_without_a_decidable_item_find_nothing(items, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items) or " \n")
    index = build_index(
        {"made": {"path": str(tmp_path / "a.jsonl"), "fields": ["question", "answer"]}}
    )
    assert index.find(PROSE) is None and index.find("") is None
    assert index.undecided()["made"][1] == len(items)


@pytest.mark.parametrize(
    ("line", "settings", "message"),
    [
        ('{"question": "a"}', {}, r"line 1 has no field 'answer' \(fields: question\)"),
        ('{"question": "a", "answers": "b"}', {}, "Did you mean 'answers'"),
        ('{"question": "a", "answer": {"b": 1}}', {}, "'answer' holds dict; expected text"),
        ('{"question": ', {}, "fault in line 1: malformed JSON"),
        ("{}", {"path": ""}, "evals.made: path is missing"),
        ("{}", {"fields": []}, "evals.made: fields is missing"),
        (
            "{}",
            {"path": "nowhere.jsonl"},
            "config.curate.evals.made: 'nowhere.jsonl' matches no file",
        ),
        (
            "{}",
            {"path": ["nowhere.jsonl"]},
            "config.curate.evals.made: 'nowhere.jsonl' matches no file",
        ),
        ("{}", {"path": "README.txt"}, "README.txt has no records with fields; expected .jsonl"),
        ("{}", {"fields": 5}, "evals.made is .*expected a .jsonl file as path"),
        ("{}", {"fields": [5]}, "evals.made is .*expected a .jsonl file as path"),
        ("{}", {"field": "question"}, "evals.made has no setting 'field'.*Did you mean 'fields'"),
    ],
)
def test_a_set_that_cannot_be_read_whole_is_refused(line, settings, message, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    (tmp_path / "README.txt").write_text("about the set")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        build_index(
            {
                "made": {"path": str(tmp_path / "a.jsonl"), "fields": ["question", "answer"]}
                | settings
            }
        )
