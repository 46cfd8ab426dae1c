"""Before anything imports jax: eight host devices, fast compiles, one compile cache, and annotations checked at run time."""

# ruff: noqa: E402  (the environment is set before anything can import jax)

import importlib.metadata
import os
import shutil
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Compiling takes most of the suite's time. Without LLVM's optimisations it takes half; with XLA's
# older code generator, in one piece, a fifth of that: the gradient of a recurrence compiles in
# 0.3 s instead of 1.4. jaxlib 0.11.2 no longer has that generator.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
_FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
# Tests of curation and of data also run where there is no JAX at all.
_JAXLIB = [of.version for of in importlib.metadata.distributions(name="jaxlib")]
if any(version.startswith("0.10.") for version in _JAXLIB):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
# XLA's threads block in a collective. With as many threads as devices, two independent all-reduces
# can wait for each other for ever: some threads in the one, the rest in the other.
os.environ.setdefault("NPROC", "32")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
# One cache of compiled programs for all workers and all processes that tests start. A folder that
# the caller names is kept.
_OWN_CACHE = (
    "" if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="slmjax-compiled-")
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _OWN_CACHE)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import jaxtyping
import pytest

# An int passes where a float is asked for, as everywhere in Python's typing (beartype refuses it by default).
jaxtyping.install_import_hook(
    "slmjax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

# Compiling dwarfs an example's own time, so no deadline; the same examples in every run, so that a failure is never a matter of luck.
hypothesis.settings.register_profile(
    "slmjax", deadline=None, derandomize=True, database=None, max_examples=25
)
hypothesis.settings.load_profile("slmjax")


def pytest_configure(config):
    # beartype looks at random items of containers, also of those that a strategy builds; hypothesis warns of any use of `random` there.
    config.addinivalue_line(
        "filterwarnings",
        "ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning",
    )


def pytest_unconfigure(config):
    # A worker inherits the variable, so only the process that made the folder removes it.
    if _OWN_CACHE:
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


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
    """A small file of text; what is prepared from it is kept next to it for all tests."""
    from tests.corpus import write_corpus

    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="module")
def without_reports():
    """Runs write no report: reports have tests of their own, and each costs a second."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("loop", "run"):
            patch.setattr(f"slmjax.train.{module}.write_report", lambda *_, **__: "report.html")
        yield


@pytest.fixture(scope="session")
def undisturbed(corpus, tmp_path_factory):
    """The work directory of a finished run of the smallest recipe; tests read it or copy it."""
    from tests import runs

    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert runs.train(corpus, workdir) == 0
    return workdir
