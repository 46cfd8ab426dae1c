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
from slmjax.text.readers import read_documents
from slmjax.text.records import Fault, Source, SourceFile

HELLO = (Turn("user", "Hello?"), Turn("assistant", "Hi."))


def whole(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": whole("Hello?", "Hi.")},
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
        # What follows the last answer is left out.
        {"messages": [*whole("Hello?", "Hi."), {"role": "user", "content": "More"}]},
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
        ({"instruction": "x", "input": 5, "output": "y"}, "malformed turns", "'input' is int"),
        ({"system": ["x"], "prompt": "x", "response": "y"}, "malformed turns", "'system' is list"),
        ({"question": " ", "context": "x", "answer": "y"}, "empty turn", "turn 1 (user)"),
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
            "chosen": whole("Hello?", "Hi."),
            "rejected": whole("Hello?", "No."),
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
    prompt = (Turn("user", "Ann came.\n\nWho?"),)
    fields = {"prompt": "Who?", "context": "Ann came.", "chosen": "Ann.", "rejected": "Bob."}
    assert pair_of(fields).prompt == prompt
    lists = {"chosen": whole("Who?", "Ann."), "rejected": whole("Who?", "Bob.")}
    assert pair_of({**fields, **lists}).prompt == prompt


def test_a_system_turn_counts_once():
    system = {"role": "system", "content": "Be brief."}
    fields = {
        "system": "Be brief.",
        "chosen": [system, *whole("Who?", "Ann.")],
        "rejected": [system, *whole("Who?", "Bob.")],
    }
    prompt = (Turn("system", "Be brief."), Turn("user", "Who?"))
    assert pair_of(fields).prompt == prompt
    fields |= {"chosen": whole("Who?", "Ann."), "rejected": whole("Who?", "Bob.")}
    assert pair_of(fields).prompt == prompt


def test_context_belongs_to_the_last_question():
    begun = [*whole("Who?", "Ann."), {"role": "user", "content": "When?"}]
    fields = {"prompt": begun, "context": "At 7.", "chosen": "At 7.", "rejected": "At 8."}
    assert pair_of(fields).prompt[-1] == Turn("user", "At 7.\n\nWhen?")
    fields["prompt"] = whole("Who?", "It was")
    assert pair_of(fields).prompt == (Turn("user", "At 7.\n\nWho?"), Turn("assistant", "It was"))


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
        # A whole dialogue is compared with one answer, or both dialogues have another question.
        ({"prompt": "x", "chosen": "a", "rejected": whole("y", "b")}, "two prompts"),
        ({"prompt": "x", "chosen": whole("y", "a"), "rejected": whole("y", "b")}, "two prompts"),
        # The user speaks last: no answer is compared.
        (
            {
                "chosen": "Human: x\n\nAssistant: a\n\nHuman: c",
                "rejected": "Human: x\n\nAssistant: a\n\nHuman: d",
            },
            "no answer",
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
    # Whatever else a record has, what the user says first counts.
    first = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
    more = [{"role": "user", "content": "And 3 + 3?"}, {"role": "assistant", "content": "6"}]
    for fields in (
        {"messages": first, "query": "sums", "input": "x"},
        {"messages": [*first, *more], "prompt": "And 3 + 3?"},
    ):
        assert prompt_group(fields, dialogue_of(fields)) == group
    worse = [*more[:1], {"role": "assistant", "content": "7"}]
    fields = {"prompt": "And 3 + 3?", "chosen": [*first, *more], "rejected": [*first, *worse]}
    assert prompt_group(fields, pair_of(fields).prompt) == group
    # One letter with an accent, and a letter and its accent.
    groups = set()
    for word in ("caf\u00e9", "cafe\u0301"):
        fields = {"prompt": f"What is a {word}?", "response": "A place."}
        groups.add(prompt_group(fields, dialogue_of(fields)))
    assert len(groups) == 1
    # An empty field asks nothing; the turns do.
    turns = dialogue_of(asked)
    assert prompt_group({"prompt": " ", "messages": []}, turns) == group
    other = {"instruction": "What is 2 + 3?", "output": "5"}
    assert prompt_group(other, dialogue_of(other)) != group
    signs = {"instruction": "?!", "output": "5"}
    assert prompt_group(signs, dialogue_of(signs)) != group


@pytest.mark.parametrize("kind, unusable", [("text", 0), ("chat", 2)])
def test_a_key_that_stands_twice_is_a_fault_of_a_conversation(tmp_path, kind, unusable):
    lines = [
        '{"text": "x", "prompt": "a", "prompt": "b", "response": "c"}',
        '{"text": "x", "messages": [{"role": "user", "role": "system", "content": "c"}]}',
        '{"text": "x", "prompt": "a", "response": "c", "more": [{"n": 1}, {"n": 1}]}',
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(lines))
    file = SourceFile(str(path), path.name, path.stat().st_size, "")
    items = list(read_documents(file, Source("chats", (str(path),), kind=kind)))
    faults = [item for item in items if isinstance(item, Fault)]
    assert len(items) == 3 and len(faults) == unusable
    assert all("twice" in fault.detail for fault in faults)
