"""The synthesizer is killed five times while a server misbehaves."""

from tests.synthesize.test_killed import assert_kills_lose_nothing, server  # noqa: F401  (a fixture)


def test_five_kills_lose_nothing_pay_nothing_twice_and_never_exceed_the_budget(server, tmp_path):  # noqa: F811
    assert_kills_lose_nothing(server, tmp_path, kills=5, documents=2500)
