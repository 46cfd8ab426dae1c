"""Ids and answer mask of random dialogues against Hugging Face's own rendering of the template."""

import numpy as np
import pytest
from etils import epath

from slmjax import config as configs
from slmjax.data.answer_mask import answer_mask
from slmjax.exported.tokenizer_files import write_tokenizer_files
from slmjax.text.chat_template import (
    TEMPLATE,
    TRAINING_TEMPLATE,
    chat_ids,
    dialogue_parts,
    prompt_parts,
)
from slmjax.text.conversations import ASSISTANT
from slmjax.text.tokenizer import EOT, TURN_END, TURN_START, Special, train_bpe
from tests.parity.hostile_dialogues import HOSTILE, dialogues, harmless

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def ours():
    texts = ["the assistant says plain words and more words to the user 3.14 '\n\n'"] * 50
    return train_bpe([*texts, *HOSTILE], 400)


@pytest.fixture(scope="module")
def theirs(ours, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    file = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    file.write_text(ours.content)
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=EOT)


@pytest.fixture(scope="module")
def exported(ours, tmp_path_factory):
    """The tokenizer that transformers load from the files of an export."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("export")
    write_tokenizer_files(epath.Path(folder), ours)
    # An export also holds our own config.json, in which transformers must not look for a model.
    (folder / "config.json").write_text(configs.to_json(configs.freeze(configs.base())))
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_transformers_load_the_template_of_an_export(ours, exported):
    for turns in dialogues(100):
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        found = exported.apply_chat_template(messages, sanitize_control_tokens=True)["input_ids"]
        assert found == ours.sequence(Special(EOT), *dialogue_parts(turns))
        assert exported.decode(found, skip_special_tokens=True) == ours.decode(found)
        messages = [turn._asdict() for turn in map(harmless, turns)]
        masked = exported.apply_chat_template(
            messages, chat_template="training", return_assistant_tokens_mask=True
        )
        mask = answer_mask(np.array([masked["input_ids"]]), chat_ids(ours))[0]
        np.testing.assert_array_equal(mask, masked["assistant_masks"])


def rendered(theirs, turns, template=TEMPLATE, **options):
    """Return what Hugging Face makes of a dialogue."""
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return theirs.apply_chat_template(
        messages, chat_template=template, tokenize=True, return_dict=True, **options
    )


def test_ids_are_those_of_the_rendered_template(ours, theirs):
    for turns in dialogues(1000):
        expected = rendered(theirs, turns, sanitize_control_tokens=True)["input_ids"]
        assert ours.sequence(Special(EOT), *dialogue_parts(turns)) == expected


def test_the_mask_is_that_of_the_rendered_template(ours, theirs):
    """Hugging Face refuses to read control tokens as text where it is asked for a mask."""
    answers = 0
    for turns in dialogues(1000):
        turns = [harmless(turn) for turn in turns]
        expected = rendered(theirs, turns, TRAINING_TEMPLATE, return_assistant_tokens_mask=True)
        ids = ours.sequence(Special(EOT), *dialogue_parts(turns))
        assert ids == expected["input_ids"]
        mask = answer_mask(np.array([ids]), chat_ids(ours))[0]
        np.testing.assert_array_equal(mask, expected["assistant_masks"])
        answers += mask.sum()
    assert answers > 10_000


def test_hostile_contents_do_not_move_the_mask(ours):
    for turns in dialogues(1000):
        ids, expected = [ours.eot], [False]
        for turn in turns:
            header = ours.sequence(Special(TURN_START), f"{turn.role}\n")
            content = ours.sequence(turn.content.strip(), Special(TURN_END))
            after = ours.encode("\n")
            ids += header + content + after
            expected += [False] * len(header)
            expected += [turn.role == ASSISTANT] * len(content)
            expected += [False] * len(after)
        assert ids == ours.sequence(Special(EOT), *dialogue_parts(turns))
        mask = answer_mask(np.array([ids]), chat_ids(ours))[0]
        np.testing.assert_array_equal(mask, expected)


def test_a_prompt_is_the_beginning_of_what_follows(ours, theirs):
    for turns in dialogues(200):
        whole = ours.sequence(Special(EOT), *dialogue_parts(turns))
        for count in range(len(turns)):
            begun = ours.sequence(Special(EOT), *dialogue_parts(turns[:count]))
            assert whole[: len(begun)] == begun
            if turns[count].role == ASSISTANT:
                prompt = ours.sequence(Special(EOT), *prompt_parts(turns[:count]))
                assert whole[: len(prompt)] == prompt
        expected = rendered(
            theirs, turns, add_generation_prompt=True, sanitize_control_tokens=True
        )["input_ids"]
        assert ours.sequence(Special(EOT), *prompt_parts(turns)) == expected
