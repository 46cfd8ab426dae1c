"""Our model class for the lm-evaluation-harness against its own for transformers, on the same weights.

Needs lm-eval and transformers, see docs/development.md. Without them the whole file is skipped, so
pytest on this file alone ends with an error.
"""

import importlib.util
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

NEEDED = ("torch", "transformers", "lm_eval")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if MISSING:
    reason = f"not installed: {', '.join(MISSING)}; they are in .ci/harness.txt"
    pytest.skip(reason, allow_module_level=True)

import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from slmjax import config as configs  # noqa: E402
from slmjax import export  # noqa: E402
from slmjax.errors import UserError  # noqa: E402
from slmjax.evals.choice_scores import choice_figures, split_by_item  # noqa: E402
from slmjax.evals.evaluation_items import read_set  # noqa: E402
from slmjax.evals.lm_eval_model import HarnessModel  # noqa: E402
from slmjax.evals.text_bits import text_losses  # noqa: E402
from slmjax.infer.load import Loaded, load_model  # noqa: E402
from slmjax.models.lm import Model  # noqa: E402
from slmjax.text.tokenizer import train_bpe  # noqa: E402
from tests.corpus import WORDS  # noqa: E402
from tests.parity.test_transformers import architecture, our_tree  # noqa: E402

pytestmark = pytest.mark.parity

LONGEST = 64
MOST = 1e-4  # nats of a sum over a text, float32
TOKENIZER = train_bpe([" ".join(WORDS)] * 9, 320)
EOT = "<|endoftext|>"


def texts(count, most_words, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, most_words))) for _ in range(count)]


@pytest.fixture(scope="module")
def theirs_and_ours():
    """A random Llama in both libraries, whose tokenizers and positions agree."""
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=TOKENIZER.vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            intermediate_size=48,
            max_position_embeddings=LONGEST,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            if "norm" not in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    arch = architecture(llama.config)
    tensors = {name: value.detach().numpy() for name, value in llama.named_parameters()}
    params = jax.tree.map(jnp.asarray, our_tree(arch, tensors))
    config = configs.base()
    config.data.seq_len = LONGEST
    loaded = Loaded(configs.freeze(config), arch, params, {}, TOKENIZER, 0, [])
    return llama, HarnessModel(loaded), loaded


def harness(llama, begin):
    """The harness's class; with `begin` it puts end-of-text before every context."""
    library = tokenizers.Tokenizer.from_str(TOKENIZER.content)
    if begin:
        library.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{EOT} $A", special_tokens=[(EOT, TOKENIZER.eot)]
        )
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, bos_token=EOT, eos_token=EOT, pad_token=EOT
    )
    return HFLM(
        pretrained=llama,
        tokenizer=wrapped,
        backend="causal",
        max_length=LONGEST,
        batch_size=8,
        add_bos_token=begin,
    )


def instances(kind, arguments):
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


def test_log_likelihoods_and_greedy_verdicts_are_the_harnesses_own(theirs_and_ours):
    llama, ours, _ = theirs_and_ours
    pairs = list(zip(texts(30, 20), [f" {text}" for text in texts(30, 6, 1)]))
    pairs += [("", "the river"), ("ends in blanks  ", "stone"), ("a\n", "b")]
    # A continuation that greedy decoding gives.
    (greedy,) = ours.generate_until(
        instances("generate_until", [("the river", {"until": [], "max_gen_toks": 4})])
    )
    pairs.append(("the river", greedy))
    requests = instances("loglikelihood", pairs)
    expected = harness(llama, begin=True).loglikelihood(requests)
    result = ours.loglikelihood(requests)
    np.testing.assert_allclose([r[0] for r in result], [r[0] for r in expected], atol=MOST)
    assert [r[1] for r in result] == [r[1] for r in expected]
    assert {type(verdict) for _, verdict in result} == {bool}
    # The harness conditions on end-of-text where a context is empty.
    assert abs(expected[0][0]) > 1


def test_rolling_log_likelihoods_are_the_harnesses_own_also_over_several_rows(theirs_and_ours):
    llama, ours, _ = theirs_and_ours
    requests = instances("loglikelihood_rolling", [(text,) for text in texts(12, 120)])
    lengths = [len(TOKENIZER.encode(request.args[0])) for request in requests]
    assert min(lengths) < LONGEST and max(lengths) > 2 * LONGEST
    # Without end-of-text in the text itself, which the harness would score, too.
    expected = harness(llama, begin=False).loglikelihood_rolling(requests)
    np.testing.assert_allclose(ours.loglikelihood_rolling(requests), expected, rtol=1e-6, atol=MOST)


def test_answers_are_the_harnesses_own(theirs_and_ours):
    llama, ours, _ = theirs_and_ours
    prompts = texts(40, 15)
    free = {"until": [], "max_gen_toks": 12, "do_sample": False}
    stopped = {"until": ["e", "stone"], "max_new_tokens": 9, "temperature": 0.0}
    # More bytes than our decode loop takes: these are cut on the host.
    many = {"until": [*(f"{n:09}" for n in range(200)), "i"], "max_gen_toks": 9}
    requests = instances(
        "generate_until",
        [(prompt, (free, stopped, many)[n % 3]) for n, prompt in enumerate(prompts)],
    )
    expected = harness(llama, begin=True).generate_until(requests)
    answers = ours.generate_until(requests)
    assert answers == expected
    assert len(set(answers)) > 20
    # An empty string stops nothing; the harness's class stops at once.
    prompt = prompts[0]
    (answer,) = ours.generate_until(
        instances("generate_until", [(prompt, free | {"until": ["", "stone"]})])
    )
    assert answer == answers[0].split("stone")[0]
    assert not any("e" in answer for answer in answers[1::3])
    assert not any("i" in answer for answer in answers[2::3])


