"""Before anything imports jax: eight host devices, programs compiled fast, annotations checked at run time (jaxtyping, beartype)."""

# ruff: noqa: E402  (the environment is set before anything can import jax)

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the suite's time, and half of it without LLVM's optimisations.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()

import hypothesis
import jaxtyping
import pytest

# An int passes where a float is asked for, as everywhere in Python's typing (beartype refuses it by default).
jaxtyping.install_import_hook("slmjax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# Compiling dwarfs an example's own time, so no deadline; the same examples in every run, so that a failure is never a matter of luck.
hypothesis.settings.register_profile("slmjax", deadline=None, derandomize=True, database=None, max_examples=25)
hypothesis.settings.load_profile("slmjax")


def pytest_configure(config):
    # beartype looks at random items of containers, also of those that a strategy builds; hypothesis warns of any use of `random` there.
    config.addinivalue_line("filterwarnings", "ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")


@pytest.fixture(autouse=True)
def no_silent_broadcast(request):
    """In the model and its operations a missing axis is an error."""
    if request.path.parent.name not in ("models", "ops"):
        yield
        return
    import jax

    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A small file of text; what is prepared from it, and what is compiled, is kept beside it for all tests."""
    import jax

    from tests import runs

    folder = tmp_path_factory.mktemp("corpus")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")  # for other processes
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    return runs.write_corpus(folder / "corpus.jsonl")


@pytest.fixture(scope="session")
def undisturbed(corpus, tmp_path_factory):
    """The work directory of a finished run of the smallest recipe; tests read it or copy it."""
    from tests import runs

    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert runs.train(corpus, workdir) == 0
    return workdir
