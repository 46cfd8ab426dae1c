"""Loss and gradients of ORPO against TRL's and Tunix's own code, and against the paper's formula.

The three define it differently:

| | NLL over | NLL is the mean over | odds of | rows |
| --- | --- | --- | --- | --- |
| paper | chosen answer | tokens, then pairs | mean log p of an answer's tokens | |
| TRL 1.16 | chosen answer and prompt | tokens of the microbatch | the same mean | padded |
| Tunix 0.1.7 | chosen answer | tokens, then pairs | summed log p of an answer's tokens | padded |
| ours | `nll_on` | `nll_reduction`, over the batch | the mean | packed |

Needs TRL and Tunix, see docs/development.md. Without them the whole file is skipped, so pytest on
this file alone ends with an error.
"""

import copy
import functools
import importlib
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.data.pair_plan import NLL_ON, NLL_REDUCTIONS, PairPlan
from slmjax.data.prepare import prepare
from slmjax.models.lm import Model
from slmjax.tasks.orpo import Orpo
from tests.data.test_pair_rows import pairs, write
from tests.data.test_prepare import settings
from tests.tasks.test_orpo import NoRows

NEEDED = ("torch", "transformers", "trl", "tunix")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if MISSING:
    reason = f"not installed: {', '.join(MISSING)}; they are in .ci/orpo.txt and .ci/tunix.txt"
    pytest.skip(reason, allow_module_level=True)

import torch  # noqa: E402
import transformers  # noqa: E402

from tests.parity.test_transformers import architecture, our_tree  # noqa: E402

pytestmark = pytest.mark.parity

MOST = 1e-5  # relative, float32
ODDS_WEIGHT = 0.25
KEY = jax.random.key(0)
# Modules that Tunix's files import and its loss does not use.
UNUSED_BY_TUNIX = ("metrax", "metrax.logging", "sentencepiece")
UNUSED_NAMES = ("LoggingBackend", "TensorboardBackend", "WandbBackend", "SentencePieceProcessor")


@pytest.fixture(scope="module")
def trl():
    """TRL's module of the ORPO trainer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        return importlib.import_module("trl.experimental.orpo.orpo_trainer")


@pytest.fixture(scope="module")
def trainer(trl):
    """TRL's trainer with what its loss reads, and nothing else."""
    trainer = object.__new__(trl.ORPOTrainer)
    trainer.is_encoder_decoder = trainer.aux_loss_enabled = False
    trainer.padding_value = 0
    trainer.beta = ODDS_WEIGHT
    trainer.accelerator = types.SimpleNamespace(
        device=torch.device("cpu"), gather_for_metrics=lambda tensor: tensor
    )
    return trainer


