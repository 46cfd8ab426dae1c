"""Text and ids of random dialogues in llama.cpp's own server, which reads them from an export.

Three differences are of llama.cpp's making, and pinned here: a special token's name in a content
becomes that token; only ASCII blanks are taken from the ends of a content; and the template's
leading end-of-text is taken away where the tokenizer adds one itself. A fourth is switched off: by
default the server goes on with a last turn of the assistant, without trimming it.

Needs xllamacpp, gguf and jinja2, not jax: see .ci/llama.txt and the stage `llama` of .ci/run.
"""

import http.client
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from etils import epath

from slmjax.exported.tokenizer_files import CHAT, write_tokenizer_files
from slmjax.text.chat_template import dialogue_parts, prompt_parts
from slmjax.text.conversations import ASSISTANT, USER, Turn
from slmjax.text.tokenizer import EOT, TURN_END, TURN_START, Special, train_bpe
from tests.parity.hostile_dialogues import HOSTILE, dialogues, harmless

gguf = pytest.importorskip("gguf")
sandbox = pytest.importorskip("jinja2.sandbox")
xllamacpp = pytest.importorskip("xllamacpp")

pytestmark = pytest.mark.parity

COUNT = 60
LONGEST = 500  # characters of a content: enough for several batches of a whole dialogue
WIDTH, HIDDEN, HEADS, HEAD_WIDTH = 32, 64, 2, 16
UNICODE_BLANKS = "\x1c\x85\xa0\u1680\u2003\u2028\u3000"


@pytest.fixture(scope="module")
def ours():
    """A tokenizer with merges of words, blanks and line feeds."""
    return train_bpe([Path(__file__).read_text(), *HOSTILE], 400)


