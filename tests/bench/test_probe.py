"""The bench of the probe refuses what it cannot measure."""

import pytest

from slmjax.bench import probe
from slmjax.bench.__main__ import BENCHES, WITHOUT_RECIPE, _parser
from slmjax.errors import UserError


def options(*arguments):
    return _parser("probe", probe).parse_args(arguments)


def test_the_bench_is_listed_and_needs_no_recipe():
    assert "probe" in BENCHES
    assert "probe" in WITHOUT_RECIPE


def test_a_missing_file_and_impossible_sizes_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("SLMJAX_SHARED", str(tmp_path))
    with pytest.raises(
        UserError, match=r"\(SLMJAX_SHARED\) has no gsm8k/train\.jsonl; give a file"
    ):
        probe.run(options())
    with pytest.raises(UserError, match="expected 2 to 200 templates"):
        probe.run(options("--templates=201"))
    with pytest.raises(UserError, match="1 to 10 variants"):
        probe.run(options("--variants=0"))
