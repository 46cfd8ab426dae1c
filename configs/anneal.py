"""Is this text any good? A branch of a trained run that anneals on 30 % of it and 70 % of the old.

python -m slmjax.launch --config=configs/anneal.py --init_from=runs/trunk --workdir=runs/anneal
    --config.data.sources.new.path=~/texts

The run goes on from the last checkpoint before the trunk's decay, with its optimizer and its place
in its text; the rate falls to zero. Words with commas between them, after a colon, change the rest:
configs/anneal.py:0.3,constant,tokens=50e6,order=1

  0.3          share of the text "new"; 0: the trunk's mixture alone
  constant     the learning rate stays at its peak
  tokens=50e6  length of the anneal; a quarter of the trunk's tokens unless given
  order=1      another order of the text, for a soup
  soup         no training: the mean of the runs of --init_from=runs/a,runs/b, scored

All arms have the same sources, so that python -m slmjax.compare reads the same held-out text.
For a trunk from configs/tiny.py the new text is the textbook's dialogues, unless a path is given;
then --config.data.sources.new.kind=text is needed too.
Sources: the comparison is Grattafiori et al. 2024 (Llama 3), section 3.1.3; soups of several data
orders are OLMo 2's (2025), section 4.5.
"""

from slmjax.config.run_phases import phases_before
from slmjax.errors import UserError
from slmjax.textbook.passages import KINDS

EXPECTED = "expected a share such as 0.3, then constant, tokens=50e6 or order=1; or soup"


def get_config(arm="0.3", *, trunk):
    share, constant, tokens, order = read_arm(arm)
    c = trunk
    if not c.data.sources:
        # The embedded textbook, kind by kind as the trunk has read it.
        c.data.sources = {kind: {"path": f"textbook:{kind}"} for kind in KINDS}
        c.data.sources.new = {"path": "textbook:dialogues", "kind": "chat"}
        c.eval.textbook = True
    elif "new" not in c.data.sources:
        c.data.sources.new = {"path": ""}  # that of the command line
    # The last phase gives it its share.
    c.data.sources.new.weight = 0
    if share is None:
        c.data.phases, c.train.steps, c.train.schedule, c.train.branch = (), 0, "wsd", False
        return c
    decay = c.train.decay if c.train.schedule == "wsd" else 0
    trunk_phases = phases_before(c.data, c.train, c.train.steps - round(decay * c.train.steps))
    trunk_tokens = sum(phase["tokens"] for phase in trunk_phases)
    anneal = {"tokens": tokens or trunk_tokens / 4, "rate": (1, 1) if constant else (1, 0)}
    anneal["weights"] = {"new": share, "*": 1 - share}
    if order is not None:
        anneal["seed"] = order
    c.data.phases = (*trunk_phases, anneal)
    c.train.steps, c.train.schedule, c.train.branch = 0, "phases", True
    return c


def read_arm(arm):
    """Return (share or None for a soup, whether the rate is constant, tokens or None, order)."""
    share, *words = arm.split(",")
    if share == "soup" and not words:
        return None, False, None, None
    constant, tokens, order = False, None, None
    try:
        for word in words:
            name, _, value = word.partition("=")
            if word == "constant":
                constant = True
            elif name == "tokens":
                tokens = float(value)
            elif name == "order":
                order = int(value)
            else:
                raise ValueError
        share = float(share)
        if not 0 <= share < 1:
            raise ValueError
    except ValueError:
        raise UserError(f"--config=configs/anneal.py:{arm}: {EXPECTED}.") from None
    return share, constant, tokens, order