@pytest.fixture(scope="module")
def export(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    write_tokenizer_files(epath.Path(folder), ours)
    return folder


@pytest.fixture(scope="module")
def template(export):
    """The exported template in the environment that transformers render it in."""
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((export / CHAT).read_text())


class LlamaServer:
    """A server of llama.cpp on a free loopback port, with one slot and one thread."""

    def __init__(self, file, adds_bos):
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.n_ctx = 8192
        params.n_parallel = 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.n_threads_http = 1
        params.cache_ram_mib = 0
        params.verbosity = 1  # errors only
        params.warmup = False
        params.prefill_assistant = False
        self.adds_bos = adds_bos
        self._server = xllamacpp.Server(params)  # stops once nothing refers to it
        self._address = urlsplit(self._server.listening_address)
        assert self._address.hostname == "127.0.0.1"

    def post(self, path, **body):
        connection = http.client.HTTPConnection(
            self._address.hostname, self._address.port, timeout=60
        )
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        assert response.status == 200, answer
        return answer

    def render(self, turns, ask):
        """The text of a dialogue; with `ask`, up to where the assistant's next answer begins."""
        answer = self.post("/apply-template", messages=messages(turns), add_generation_prompt=ask)
        return answer["prompt"]

    def ids_of_chat(self, turns, ask):
        """The ids of a dialogue, read as the chat endpoint does: with marks, and one BOS or none."""
        prompt = self.render(turns, ask)
        return self.post("/tokenize", content=prompt, add_special=True, parse_special=True)[
            "tokens"
        ]


@pytest.fixture(scope="module", params=[True, False], ids=["adds_bos", "no_bos"])
def server(request, ours, export, tmp_path_factory):
    """Servers whose file adds a BOS to every text, as an export says, and whose file adds none."""
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(file, ours, export, request.param)
    return LlamaServer(file, request.param)


def write_gguf(file, tokenizer, export, adds_bos):
    """Write a Qwen3 of one layer with random weights and the tokenizer of an export.

    Special ids and the template are what gguf, which llama.cpp's converter uses, reads there.
    """
    vocab = tokenizer.vocab_size
    writer = gguf.GGUFWriter(file, "qwen3")
    writer.add_context_length(8192)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(HEAD_WIDTH)
    writer.add_value_length(HEAD_WIDTH)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(vocab)

    tokens = [""] * vocab
    for token, index in json.loads(tokenizer.content)["model"]["vocab"].items():
        tokens[index] = token
    types = [gguf.TokenType.NORMAL] * vocab
    for index in tokenizer.special.values():
        types[index] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")  # single digits, then GPT-2's words
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(export, load_merges=True)
    assert special.add_special_token == {"bos": True}
    assert special.special_token_ids == {
        "bos": tokenizer.eot,
        "eos": tokenizer.eot,
        "pad": tokenizer.eot,
    }
    special.add_special_token["bos"] = adds_bos
    special.add_to_gguf(writer)

    heads = HEADS * HEAD_WIDTH
    block = {
        "attn_norm": (WIDTH,),
        "attn_q": (heads, WIDTH),
        "attn_k": (heads, WIDTH),
        "attn_v": (heads, WIDTH),
        "attn_output": (WIDTH, heads),
        "attn_q_norm": (HEAD_WIDTH,),
        "attn_k_norm": (HEAD_WIDTH,),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (HIDDEN, WIDTH),
        "ffn_up": (HIDDEN, WIDTH),
        "ffn_down": (WIDTH, HIDDEN),
    }
    shapes = {"token_embd": (vocab, WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in block.items()}
    draw = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def short(turn):
    return turn._replace(content=turn.content[:LONGEST])


def messages(turns):
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def parts_of(turns, ask):
    return prompt_parts(turns) if ask else dialogue_parts(turns)


@pytest.mark.parametrize("ask", [False, True])
def test_llama_renders_the_text_that_jinja_renders(server, template, ask):
    for turns in dialogues(COUNT):
        expected = template.render(messages=messages(turns), add_generation_prompt=ask)
        if server.adds_bos:
            expected = expected.removeprefix(EOT)
        assert server.render(turns, ask) == expected


@pytest.mark.parametrize("ask", [False, True])
def test_llama_reads_our_ids_from_a_chat(server, ours, ask):
    for turns in dialogues(COUNT):
        turns = [harmless(short(turn)) for turn in turns]
        assert server.ids_of_chat(turns, ask) == ours.sequence(Special(EOT), *parts_of(turns, ask))


def test_the_chat_endpoint_finds_our_ids_in_its_cache(server, ours):
    """All but the last id, which the server always computes again."""
    for turns in dialogues(COUNT):
        turns = [harmless(short(turn)) for turn in turns]
        ids = ours.sequence(Special(EOT), *prompt_parts(turns))
        server.post("/completion", prompt=ids, n_predict=0)
        answer = server.post("/v1/chat/completions", messages=messages(turns), max_tokens=1)
        assert answer["usage"]["prompt_tokens"] == len(ids)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == len(ids) - 1


def test_llama_reads_our_ids_from_a_text(server, ours):
    """Names of special tokens too, where it is asked to read them as text."""
    begin = [Special(EOT)] if server.adds_bos else []
    for text in (*HOSTILE, Path(__file__).read_text(), f"{UNICODE_BLANKS} a {UNICODE_BLANKS}"):
        found = server.post("/tokenize", content=text, add_special=True, parse_special=False)
        assert found["tokens"] == ours.sequence(*begin, text)


def test_llama_reads_names_of_special_tokens_in_a_content_as_those_tokens(server, ours):
    """A difference: ours stay text, and so do those of transformers with sanitize_control_tokens."""
    names = re.compile("(" + "|".join(map(re.escape, ours.special)) + ")")
    hostile = 0
    for turns in dialogues(COUNT):
        turns = [short(turn) for turn in turns]
        expected = [Special(EOT)]
        for part in prompt_parts(turns):
            if isinstance(part, Special):
                expected.append(part)
                continue
            pieces = names.split(part)  # every second one is a name
            hostile += len(pieces) > 1
            for place, piece in enumerate(pieces):
                expected.append(Special(piece) if place % 2 else piece)
        assert server.ids_of_chat(turns, True) == ours.sequence(*expected)
    assert hostile > COUNT // 2


def test_llama_takes_only_ascii_blanks_from_the_ends_of_a_content(server, template):
    """A difference: Python's strip, jinja's trim and ours take all that Unicode calls blank."""
    begin = "" if server.adds_bos else EOT
    for blank in UNICODE_BLANKS:
        turns = [Turn(USER, f" \t\r\n\v\f{blank}word{blank} \t\r\n\v\f")]
        head = f"{begin}{TURN_START}{USER}\n"
        tail = f"{TURN_END}\n{TURN_START}{ASSISTANT}\n"
        assert server.render(turns, True) == f"{head}{blank}word{blank}{tail}"
        ours = template.render(messages=messages(turns), add_generation_prompt=True)
        assert ours == f"{EOT}{TURN_START}{USER}\nword{tail}"


def test_an_answer_ends_at_either_mark_and_at_no_other(server, ours):
    ends = set()
    for name, index in ours.special.items():
        answer = server.post(
            "/v1/chat/completions",
            messages=messages([Turn(USER, "plain words")]),
            max_tokens=4,
            temperature=0,
            logit_bias=[[index, 1000.0]],
        )
        if answer["choices"][0]["finish_reason"] == "stop":
            ends.add(name)
    assert ends == {EOT, TURN_END}
