"""What is declared of each weight, parameter by parameter."""

import flax.linen as nn
import jax
import pytest

from slmjax.models import lm
from slmjax.models.architecture import Architecture, Block
from slmjax.models.declare import weight
from slmjax.models.layers import TokenMixer
from slmjax.models.pattern import parse_block
from slmjax.parallel.rules import flatten_tree

# Every parameter of a model with every option: group, updated by Muon, decays, axes that its product sums over.
EVERY_PARAMETER = (
    {
        "embedding": ("embedding", False, False, 0),
        "final_norm/scale": ("final_norm", False, False, 0),
        "head": ("head", False, True, 1),
        "stack/0/0/channel/down": ("residual", True, True, 1),
        "stack/0/0/channel/gate": ("matrix", True, True, 1),
        "stack/0/0/channel/up": ("matrix", True, True, 1),
        "stack/0/0/channel_norm/scale": ("vector", False, False, 0),
        "stack/0/0/mixer/gate": ("matrix", True, True, 1),
        "stack/0/0/mixer/key": ("matrix", True, True, 1),
        "stack/0/0/mixer/key_norm/scale": ("vector", False, False, 0),
        "stack/0/0/mixer/out": ("residual", True, True, 2),
        "stack/0/0/mixer/query": ("matrix", True, True, 1),
        "stack/0/0/mixer/query_norm/scale": ("vector", False, False, 0),
        "stack/0/0/mixer/value": ("matrix", True, True, 1),
        "stack/0/0/mixer_norm/scale": ("vector", False, False, 0),
    }
    | {
        f"stack/1/{position}/mixer/{name}": group
        for position, names in enumerate(
            (
                "gate value write read step out step_bias decay_log skip out_norm/scale conv_value conv_write conv_read conv_value_bias "
                "conv_write_bias conv_read_bias",
                "query key value gate out decay_down decay_up decay_bias out_norm/scale",
                "query key value gate out decay erase decay_log decay_bias out_norm/scale conv_query conv_key conv_value",
                "query key value gate_down gate_up out decay_down decay_up erase decay_log decay_bias out_norm/scale conv_query conv_key "
                "conv_value",
            )
        )
        for name in names.split()
        for group in [
            ("residual", True, True, 2)
            if name == "out"
            else ("matrix", True, True, 1)
            if name in ("query", "key", "value", "gate", "write", "read")
            else ("matrix", False, True, 1)
            if name in ("step", "decay", "erase", "decay_down", "decay_up", "gate_down", "gate_up")
            else ("vector", False, False, 0)
        ]
    }
    | {f"stack/1/{position}/mixer_norm/scale": ("vector", False, False, 0) for position in range(5)}
    | {"stack/1/4/own/mix": ("own", False, False, 0)}
)


RECURRENT = tuple(
    Block(mixer, "none") for mixer in ("ssm", "gla", "gdn", "kda", "tests.models.own:Mean")
)


def declared(*more):
    pattern = tuple(map(parse_block, more)) or (Block(),)
    arch = Architecture(
        16,
        8,
        2,
        1,
        4,
        12,
        ((pattern, 3), (RECURRENT, 3)),
        qk_norm=True,
        output_gate=True,
        tied=False,
    )
    return arch, flatten_tree(lm.declare(arch))


def test_every_parameter_has_the_declaration_that_is_written_here():
    _, found = declared()
    assert {
        path: (w.group, w.takes_muon, w.decays, len(w.inputs)) for path, w in found.items()
    } == EVERY_PARAMETER


def test_declarations_are_laid_out_as_the_parameters_and_say_their_shapes():
    arch, found = declared()
    tree = flatten_tree(jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0)))
    assert {path: leaf.shape for path, leaf in tree.items()} == {
        path: w.shape for path, w in found.items()
    }


def test_a_declaration_names_the_axes_that_the_product_sums_over():
    """Stacked axes are neither inputs nor outputs: what is left of each matrix is what it writes."""
    width, heads, head_dim, ff_width = 8, 2, 4, 12
    _, found = declared()
    inputs = {
        path: tuple(w.shape[i] for i in w.inputs)
        for path, w in found.items()
        if w.takes_muon and path != "head"
    }
    assert inputs.pop("stack/0/0/mixer/out") == (heads, head_dim)
    assert inputs.pop("stack/1/0/mixer/out") == (4, head_dim)  # Mamba-2 is twice as wide
    assert all(
        inputs.pop(f"stack/1/{position}/mixer/out") == (heads, head_dim) for position in (1, 2, 3)
    )
    assert inputs.pop("stack/0/0/channel/down") == (ff_width,)
    assert set(inputs.values()) == {(width,)}
    for path, w in found.items():
        stacked = path.startswith("stack/")
        assert not stacked or (
            w.shape[0] == 3 and 0 not in w.inputs + w.outputs and w.axes[0] is None
        )


class Wrong(TokenMixer):
    """Declares what `MISTAKES` says."""

    @nn.compact
    def __call__(self, x, *, ctx, cache=None, shared=None):
        weight(self, "one", (4, 2), **CURRENT)
        return x, cache, shared


MISTAKES = [
    ({"axes": ("width",), "inputs": (0,)}, "weight 'one': 1 axes for the shape"),
    (
        {"axes": ("width", "wdith"), "inputs": (0,)},
        "weight 'one': unknown axis 'wdith'; there is width, heads",
    ),
    (
        {"group": "matrices", "inputs": (0,)},
        "weight 'one': unknown group 'matrices'; there is embedding, head, matrix, residual, vector, final_norm",
    ),
    (
        {"inputs": (0,), "outputs": (0, 1)},
        "weight 'one': inputs and outputs must be different dimensions",
    ),
    ({"inputs": (2,)}, "weight 'one': inputs and outputs must be different dimensions"),
    ({}, "weight 'one': a matrix needs inputs"),
]
CURRENT: dict = {}


@pytest.mark.parametrize("settings, sentence", MISTAKES)
def test_a_declaration_that_does_not_fit_its_shape_is_an_error_that_names_the_weight(
    settings, sentence, monkeypatch
):
    monkeypatch.setitem(globals(), "CURRENT", settings)
    arch = Architecture(
        16, 8, 2, 1, 4, 12, (((Block("tests.models.test_declare:Wrong", "none"),), 1),)
    )
    with pytest.raises(ValueError, match=sentence):
        lm.declare(arch)
