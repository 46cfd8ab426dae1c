"""The short form of the drill of damaged files, for the kinds whose own tests have none."""

import pytest

from tests.files_read_back import KINDS, Trial

INPUTS = {
    "prompts": 40,
    "topics": 40,
    "passages": 40,
    "evaluation set": 30,
    "tokenizer.json": 30,
    "study's results": 40,
    "journal's copies": 15,
    "unfinished preparation": 15,
    "config.json as a recipe": 6,
    "run's tokenizer.json": 4,
}


@pytest.mark.parametrize("name", INPUTS)
def test_a_damaged_file_is_a_sentence_a_count_or_the_right_result(name, undisturbed, tmp_path):
    trial = Trial(name, tmp_path, undisturbed if KINDS[name].of_run else None)
    found = [(seed, *trial.input(seed)) for seed in range(INPUTS[name])]
    assert [(seed, how, outcome.said) for seed, how, outcome in found if not outcome.outcome] == []