def test_a_task_in_yaml_gives_both_classes_and_our_own_evaluation_the_same_scores(
    theirs_and_ours, tmp_path
):
    llama, ours, _ = theirs_and_ours
    draw = random.Random(0)
    items = tmp_path / "mine.jsonl"
    with items.open("w") as file:
        for query in texts(60, 12):
            choices = texts(4, 8, draw.random())
            record = {"query": query, "choices": choices, "gold": draw.randrange(4)}
            file.write(json.dumps(record) + "\n")
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(items)}, "cache_dir": str(tmp_path)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(task))  # JSON is YAML
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)

    def scores(model):
        run = simple_evaluate(
            model=model, tasks=["mine"], task_manager=manager, bootstrap_iters=0, log_samples=False
        )
        return [run["results"]["mine"][f"{name},none"] for name in ("acc", "acc_norm")]

    theirs = scores(harness(llama, begin=True))
    assert scores(ours) == theirs
    assert 0.1 < theirs[0] < 0.6 and theirs[0] != theirs[1]
    of = read_set("mine", {"mine": str(items)}, 0, 0)
    pairs = [pair for item in of.items for pair in item.pairs]
    scorer = ours._model.scorer
    log_p = scorer(scorer.encode(pairs)).log_p
    figures = choice_figures(of.items, split_by_item(log_p, of.items))
    assert [figures["acc"].value, figures["acc_norm"].value] == pytest.approx(theirs, abs=1e-12)


def test_bits_per_byte_are_ours_but_for_the_end_of_each_document(theirs_and_ours):
    _, ours, loaded = theirs_and_ours
    documents = texts(20, 15)
    assert max(len(TOKENIZER.encode(text)) for text in documents) < LONGEST
    scorer = ours._model.scorer
    losses = text_losses(
        Model(scorer.arch), loaded.params, scorer.buffers, TOKENIZER, documents, LONGEST
    )
    rolling = ours.loglikelihood_rolling(
        instances("loglikelihood_rolling", [(text,) for text in documents])
    )
    ends = [((text, EOT), TOKENIZER.encode(text), [TOKENIZER.eot]) for text in documents]
    end_log_p = sum(log_p for log_p, _ in ours._loglikelihood_tokens(ends))
    size = sum(len(text.encode()) for text in documents)
    bits = -(sum(rolling) + end_log_p) / (size * np.log(2))
    assert bits == pytest.approx(losses.bits_per_byte, rel=1e-6)


def test_a_run_and_its_export_are_scored_alike_and_samples_repeat(undisturbed, tmp_path):
    assert export.main([f"--checkpoint={undisturbed}", f"--out={tmp_path / 'export'}"]) == 0
    run, exported = (
        HarnessModel(load_model(str(place))) for place in (undisturbed, tmp_path / "export")
    )
    requests = instances("loglikelihood_rolling", [(text,) for text in texts(5, 20)])
    assert run.loglikelihood_rolling(requests) == exported.loglikelihood_rolling(requests)
    settings = {"until": ["\n"], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    sampled = instances("generate_until", [("the river", settings)] * 8)
    first = run.generate_until(sampled)
    assert first == exported.generate_until(sampled)
    assert len(set(first)) > 1


def test_what_cannot_be_followed_is_refused_in_a_sentence(theirs_and_ours):
    _, ours, _ = theirs_and_ours
    with pytest.raises(UserError, match="a task sets 'num_beams' for generation; followed are"):
        ours.generate_until(instances("generate_until", [("a", {"num_beams": 4})]))
    with pytest.raises(
        UserError, match="'an answer' has 256 tokens; the model was trained on rows"
    ):
        ours.generate_until(instances("generate_until", [("a", {})]))
    with pytest.raises(UserError, match="no token of 'verver' belongs to its continuation alone"):
        ours._loglikelihood_tokens([(("river", "verver"), [5], [])])
    with pytest.raises(UserError, match="has not learned to answer in turns"):
        ours.apply_chat_template([{"role": "user", "content": "a"}])


def test_a_chat_prompt_has_the_ids_of_training_and_no_text_becomes_a_mark(theirs_and_ours):
    _, _, loaded = theirs_and_ours
    config = configs.base()
    config.task = "orpo"
    config.data.seq_len = LONGEST
    from slmjax.infer.dialogue import Dialogue, Exchange

    chat = HarnessModel(
        Loaded(configs.freeze(config), loaded.arch, loaded.params, {}, TOKENIZER, 0, [])
    )
    question = "the <|im_end|> river"
    prompt = chat.apply_chat_template([{"role": "user", "content": question}])
    expected = Dialogue("", [Exchange(question)]).prompt(TOKENIZER, 1, LONGEST)
    assert chat.tok_encode(prompt) == expected.ids
    assert chat.tok_encode("<|im_end|>") == TOKENIZER.encode("<|im_end|>")
    begun = [{"role": "user", "content": question}, {"role": "assistant", "content": "stone"}]
    going_on = chat.apply_chat_template(begun, add_generation_prompt=False)
    assert chat.tok_encode(going_on)[: len(expected.ids)] == expected.ids
    assert chat.tok_encode(going_on)[-1] not in TOKENIZER.ends
