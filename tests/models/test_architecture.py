"""From a config to a description of the model, and the sentences for what does not parse."""

import dataclasses

import pytest

from slmjax import config as configs
from slmjax.errors import UserError
from slmjax.models import lm
from slmjax.models.architecture import Block
from slmjax.models.pattern import from_config, parse_block


@pytest.mark.parametrize(
    "text, block",
    [
        ("attention", Block()),
        ("attention+mlp", Block("attention", "mlp")),
        ("attention rope=False", Block(options=(("rope", False),))),
        ("attention+mlp window=5 rope=True", Block(options=(("rope", True), ("window", 5)))),
    ],
)
def test_a_block_is_read_from_its_text(text, block):
    assert parse_block(text) == block


@pytest.mark.parametrize("number", ["0.2", ".2", "2e-1", "2E-1", "0.02e+1"])
def test_a_number_is_read_as_python_writes_it(number):
    block = parse_block(f"tests.contracts.own:Halves rate={number}")
    assert dict(block.options) == {"rate": 0.2}


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("attentoin", "token mixer 'attentoin'.*Did you mean 'attention'"),
        ("attention+mpl", "channel mixer 'mpl'.*Did you mean 'mlp'"),
        (
            "attention windo=5",
            "'windo=5'.*one of the options rope, window, borrows.*Did you mean 'window'",
        ),
        ("attention window=-5", "'window=-5'.*must be a whole number, not negative"),
        ("attention window=64 window=128", "gives the option window twice"),
        ("attention+", "channel mixer ''; there is mlp, none"),
        ("attention rope", "'rope'.*must be True or False"),
        ("attention rope=yes", "'rope=yes'.*True or False"),
        ("attention rope=2", "'rope=2'.*True or False"),
        ("", "token mixer ''"),
    ],
)
def test_a_block_that_does_not_parse_is_named(text, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_block(text)


def test_a_pattern_repeats_to_the_layers():
    config = configs.base()
    config.model.pattern, config.model.layers = (
        ("attention", "attention", "attention rope=False"),
        6,
    )
    arch = from_config(configs.freeze(config).model, 128)
    assert arch.layers == 6
    assert [block.options for block in arch.blocks] == [(), (), (("rope", False),)] * 2


def test_layers_that_the_pattern_does_not_divide_are_refused_with_the_nearest_two():
    config = configs.base()
    config.model.pattern, config.model.layers = (
        ("attention", "attention", "attention rope=False"),
        7,
    )
    with pytest.raises(UserError, match=r"layers is 7.*nearest: \[6, 9\]"):
        from_config(configs.freeze(config).model, 128)
    config.model.layers = 2
    with pytest.raises(UserError, match=r"layers is 2.*nearest: \[3\]"):
        from_config(configs.freeze(config).model, 128)


@pytest.mark.parametrize(
    "pattern, layers, letters",
    [
        ("attention,|,gdn,gdn,attention", 7, "a gga gga"),
        ("attention,|,gdn,attention,|,ssm,attention", 7, "a ga ga sa"),
        ("|,gdn,|,attention", 4, "g g g a"),
        ("|,gdn", 2, "g g"),
    ],
)
def test_blocks_before_a_first_bar_and_after_a_second_come_once(pattern, layers, letters):
    config = configs.base()
    config.model.pattern, config.model.layers = tuple(pattern.split(",")), layers
    arch = from_config(configs.freeze(config).model, 128)
    assert "".join(block.mixer[0] for block in arch.blocks) == letters.replace(" ", "")
    assert arch.layers == layers
    assert len(arch.stack) == len([part for part in pattern.split("|") if part.strip(",")])


@pytest.mark.parametrize(
    "pattern, layers, sentence",
    [
        (
            ("gdn", "|", "gdn", "attention", "gdn"),
            6,
            r"layers is 6, which without the 1 outside of the bars .* of 3 .*: \[4, 7\]",
        ),
        (
            ("gdn", "|", "gdn", "attention", "|", "gdn"),
            2,
            r"layers is 2, which without the 2 .*nearest: \[4\]",
        ),
        (("gdn", "|", "gdn", "attention", "|", "gdn"), 1, r"layers is 1.*nearest: \[4\]"),
        (("gdn", "|"), 1, "nothing behind its bar; expected what repeats"),
        (("gdn", "|", "|", "gdn"), 2, "nothing between its bars; expected what repeats"),
        (("|", "gdn", "|", "gdn", "|"), 2, "has 3 bars; expected at most two"),
        (("attention | gdn",), 2, "'attention . gdn' holds a bar, which is an element of its own"),
    ],
)
def test_bars_that_do_not_fit_are_refused(pattern, layers, sentence):
    config = configs.base()
    config.model.pattern, config.model.layers = pattern, layers
    with pytest.raises(UserError, match=sentence):
        from_config(configs.freeze(config).model, 128)


@pytest.mark.parametrize(
    "pattern, layers, expected",
    [
        ("gdn,attention", 4, {"0/0": 2, "0/1": 2}),
        (
            "gdn,|,gdn,attention,|,attention,gdn",
            9,
            {"0/0": 1, "1/0": 3, "1/1": 3, "2/0": 1, "2/1": 1},
        ),
        ("|,gdn,|,attention", 4, {"0/0": 3, "1/0": 1}),
    ],
)
def test_a_checkpoint_has_a_group_for_each_part_of_the_pattern(pattern, layers, expected):
    config = configs.base()
    config.model.update({"pattern": tuple(pattern.split(",")), "layers": layers, "width": 16})
    params = lm.declare(from_config(configs.freeze(config).model, 128))["stack"]
    found = {
        f"{group}/{p}": block["mixer_norm"]["scale"].shape
        for group, tree in params.items()
        for p, block in tree.items()
    }
    assert found == {place: (repeats, 16) for place, repeats in expected.items()}


def test_fields_come_from_the_config_and_what_is_resolved_wins():
    config = configs.base()
    config.model.qk_norm, config.model.width = True, 96
    config.model.multipliers = {"matrix": {"init": 0.5, "lr": 2.0}, "head": {"lr": 0.1}}
    arch = from_config(
        configs.freeze(config).model, 128, compute="bfloat16", attention="splash", unroll=False
    )
    assert (arch.vocab_size, arch.width, arch.qk_norm) == (128, 96, True)
    assert (arch.compute, arch.attention, arch.unroll) == ("bfloat16", "splash", False)
    assert dict(arch.init_scales) == {"matrix": 0.5}


def test_an_architecture_is_hashable_and_frozen():
    one, other = (from_config(configs.freeze(configs.base()).model, 128) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.width = 1


@pytest.mark.parametrize(
    "multipliers, sentence",
    [
        (
            {"matrx": {"lr": 0.5}},
            "names 'matrx'; the groups are embedding, final_norm, head, matrix, own, residual, vector. Did you mean 'matrix'",
        ),
        ({"matrix": 0.5}, "multipliers.matrix is 0.5; it can hold init, lr and decay"),
        ({"matrix": {"rate": 0.5}}, "multipliers.matrix is .*rate"),
        (
            {"own": {"lr": 2.0, "init": 0.5}},
            "multipliers.own sets init, which has no effect: its initial values are your own code's. "
            "The groups with init are embedding, head, matrix, residual, vector, final_norm.",
        ),
        (
            {"embedding": {"decay": 0.5}},
            "multipliers.embedding sets decay, which has no effect: .*groups with decay are head, ",
        ),
        ({"vector": {"decay": 0}}, "multipliers.vector sets decay"),
        ({"own": {"decay": 2}}, "multipliers.own sets decay"),
    ],
)
def test_a_multiplier_that_nothing_reads_is_refused(multipliers, sentence):
    config = configs.base()
    config.model.multipliers = multipliers
    with pytest.raises(UserError, match=sentence):
        from_config(configs.freeze(config).model, 128)
