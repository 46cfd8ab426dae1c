"""The Llama peer trains as our own step does: same loss and parameters from the same start, on packed rows of several documents."""

import json

import jax
import numpy as np
import pytest

from slmjax import compare, config
from slmjax.data.loader import batch_rows, heldout_batches
from slmjax.data.prepare_stage import batch_plan, prepared_text
from slmjax.errors import UserError
from slmjax.models.resolve import resolve
from slmjax.parallel.mesh import make_mesh
from slmjax.tasks.language_modeling import LanguageModeling
from slmjax.train.program import make_program

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from slmjax.bench.peers import llama as llama_peer  # noqa: E402
from slmjax.bench.peers.llama_weights import llama_weights  # noqa: E402

pytestmark = pytest.mark.parity

RECIPE = """
from slmjax import config

def get_config():
    c = config.base()
    c.model.width, c.model.layers, c.model.heads, c.model.kv_heads, c.model.head_dim, c.model.ff_width = 32, 2, 4, 2, 8, 64
    c.data.sources = {{"numbers": {{"path": "{folder}/numbers.jsonl"}}, "letters": {{"path": "{folder}/letters.jsonl"}}}}
    c.data.vocab_size, c.data.seq_len, c.data.heldout, c.data.cache = 300, 64, 0.1, "{folder}/prepared"
    c.train.steps, c.train.batch, c.train.warmup, c.train.decay = 6, 8, 2, 0.4
    # Norms of a first step are far above clip, as they are meant to be; eps keeps a gradient that is rounding noise from becoming a step.
    c.train.lr, c.train.clip, c.train.weight_decay, c.train.eps = 1e-2, 0.5, 0.3, 1e-5
    c.eval.every, c.eval.tokens, c.log.every = 0, 2000, 2
    return c
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe over two small sources of short documents, so that every row is packed."""
    folder, draw = tmp_path_factory.mktemp("peer"), np.random.default_rng(0)
    for name, words in (
        ("numbers", [str(n) for n in range(50)]),
        ("letters", [chr(97 + i) * 2 for i in range(26)]),
    ):
        texts = [" ".join(draw.choice(words, draw.integers(3, 20))) for _ in range(150)]
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts)
        )
    (folder / "recipe.py").write_text(RECIPE.format(folder=folder))
    return folder / "recipe.py"


@pytest.mark.slow
def test_three_steps_from_our_weights_equal_ours(recipe):
    c = config.load_recipe(str(recipe))
    c.train.microbatches = 2
    c.model.attention, c.model.unroll = (
        "reference",
        "False",
    )  # compiles fastest; the other kernels are compared with it elsewhere
    c = config.freeze(c)
    prepared = prepared_text(c.data, str(recipe.parent / "run"))
    plan = batch_plan(c.data, c.train, prepared, seed=c.seed)
    batches = [batch_rows(plan, step, range(c.train.batch)) for step in range(3)]
    assert all((batch["segments"].max(axis=1) > 1).all() for batch in batches)

    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        program = make_program(c, mesh, prepared.tokenizer.vocab_size)
        arch, state = program.arch, program.init()
        start = llama_weights(arch, state.params)
        step, ours = program.compile(LanguageModeling(plan)), []
        for number, batch in enumerate(batches):
            state, metrics = step(state, batch, program.rates(number))
            ours.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        expected = llama_weights(arch, state.params)

    peer = llama_peer.Peer(c, arch, llama_peer.Choices(init="ours", compile=False))
    theirs = [tuple(peer.step(batch, number).tolist()) for number, batch in enumerate(batches)]
    np.testing.assert_allclose(theirs, ours, rtol=1e-4)
    found = {name: value.numpy() for name, value in peer.model.state_dict().items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4, rtol=0, err_msg=name)
        # Three steps moved it a hundred times further than the tolerance: equality is not that of an untouched parameter.
        assert np.abs(value - start[name]).max() > 1e-2, name


def test_a_document_in_a_packed_row_scores_as_if_alone(recipe):
    c = config.freeze(config.load_recipe(str(recipe)))
    prepared = prepared_text(c.data, str(recipe.parent / "run"))
    arch, _ = resolve(
        c.model,
        c.precision,
        make_mesh({"data": 1}, jax.devices()[:1]),
        prepared.tokenizer.vocab_size,
    )
    peer = llama_peer.Peer(c, arch, llama_peer.Choices(init="ours", compile=False))
    shards = prepared.heldout["numbers"]
    batch = next(iter(heldout_batches(shards, seq_len=c.data.seq_len, batch=8)))
    packed = np.asarray(peer.score(batch))
    for doc in np.unique(batch["documents"][batch["documents"] >= 0])[:5]:
        tokens = torch.tensor(shards.read(int(doc), 0, int(shards.lengths[doc]))).long()
        with torch.no_grad():
            logits = peer.model(tokens[None, :-1]).logits[0]
        alone = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none").numpy()
        np.testing.assert_allclose(packed[batch["documents"] == doc], alone, rtol=1e-4, atol=1e-5)


def test_the_command_writes_a_work_directory_that_compare_reads(recipe, capsys):
    runs = [str(recipe.parent / name) for name in ("own", "ours")]
    for workdir in runs:
        assert (
            llama_peer.main(
                [
                    f"--config={recipe}",
                    f"--workdir={workdir}",
                    f"--init={workdir.rpartition('/')[2]}",
                ]
            )
            == 0
        )
    result = json.loads((recipe.parent / "own" / "peer.json").read_text())
    assert set(result["bits_per_byte"]) == {"total", "numbers", "letters"}
    assert [step for step, _ in result["loss"]] == [2, 4, 6] and result["tokens_per_second"] > 0
    comparison = compare.compare(runs)
    assert [run.config["peer.init"] for run in comparison.runs] == ["own", "ours"]
    total = compare.bits_per_byte(comparison.paired)[0]
    assert total == pytest.approx(result["bits_per_byte"]["total"], rel=1e-6)
    capsys.readouterr()
    assert llama_peer.main([f"--config={recipe}", f"--workdir={runs[0]}"]) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "field, value",
    [
        ("model.qk_norm", "True"),
        ("model.share_blocks", "2"),
        ("train.optimizer", "muon"),
        ("train.z_loss", "1e-4"),
    ],
)
def test_what_the_peer_cannot_equal_is_refused(recipe, field, value):
    c = config.freeze(config.override(config.load_recipe(str(recipe)), [f"{field}={value}"]))
    with pytest.raises(UserError, match=field):
        llama_peer.run(c, str(recipe.parent / "refused"), llama_peer.Choices())
