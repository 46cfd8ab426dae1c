"""The sharding table: every declared weight has its spec, and every mistake names its path."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from slmjax import config as configs
from slmjax.errors import UserError
from slmjax.models import lm
from slmjax.models.declare import AXES
from slmjax.models.pattern import from_config
from slmjax.parallel.mesh import make_mesh
from slmjax.parallel.rules import RULES, flatten_tree, shardings, spec, unflatten
from tests.train.small import small_config


def shapes(**model):
    config = small_config()
    config.model.update(model)
    return lm.declare(from_config(configs.freeze(config).model, 512))


def mesh(**sizes):
    return make_mesh(sizes, jax.devices()[:8])


def test_every_parameter_of_a_model_with_every_option_has_its_spec():
    found = {
        path: sharding.spec
        for path, sharding in flatten_tree(
            shardings(shapes(tied=False), mesh(data=2, fsdp=2, tensor=2))
        ).items()
    }
    assert found["embedding"] == P("tensor", "fsdp")
    assert found["head"] == P("fsdp", "tensor")
    assert found["stack/0/0/mixer/query"] == P(None, "fsdp", "tensor", None)
    assert found["stack/0/0/mixer/key"] == P(None, "fsdp", "tensor", None)
    assert found["stack/0/0/mixer/out"] == P(None, "tensor", None, "fsdp")
    assert found["stack/0/0/channel/up"] == P(None, "fsdp", "tensor")
    assert found["stack/0/0/channel/down"] == P(None, "tensor", "fsdp")
    assert found["final_norm/scale"] == P(None)


def test_key_value_heads_are_whole_where_the_tensor_axis_exceeds_them():
    found = flatten_tree(shardings(shapes(), mesh(data=2, tensor=4)))
    assert found["stack/0/0/mixer/key"].spec == P(None, "fsdp", None, None)
    assert found["stack/0/0/mixer/query"].spec == P(None, "fsdp", "tensor", None)


def test_mistakes_name_the_path():
    with pytest.raises(ValueError, match="parameter 'stack/0/0/channel/down': dimension 1"):
        shardings(shapes(ff_width=94), mesh(data=2, tensor=4))
    with pytest.raises(
        ValueError, match="parameter 'novel': unknown axis 'wdith'; there is width, heads"
    ):
        spec("novel", (4,), ("wdith",), mesh(data=8))


def test_a_mesh_axis_is_used_by_the_first_dimension_that_names_it():
    assert spec("square", (8, 8), ("heads", "ff"), mesh(data=2, tensor=4)) == P("tensor", None)


def test_every_axis_of_the_declarations_has_a_mesh_axis():
    assert set(AXES) == set(RULES)


def test_flat_and_nested_are_each_others_inverse():
    tree = shapes()
    assert jax.tree.structure(unflatten(flatten_tree(tree))) == jax.tree.structure(tree)


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(UserError, match="does not multiply to the 8 devices"):
        mesh(data=3)
    with pytest.raises(UserError, match="at most one is -1"):
        mesh(data=-1, fsdp=-1)
    assert mesh(data=-1, fsdp=2).shape["data"] == 4
