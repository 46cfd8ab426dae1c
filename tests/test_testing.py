"""check_mixer: the library's own mixers pass, and every mistake is told by its name."""

import pytest

from slmjax.errors import UserError
from slmjax.testing import check_mixer
from tests.models import own

SLOW = ("ssm key_dim=16", "gla", "gdn key_dim=4", "kda")


@pytest.mark.parametrize(
    "block",
    [
        "attention",
        "attention window=7 rope=False",
        *(pytest.param(b, marks=pytest.mark.slow) for b in SLOW),
    ],
)
def test_the_librarys_mixers_pass(block):
    assert len(check_mixer(block)) == 4


def test_a_mixer_of_ones_own_passes():
    told = check_mixer(own.Mean)
    assert [line.split()[0] for line in told] == ["causal,", "packed", "decoding", "on"]


@pytest.mark.parametrize(
    "mixer, sentence",
    [
        (own.LooksAhead, "not causal: the output at token 0 depends on token 1, which comes later"),
        (
            own.MixesDocuments,
            "documents are not apart: the output at token 17, of document 2, depends on token 0, of document 1",
        ),
        (
            own.SeesWhereItLies,
            "packed documents are not as if alone: the outputs of document 2 differ by",
        ),
        (
            own.ForgetsBetweenPieces,
            "decoding is not the forward pass: tokens 66 to 73 of row 0, in a piece of 8, differ by",
        ),
        (
            own.KeepsPadding,
            "decoding is not the forward pass: tokens 60 to 62 of row 1, in a piece of 8, differ by",
        ),
    ],
)
def test_a_mistake_is_told_in_a_sentence(mixer, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_mixer(mixer)


def test_a_mixer_without_a_cache_can_be_trained_and_says_that_it_cannot_decode():
    with pytest.raises(
        UserError, match=r"'tests.models.own:CannotDecode' has no empty_cache.* it can be trained"
    ):
        check_mixer(own.CannotDecode)


@pytest.mark.parametrize("path", ["tests.models.own:Nobody", "no_such_module:Mixer", ":Mixer"])
def test_a_path_that_leads_nowhere_is_named(path):
    with pytest.raises(UserError, match=f"names the mixer '{path}'"):
        check_mixer(path)
