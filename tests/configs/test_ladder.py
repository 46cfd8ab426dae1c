"""The recipes of the ladder are what their names and docstrings say."""

import ast
import re
from pathlib import Path

import pytest

from slmjax import config as configs
from slmjax.config.run_phases import run_phases
from slmjax.models import choose_shape, sizes
from slmjax.models.pattern import from_config
from slmjax.text.sources import parse_sources

FOLDER = Path(__file__).parents[2] / "configs"
LADDER = ("10m", "50m", "100m", "300m", "1b")
H100 = 989.4e12


@pytest.fixture(params=LADDER)
def recipe(request):
    """(name, config, architecture, docstring)."""
    file = FOLDER / f"{request.param}.py"
    config = configs.freeze(configs.load_recipe(str(file)))
    return (
        request.param,
        config,
        from_config(config.model, config.model.vocab_size),
        ast.get_docstring(ast.parse(file.read_text())),
    )


def test_the_total_is_within_three_percent_of_the_name(recipe):
    name, _, arch, _ = recipe
    assert sizes.parameters(arch).total == pytest.approx(choose_shape.parse_params(name), rel=0.03)


def test_the_shape_is_the_one_of_the_params_dial(recipe):
    name, config, _, _ = recipe
    shape = choose_shape.shape_for(choose_shape.parse_params(name), 16384)
    assert {field: getattr(config.model, field) for field in shape} == shape
    assert config.model.vocab_size == config.data.vocab_size == 16384
    assert config.model.head_dim == (128 if name in ("100m", "300m", "1b") else 64)


def test_the_docstring_says_the_counts_and_the_time(recipe):
    """Numbers in the docstring against the closed forms, to the digits that are printed."""
    _, config, arch, doc = recipe
    count = sizes.parameters(arch)
    found = re.search(
        r"Size: ([\d.]+)([MB]) parameters in all, ([\d.]+)[MB] without the embedding, ([\d.]+)[MB] in matrix products",
        doc,
    )
    unit = {"M": 1e6, "B": 1e9}[found[2]]
    assert [float(found[i]) * unit for i in (1, 3, 4)] == pytest.approx(list(count), rel=2e-3)

    tokens = config.train.steps * config.train.batch * config.data.seq_len
    flops = tokens * sizes.train_flops_per_token(arch, config.data.seq_len)
    found = re.search(
        r"Time: ([\d.]+)([MB]) tokens are ([\d.e]+) FLOPs, ([\d.]+) H100-hours at an assumed 40 % of 989",
        doc,
    )
    assert float(found[1]) * {"M": 1e6, "B": 1e9}[found[2]] == pytest.approx(tokens, rel=5e-3)
    assert float(found[3]) == pytest.approx(flops, rel=5e-3)
    assert float(found[4]) == pytest.approx(flops / (0.4 * H100) / 3600, rel=5e-3, abs=5e-3)
    assert "Score: not yet measured." in doc and "python -m slmjax.launch --config=configs/" in doc


def test_a_public_corpus_is_the_default_from_100m_up(recipe):
    name, config, _, _ = recipe
    sources = (
        {source.name: source for source in parse_sources(config.data.sources)}
        if config.data.sources
        else {}
    )
    assert bool(sources) is (name in ("100m", "300m", "1b"))
    for source in sources.values():
        assert all(
            path.startswith("hf://datasets/") and path.endswith("/*.parquet")
            for path in source.path
        )
        assert source.field == "text"


def test_from_100m_up_a_step_has_half_a_million_tokens(recipe):
    name, config, _, _ = recipe
    if name in ("100m", "300m", "1b"):
        assert config.train.batch * config.data.seq_len == 2**19
        assert config.model.qk_norm


def test_300m_anneals_in_a_last_phase_of_50_billion_tokens():
    config = configs.freeze(configs.load_recipe(str(FOLDER / "300m.py")))
    trunk, anneal = run_phases(config.data, config.train)
    assert trunk.stop == anneal.first and anneal.stop == config.train.steps == 476_837
    assert (trunk.stop - trunk.first) * trunk.step_tokens == pytest.approx(200e9, rel=1e-5)
    assert (anneal.stop - anneal.first) * anneal.step_tokens == pytest.approx(50e9, rel=1e-5)
    assert trunk.weights == {"web": 1.0} and sum(anneal.weights.values()) == pytest.approx(1)
    assert set(anneal.weights) == set(config.data.sources)
    assert (trunk.rate, anneal.rate) == ((1, 1), (1, 0))
