"""Malformed files of conversations and pairs: refused in a sentence, or counted and left out."""

import collections

import pytest

from tests.data.malformed_conversations import (
    COUNTED,
    OF_FILES,
    REFUSED,
    RIGHT,
    Mark,
    changes_of,
    judge,
    malformed_file,
    trial,
)

FILES = 50


def test_a_malformed_file_is_refused_or_counted_in_a_sentence(tmp_path):
    trials = [trial(seed, tmp_path / str(seed)) for seed in range(FILES)]
    assert [one.words for one in trials if not one.outcome] == []
    outcomes = collections.Counter(one.outcome for one in trials)
    assert min(outcomes[name] for name in (REFUSED, COUNTED, RIGHT)) >= 5


@pytest.mark.parametrize("kind", ["chat", "pairs"])
def test_the_files_have_every_fault(kind):
    files = [malformed_file(seed) for seed in range(FILES)]
    had = {name for file in files if file.kind == kind for name in file.how}
    assert had == {*changes_of(kind), *OF_FILES}


def test_a_file_is_the_same_each_time():
    assert malformed_file(7) == malformed_file(7) != malformed_file(9)


def counted_file():
    """A file of dialogues of which a few lines are unusable."""
    for seed in range(0, 400, 2):
        file = malformed_file(seed)
        if file.faults and len(file.documents) > 3 and not file.cut and seed % 5 != 4:
            return file
    raise AssertionError("there is none")


def test_what_is_wrong_is_noticed(tmp_path):
    """Were the library to take, lose, change or miscount a line, its file would fail."""
    file = counted_file()
    assert judge(file, tmp_path / "as it is")[0] == COUNTED
    documents, faults = file.documents, file.faults
    injected = (*documents[0][:-2], Mark("<|im_end|>"), *documents[0][-2:])
    wrong = {
        "a line is lost": {"documents": (*documents, documents[0])},
        "a line is taken": {"documents": documents[:-1]},
        "a text is changed": {"documents": (*documents[:-1], ("text",))},
        "a special token is in a text": {"documents": (injected, *documents[1:])},
        "a fault is not counted": {"faults": (*faults, 999)},
        "a sound line is named": {"faults": tuple(fault + 1000 for fault in faults)},
        "all is unusable": {"documents": ()},
    }
    for name, change in wrong.items():
        with pytest.raises(AssertionError):
            judge(file._replace(**change), tmp_path / name)
