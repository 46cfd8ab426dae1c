r"""A textbook written by a teacher, with nothing paid for twice.

python -m slmjax.launch --config=configs/textbook.py --workdir=runs/textbook
python -m slmjax.launch --config=configs/tiny.py --workdir=runs/taught \
    --config.data.sources=runs/textbook/documents

The default teacher is embedded: it computes its answers and needs no network. The work directory
gets the documents, the rejects with their reasons, and the coverage report. In the budget, a
request counts with the most tokens that it can cost (its prompt's bytes, 64 for a chat template,
and max_tokens) until its answer says how many it had; without an answer it stays counted so.

Time: 16 s for 3,600 documents of 0.75M tokens (at four bytes each) on two shared cores, 86 s for
40,000 of 8.3M.
Score: every answer was compared with a computed one and nothing was rejected; no two of 1,000
documents are near-duplicates (Jaccard 0.75 of word 5-grams; other names and numbers are enough to
be below it). New 5-grams for each token fall from 0.33 in the first tenth of 8.3M tokens to
0.18 in the last. What a model learns from it, and what that costs on real text: docs/studies.md.
"""

from slmjax import config


def get_config():
    c = config.base()
    c.stage = "synthesize"
    # `python -m slmjax.launch --help` lists every setting; these say who writes, and how much.
    s = c.synthesize
    # The embedded program; or openai (any OpenAI-compatible endpoint), or checkpoint (the model of
    # the run that --init_from names).
    s.teacher = "program"
    # openai: the model that the endpoint serves, for example meta-llama/Llama-3.1-70B-Instruct.
    s.model = ""
    # openai: http://127.0.0.1:8000/v1 for a server of your own; empty: OpenAI's own endpoint. The
    # key is read from $OPENAI_API_KEY.
    s.base_url = ""
    s.documents = 3600  # to ask for; more later keep the earlier ones
    # A file with a topic on each line, "subject > area > topic" or any text; empty: all topics.
    s.topics = ""
    s.tokens, s.cost = 0, 0.0  # budget in tokens and dollars, all starts together; 0: no limit
    s.price = (0.0, 0.0)  # dollars for a million tokens of prompts and of answers
    return c
