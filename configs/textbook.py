"""A textbook written by a teacher, with nothing paid for twice: by default the embedded one, which computes and needs no network.

python -m slmjax.launch --config=configs/textbook.py --workdir=runs/textbook
python -m slmjax.launch --config=configs/tiny.py --workdir=runs/taught --config.data.sources=runs/textbook/documents

Measured with the embedded teacher on two shared cores: 16 s for 3,600 documents of 0.75M tokens (at four bytes each), 86 s for 40,000 of
8.3M; every answer was compared with a computed one, nothing rejected, no two of 1,000 documents near-duplicates (Jaccard .75 of word
5-grams, which other names and numbers are enough to avoid). New 5-grams for each token fall from 0.33 in the first tenth of 8.3M tokens to
0.18 in the last: six kinds of problems and a hundred sentences about them do not carry more. What a model learns from it, and what that
costs on real text: configs/studies/textbook.py. Documents, rejects with their reasons and the coverage report are in the work directory.

A request reserves its prompt's bytes and max_tokens, and its answer frees what it did not use; what is never answered stays reserved.
"""

from slmjax import config


def get_config():
    c = config.base()
    c.stage = "synthesize"
    s = c.synthesize
    s.teacher = "program"  # program (embedded), openai (any OpenAI-compatible endpoint), checkpoint (of the run --init_from)
    s.model = ""  # openai: the model that the endpoint serves, for example meta-llama/Llama-3.1-70B-Instruct
    s.base_url = ""  # openai: http://127.0.0.1:8000/v1 for a vLLM server of your own; empty: OpenAI; the key is $OPENAI_API_KEY
    # openai: what the endpoint calls a parameter, "" where it has none, for example
    # {"max_tokens": "max_completion_tokens", "seed": ""}
    s.names = {}
    s.licence = ""  # note on every document; empty: what the teacher says of itself
    s.documents = 3600  # to ask for; more later keep the earlier ones
    s.shard = 10_000  # documents in a file
    s.topics = ""  # a file with a topic on each line, "subject > area > topic" or any text; empty: all that the teacher knows
    s.audiences = ("children", "students", "undergraduates", "adults")  # or descriptions of your own
    s.formats = ("section", "problems", "reasoning", "faq", "table", "dialogue")
    s.passages = ""  # openai: text from which a piece is put into each prompt, as data.sources has it; empty: none
    s.max_tokens, s.temperature, s.top_p = 1500, 0.8, 0.95  # of an answer
    s.concurrent = 64  # requests that are open at once
    s.per_minute = 0.0  # most requests a minute; 0: no limit
    s.retries = 5  # times that a failed request is asked again
    s.timeout = 300.0  # seconds for one answer
    s.tokens, s.cost = 0, 0.0  # budget in tokens and dollars, all starts together; 0: no limit
    s.price = (0.0, 0.0)  # dollars for a million tokens of prompts and of answers
    s.journal = ""  # a local folder; empty: journal/ in the work directory
    s.copies = ""  # a folder, local or gs://, that gets the journal's new events every minute; empty: none, or journal/ in a gs:// workdir
    return c
