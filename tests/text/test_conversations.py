"""Records of common data sets as conversations and pairs, and what is wrong with others."""

import pytest

from slmjax.text.conversations import (
    BadConversation,
    PreferencePair,
    Turn,
    dialogue_of,
    pair_of,
    prompt_group,
)

HELLO = (Turn("user", "Hello?"), Turn("assistant", "Hi."))


@pytest.mark.parametrize(
    "fields",
    [
        {
            "messages": [
                {"role": "user", "content": "Hello?"},
                {"role": "assistant", "content": "Hi."},
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": " Hello?"},
                {"from": "gpt", "value": "Hi.\n"},
            ]
        },
        {"prompt": "Hello?", "response": "Hi."},
        {
            "prompt": [{"role": "user", "content": "Hello?"}],
            "completion": [{"role": "assistant", "content": "Hi."}],
        },
        {"instruction": "Hello?", "input": "", "output": "Hi."},
        {"question": "Hello?", "answer": "Hi.", "id": 7},
        {"text": "Human: Hello?\n\nAssistant: Hi."},
        {"text": "### Human: Hello?\n### Assistant: Hi."},
        {"text": "### Human: Hello?### Assistant: Hi."},
        {"prompt": "\n\nHuman: Hello?\n\nAssistant:", "completion": " Hi."},
        {
            "messages": [
                {"role": "user", "content": "Hello?"},
                {"role": "assistant", "content": "Hi."},
                {"role": "user", "content": "More"},
            ]
        },
    ],
)
def test_the_common_variants_say_the_same(fields):
    assert dialogue_of(fields) == HELLO


def test_system_input_and_context_have_their_places():
    fields = {
        "system": "Be brief.",
        "instruction": "Name it.",
        "input": "the sun",
        "context": "Stars shine.",
        "output": "Sol",
    }
    assert dialogue_of(fields) == (
        Turn("system", "Be brief."),
        Turn("user", "Stars shine.\n\nName it.\n\nthe sun"),
        Turn("assistant", "Sol"),
    )


def test_an_answer_that_looks_like_a_transcript_stays_an_answer():
    fields = {"instruction": "Write a dialogue.", "output": "User: Hi\nAssistant: Ho\nUser: Bye"}
    assert dialogue_of(fields)[-1] == Turn("assistant", fields["output"])


@pytest.mark.parametrize(
    "fields, reason, words",
    [
        ({"txt": "x"}, "no conversation", "fields: txt; expected messages"),
        ({"mesages": []}, "no conversation", "Did you mean 'mesages'?"),
        ({"prompt": "Hello?"}, "no conversation", "fields: prompt"),
        ({"text": "plain text"}, "no conversation", "expected messages"),
        ({"messages": "Human"}, "no conversation", "expected messages"),
        ({"messages": 3}, "malformed turns", "'messages' is int"),
        ({"messages": ["hi"]}, "malformed turns", "turn 1 of 'messages' is str"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "unknown role", "Did you mean 'user'?"),
        ({"messages": [{"content": "x"}]}, "unknown role", "the role None"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "malformed turns", "turn 1"),
        ({"messages": []}, "no answer", "no turn of the assistant"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no answer", ""),
        ({"messages": [{"role": "user", "content": "x"}]}, "no answer", ""),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no question", ""),
        ({"prompt": "x", "response": "  "}, "empty turn", "turn 2 (assistant)"),
        ({"prompt": "  ", "response": "x"}, "empty turn", "turn 1 (user)"),
        ({"prompt": "x", "response": 5}, "malformed turns", "'response' is int"),
    ],
)
def test_a_bad_conversation_is_named(fields, reason, words):
    with pytest.raises(BadConversation) as caught:
        dialogue_of(fields)
    assert caught.value.reason == reason
    assert words in caught.value.detail


PAIR = PreferencePair((Turn("user", "Hello?"),), "Hi.", "No.")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "Hello?", "chosen": "Hi.", "rejected": "No. "},
        {"prompt": "Human: Hello?\n\nAssistant:", "chosen": "Hi.", "rejected": "No."},
        {
            "chosen": "\n\nHuman: Hello?\n\nAssistant: Hi.",
            "rejected": "\n\nHuman: Hello?\n\nAssistant: No.",
        },
        {
            "prompt": "Hello?",
            "chosen": [
                {"role": "user", "content": "Hello?"},
                {"role": "assistant", "content": "Hi."},
            ],
            "rejected": [
                {"role": "user", "content": "Hello?"},
                {"role": "assistant", "content": "No."},
            ],
        },
        {
            "prompt": [{"role": "user", "content": "Hello?"}],
            "chosen": [{"role": "assistant", "content": "Hi."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        },
    ],
)
def test_the_common_variants_of_pairs_say_the_same(fields):
    assert pair_of(fields) == PAIR


def test_context_goes_into_the_prompt_of_a_pair():
    fields = {"prompt": "Who?", "context": "Ann came.", "chosen": "Ann.", "rejected": "Bob."}
    assert pair_of(fields).prompt == (Turn("user", "Ann came.\n\nWho?"),)


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"prompt": "x", "chosen": "a"}, "no pair"),
        ({"chosen": "a", "rejected": "b"}, "no question"),
        ({"prompt": "x", "chosen": "a", "rejected": " a"}, "equal answers"),
        ({"prompt": "x", "chosen": "a", "rejected": ""}, "empty turn"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty turn"),
        ({"prompt": "x", "chosen": None, "rejected": "b"}, "malformed turns"),
        (
            {
                "chosen": "Human: x\n\nAssistant: a",
                "rejected": "Human: y\n\nAssistant: b",
            },
            "two prompts",
        ),
    ],
)
def test_a_bad_pair_is_named(fields, reason):
    with pytest.raises(BadConversation) as caught:
        pair_of(fields)
    assert caught.value.reason == reason


def test_the_same_question_is_one_group_in_every_set():
    asked = {"instruction": "What is 2 + 2?", "output": "4"}
    group = prompt_group(asked, dialogue_of(asked))
    others = [
        {"prompt": "what is 2+2", "context": "Sums.", "chosen": "4", "rejected": "5"},
        {"prompt": "Human: What is 2 + 2?\n\nAssistant:", "chosen": "4", "rejected": "5"},
    ]
    for fields in others:
        assert prompt_group(fields, pair_of(fields).prompt) == group
    other = {"instruction": "What is 2 + 3?", "output": "5"}
    assert prompt_group(other, dialogue_of(other)) != group
    signs = {"instruction": "?!", "output": "5"}
    assert prompt_group(signs, dialogue_of(signs)) != group
