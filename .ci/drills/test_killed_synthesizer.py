"""The synthesizer is killed five times while a server misbehaves."""

# The fixture `server` is found by its name.
from tests.synthesize.test_killed import assert_kills_lose_nothing, server  # noqa: F401


def test_five_kills_lose_nothing_pay_nothing_twice_and_never_exceed_the_budget(
    server,  # noqa: F811
    tmp_path,
):
    assert_kills_lose_nothing(server, tmp_path, kills=5, documents=2500)
