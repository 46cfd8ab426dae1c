"""The journal of looks: nothing is lost between processes, and nothing is counted twice."""

import dataclasses
import json
import re
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import pytest

from slmjax.errors import UserError
from slmjax.evals.looks import Look, append_look, count_looks, parameters_hash, read_looks

LOOK = Look("2026-12-01T04:55:00+00:00", "runs/a", "1a", "arms", "gsm8k_test", "accuracy", 0.04)


def other(**changes):
    return dataclasses.replace(LOOK, **changes)


def test_looks_are_read_as_they_were_appended(tmp_path):
    journal = tmp_path / "new" / "looks.jsonl"
    looks = [LOOK, other(run='quoted "run"\n', value=1)]
    assert read_looks(journal) == []
    for look in looks:
        append_look(journal, look)
    assert read_looks(journal) == looks


def test_the_same_figure_of_the_same_parameters_is_one_look():
    looks = [LOOK, other(date="2027-01-01", run="runs/copy"), other(figure="vote of 32")]
    looks += [other(parameters="2b"), other(family="others"), other(set="boolq")]
    assert count_looks(looks) == {
        ("boolq", "arms"): 1,
        ("gsm8k_test", "arms"): 3,
        ("gsm8k_test", "others"): 1,
    }


def test_writers_at_once_lose_no_look(tmp_path):
    """Threads stand for processes: each append opens the file anew, and a lock is of an open file."""
    journal = tmp_path / "looks.jsonl"
    looks = [other(run=name, parameters=str(number)) for number in range(50) for name in "abcd"]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda look: append_look(journal, look), looks))
    assert sorted(map(str, read_looks(journal))) == sorted(map(str, looks))


def test_half_a_line_of_a_killed_process_is_named_and_spoils_no_other_look(tmp_path):
    journal = tmp_path / "looks.jsonl"
    append_look(journal, LOOK)
    whole = journal.read_text()
    journal.write_text(whole + whole[:20])
    append_look(journal, LOOK)
    with pytest.raises(UserError, match=r"looks.jsonl, line 2 is no JSON"):
        read_looks(journal)
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], lines[2]]))
    assert read_looks(journal) == [LOOK, LOOK]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"value": "high"}, "value is 'high', which is no number"),
        ({"set": None}, "set is None, which is no text"),
        ({"extra": 1}, "is no look at a test set; expected an object with date, run"),
    ],
)
def test_a_line_that_is_no_look_is_refused_in_a_sentence(tmp_path, change, sentence):
    journal = tmp_path / "looks.jsonl"
    journal.write_text(json.dumps(dataclasses.asdict(LOOK) | change))
    with pytest.raises(UserError, match=re.escape(sentence)):
        read_looks(journal)


def test_the_hash_of_parameters_changes_with_one_bit_a_name_a_shape_or_a_type():
    params = {"a": jnp.zeros((2, 3)), "b": {"c": jnp.ones(4)}}
    changed = [
        {"a": jnp.zeros((2, 3)).at[1, 2].set(1e-45), "b": params["b"]},
        {"a": params["a"], "b": {"d": params["b"]["c"]}},
        {"a": jnp.zeros((3, 2)), "b": params["b"]},
        {"a": jnp.zeros((2, 3), jnp.int32), "b": params["b"]},
    ]
    hashes = {parameters_hash(tree) for tree in [params, *changed]}
    assert len(hashes) == 1 + len(changed)
    assert parameters_hash({"b": params["b"], "a": params["a"]}) == parameters_hash(params)