@pytest.fixture(scope="module")
def tunix():
    """Tunix's module of DPO and ORPO.

    The package's own __init__ imports every trainer, so an empty one with the same files stands in
    for it.
    """
    found = importlib.util.find_spec("tunix")
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        package = types.ModuleType("tunix")
        package.__path__ = list(found.submodule_search_locations)
        patch.setitem(sys.modules, "tunix", package)
        for name in UNUSED_BY_TUNIX:
            module = types.ModuleType(name)
            for unused in UNUSED_NAMES:
                setattr(module, unused, type(unused, (), {}))
            patch.setitem(sys.modules, name, module)
        sys.modules["metrax"].logging = sys.modules["metrax.logging"]
        yield importlib.import_module("tunix.sft.dpo.dpo_trainer")
    for name in set(sys.modules) - before:
        if name.startswith("tunix"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    source = {"path": write(folder / "pairs.jsonl", pairs(40)), "kind": "pairs"}
    data = settings({"pairs": source}, vocab_size=300)
    return prepare(data, seed=0, cache=folder / "cache", processes=1)


@pytest.fixture(scope="module")
def theirs(prepared):
    """A tiny Qwen3 of transformers with random weights."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=prepared.tokenizer.vocab_size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=96,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        attn_implementation="eager",
        tie_word_embeddings=False,
    )
    model = transformers.Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.15 * noise)
    return model


def batch_of(prepared, nll_on, nll_reduction):
    """Return a packed batch, [4,320], of real pairs."""
    plan = PairPlan(
        train=prepared.train,
        seq_len=320,
        batch=4,
        steps=2,
        seed=3,
        nll_on=nll_on,
        nll_reduction=nll_reduction,
    )
    return plan.unpack(plan.read(0, range(4)))


def unpacked(batch):
    """Return [(chosen, rejected), ...] of a packed batch; each is (ids, is_answer), both [n]."""
    dialogues = []
    for tokens, segments, answers in zip(batch["tokens"], batch["segments"], batch["answers"]):
        for number in range(1, segments.max() + 1):
            here = segments == number
            # A batch says at which places the next token is an answer's.
            is_answer = np.insert(answers[here][:-1] > 0, 0, False)
            dialogues.append((tokens[here], is_answer))
    both = list(zip(dialogues[::2], dialogues[1::2], strict=True))
    lengths = {(chosen[1].sum(), rejected[1].sum()) for chosen, rejected in both}
    assert len(both) == batch["pairs"].sum() > 6 and len(lengths) > 4
    return both


@functools.partial(jax.jit, static_argnames=("model", "odds_weight"))
def ours(model, params, batch, odds_weight=ODDS_WEIGHT):
    """Return (loss, means of the terms, gradients of the parameters) of a batch."""
    task = Orpo(NoRows(), odds_weight=odds_weight)
    totals = task.totals(batch)

    def mean(params):
        loss = task.loss(model, params, {}, batch, totals, key=KEY, step=jnp.int32(0))
        return loss.sum / totals["main"], loss.terms

    (loss, terms), gradients = jax.value_and_grad(mean, has_aux=True)(params)
    return loss, {name: total / count for name, (total, count) in terms.items()}, gradients


def moved(theirs, what=lambda parameter: parameter):
    """Return (our model, tree of theirs' parameters, or of what they have, such as gradients)."""
    arch = architecture(theirs.config)
    tensors = {
        name: what(parameter).detach().float().numpy()
        for name, parameter in theirs.named_parameters()
    }
    return Model(arch), our_tree(arch, tensors)


def assert_near(found, expected, most=MOST):
    """Both are trees of gradients: for each leaf, the error's norm relative to the leaf's."""
    for (path, one), other in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        size = np.linalg.norm(other)
        error = np.linalg.norm(np.asarray(one, np.float64) - other)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert size > 0 and error <= most * size, f"{name}: {error / size:.1e}"


def trl_batch(both):
    """Return TRL's batch of pairs, made by its own collator."""
    from trl.experimental.utils import DPODataCollatorWithPadding

    features = []
    for pair in both:
        feature = {}
        for side, (ids, is_answer) in zip(("chosen", "rejected"), pair):
            feature[f"{side}_input_ids"] = ids
            feature[f"{side}_attention_mask"] = np.ones_like(ids)
            feature[f"{side}_labels"] = np.where(is_answer, ids, -100)
        features.append(feature)
    return DPODataCollatorWithPadding(pad_token_id=0)(features)


def test_loss_and_gradients_are_those_of_trl(trainer, theirs, prepared):
    batch = batch_of(prepared, "sequence", "token")
    model, params = moved(theirs)
    loss, terms, gradients = ours(model, params, batch)
    theirs.zero_grad()
    their_loss, metrics = trainer.get_batch_loss_metrics(theirs, trl_batch(unpacked(batch)))
    their_loss.backward()
    np.testing.assert_allclose(loss, their_loss.item(), rtol=MOST)
    np.testing.assert_allclose(terms["loss"], metrics["nll_loss"], rtol=MOST)
    np.testing.assert_allclose(-terms["odds"], metrics["log_odds_ratio"], rtol=MOST)
    np.testing.assert_allclose(terms["margin"], metrics["log_odds_chosen"], rtol=MOST, atol=MOST)
    np.testing.assert_allclose(terms["preferred"], metrics["rewards/accuracies"], rtol=MOST)
    assert 0 < terms["preferred"] < 1
    _, their_gradients = moved(theirs, lambda parameter: parameter.grad)
    assert_near(gradients, their_gradients)


def test_trls_mean_depends_on_how_a_batch_is_cut(trainer, theirs, prepared):
    """Ours does not, see tests/tasks/test_orpo.py."""
    both = unpacked(batch_of(prepared, "sequence", "token"))
    both = sorted(both[: len(both) // 2 * 2], key=lambda pair: len(pair[0][0]))
    half = len(both) // 2
    with torch.no_grad():
        whole, first, second = (
            trainer.get_batch_loss_metrics(theirs, trl_batch(part))[0].item()
            for part in (both, both[:half], both[half:])
        )
    assert abs((first + second) / 2 - whole) > 1e-3


def by_the_paper(model, both, nll_on, nll_reduction):
    """Return the loss by equations 1 to 7 of Hong et al. 2024, one dialogue after the other."""
    means, nll_sums, nll_counts = [], [], []
    for pair in both:
        for ids, is_answer in pair:
            ids = torch.tensor(ids, dtype=torch.long)
            log_p = model(ids[None]).logits[0, :-1].log_softmax(-1)
            log_p = log_p.gather(-1, ids[1:, None])[:, 0]
            is_answer = torch.tensor(is_answer[1:])
            means.append(log_p[is_answer].mean())
            used = log_p if nll_on == "sequence" else log_p[is_answer]
            nll_sums.append(-used.sum())
            nll_counts.append(len(used))
    nll_sums, nll_counts = torch.stack(nll_sums[::2]), torch.tensor(nll_counts[::2])
    if nll_reduction == "sequence":
        nll = (nll_sums / nll_counts).mean()
    else:
        nll = nll_sums.sum() / nll_counts.sum()
    p = torch.stack(means).exp()
    odds = p / (1 - p)
    return nll - ODDS_WEIGHT * torch.sigmoid(torch.log(odds[::2] / odds[1::2])).log().mean()


@pytest.mark.parametrize("nll_on", NLL_ON)
@pytest.mark.parametrize("nll_reduction", NLL_REDUCTIONS)
def test_loss_and_gradients_are_the_papers_in_float64(theirs, prepared, nll_on, nll_reduction):
    batch = batch_of(prepared, nll_on, nll_reduction)
    wide = copy.deepcopy(theirs).double()
    wide.zero_grad()
    expected = by_the_paper(wide, unpacked(batch), nll_on, nll_reduction)
    expected.backward()
    loss, _, gradients = ours(*moved(theirs), batch)
    np.testing.assert_allclose(loss, expected.item(), rtol=MOST)
    _, expected_gradients = moved(wide, lambda parameter: parameter.grad)
    assert_near(gradients, expected_gradients)


def tunix_example(tunix, both):
    """Return Tunix's batch of pairs: prompts padded on the left, answers on the right."""

    def padded(arrays, most, left):
        ids, mask = np.zeros((2, len(arrays), most), np.int32)
        for row, array in enumerate(arrays):
            place = slice(most - len(array), most) if left else slice(0, len(array))
            ids[row, place], mask[row, place] = array, 1
        return jnp.asarray(ids), jnp.asarray(mask)

    prompts = [ids[: is_answer.argmax()] for (ids, is_answer), _ in both]
    fields = dict(zip(("prompt_ids", "prompt_mask"), padded(prompts, 64, left=True)))
    for side, dialogues in zip(("chosen", "rejected"), zip(*both)):
        answers = [ids[is_answer] for ids, is_answer in dialogues]
        fields |= dict(zip((f"{side}_ids", f"{side}_mask"), padded(answers, 96, left=False)))
    trainer = object.__new__(tunix.DPOTrainer)
    trainer.model, trainer._ref_model_exists = None, False
    return trainer._prepare_inputs(tunix.TrainingInput(**fields))


def tunix_loss(tunix, forward, params, example, odds_weight=ODDS_WEIGHT):
    """Return (loss, what Tunix logs, gradients of the parameters).

    Args:
      forward: (params, tokens, positions, attention_mask) -> logits [B,T,V].
    """
    from flax import nnx

    leaves, tree = jax.tree.flatten(params)

    class Wrapped(nnx.Module):
        def __init__(self):
            self.leaves = nnx.List([nnx.Param(jnp.asarray(leaf)) for leaf in leaves])

        def __call__(self, tokens, *, positions, attention_mask, cache):
            params = jax.tree.unflatten(tree, [leaf[...] for leaf in self.leaves])
            return forward(params, tokens, positions, attention_mask), None

    # As in Tunix's PeftTrainer.
    step = nnx.value_and_grad(tunix.dpo_loss_fn, has_aux=True)
    (loss, logged), gradients = step(
        Wrapped(), example, algorithm="orpo", lambda_orpo=odds_weight, label_smoothing=0.0
    )
    gradients = [gradients["leaves"][number][...] for number in range(len(leaves))]
    return loss, logged, jax.tree.unflatten(tree, gradients)


def forward_of(model):
    """Return our model as `tunix_loss` takes it."""

    def forward(params, tokens, positions, attention_mask):
        # A token sees itself unless it is padding.
        segments = jnp.diagonal(attention_mask, axis1=1, axis2=2).astype(jnp.int32)
        batch = {"tokens": tokens, "positions": positions, "segments": segments}
        hidden, _ = model.forward(params, {}, batch)
        return hidden @ model.head(params)

    return forward


def test_loss_and_gradients_are_those_of_tunix_with_means(tunix, theirs, prepared):
    """Tunix sums log p over a mask, so a mask that adds up to 1 makes its sums means."""
    batch = batch_of(prepared, "chosen", "sequence")
    model, params = moved(theirs)
    example = tunix_example(tunix, unpacked(batch))
    mask = example.completion_mask
    example = example.replace(completion_mask=mask / mask.sum(-1, keepdims=True))
    their_loss, logged, their_gradients = tunix_loss(tunix, forward_of(model), params, example)
    loss, terms, gradients = ours(model, params, batch)
    np.testing.assert_allclose(loss, their_loss, rtol=MOST)
    np.testing.assert_allclose(terms["loss"], logged["sft_loss"], rtol=MOST)
    np.testing.assert_allclose(terms["odds"], logged["or_loss"], rtol=MOST)
    np.testing.assert_allclose(terms["preferred"], logged["rewards/accuracy"], rtol=MOST)
    assert_near(gradients, their_gradients)


def test_tunix_takes_the_odds_of_whole_answers(tunix, theirs, prepared):
    """With its own mask of ones: its NLL is the paper's and ours, its odds are not."""
    batch = batch_of(prepared, "chosen", "sequence")
    both = unpacked(batch)
    model, params = moved(theirs)
    example = tunix_example(tunix, both)
    loss, logged, gradients = tunix_loss(tunix, forward_of(model), params, example, 0.0)
    our_loss, _, our_gradients = ours(model, params, batch, odds_weight=0.0)
    np.testing.assert_allclose(our_loss, loss, rtol=MOST)
    assert_near(our_gradients, gradients)
    # A whole answer has so small a p that its log-odds are its log p: longer answers have less.
    sums = []
    for ids, is_answer in (dialogue for pair in both for dialogue in pair):
        with torch.no_grad():
            log_p = theirs(torch.tensor(ids[None], dtype=torch.long)).logits[0].log_softmax(-1)
        (places,) = np.nonzero(is_answer)
        sums.append(log_p[places - 1, ids[places]].sum().item())
    sums = np.asarray(sums)
    expected = np.logaddexp(0, sums[1::2] - sums[::2]).mean()
    np.testing.assert_allclose(logged["or_loss"], expected, rtol=MOST)
    _, terms, _ = ours(model, params, batch)
    assert abs(terms["odds"] - expected) > 0.5
