"""The study of the textbook's worth: shares of tokens as asked for, and held-out questions at the end whatever the text is."""

import pytest

from slmjax import config as configs
from slmjax.errors import UserError
from slmjax.train import textbook_evaluation as evaluation
from tests import runs


@pytest.fixture
def domains(tmp_path, monkeypatch):
    for domain in ("books", "textbooks", "math", "docs", "code", "reference"):
        (tmp_path / "pretrain" / domain).mkdir(parents=True)
    monkeypatch.setenv("SLMJAX_SHARED", str(tmp_path))


@pytest.mark.parametrize("share", [0, 0.2, 0.5])
def test_the_textbook_has_its_share_and_the_domains_keep_their_proportions(domains, share):
    config = configs.freeze(configs.load_recipe(f"configs/studies/textbook.py:{share}"))
    weights = config.data.phases[0]["weights"]
    assert weights["textbook"] == share and sum(weights.values()) == pytest.approx(1)
    assert weights["books"] / weights["code"] == pytest.approx(6)
    assert config.train.steps * config.train.batch * config.data.seq_len == pytest.approx(
        100e6, rel=0.001
    )


def test_a_share_that_makes_no_sense_is_refused(domains):
    with pytest.raises(UserError, match="at least 0 and less than 1"):
        configs.load_recipe("configs/studies/textbook.py:1.5")


@pytest.mark.slow
def test_a_run_on_other_text_is_asked_the_textbooks_questions_where_that_is_wanted(
    corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluation, "QUESTIONS", 2)
    assert runs.train(corpus, tmp_path / "run", train__steps=5, eval__textbook=True) == 0
    (answers,) = runs.events(tmp_path / "run", "answers")
    assert {found["count"] for found in answers["kinds"].values()} == {2}
    assert not runs.events(tmp_path / "run", "baseline")
