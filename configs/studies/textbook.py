"""What a synthesized textbook is worth: 30M parameters, 100M tokens, a share of them written by the embedded teacher, the rest real text.

python -m slmjax.launch --config=configs/textbook.py --workdir=runs/textbook --config.synthesize.documents=50000
for share in 0 0.2 0.5; do for seed in 0 1 2; do
    python -m slmjax.launch --config=configs/studies/textbook.py:$share --config.seed=$seed --workdir=runs/worth/$share-$seed
done; done
python -m slmjax.compare runs/worth/* --sources=books,textbooks,math,docs,code,reference

Model, domains and held-out text are those of configs/30m.py (which says where the text is), the domains in the proportions of their
tokens, the textbook at most ten times over. All runs share one tokenizer, trained on all of the text, and the same held-out documents.
At the end each is asked the embedded textbook's held-out questions, whose names, numbers and wordings the teacher does not use.

Measured on one H200 on 2026-11-29 (jax 0.11.2; with --config.eval.samples=0 --config.checkpoint.every=1526; 75 s from first to last step,
1.36M tokens/s). The documents, 13.2M tokens, are read 1.5 times at a share of 0.2 and 3.8 times at 0.5, and the real text, 76M, 1.3, 1.05
and 0.66 times. Bits per byte on the 935 held-out documents of real text, three seeds:

    share  real text        books   textbooks  math    docs    code    reference  textbook's own
    0      1.1226 +- 0.002  1.3327  1.1907     0.8299  1.0242  0.5430  0.7545     1.7234
    0.2    1.1437 +- 0.003  1.3479  1.2160     0.8479  1.0534  0.5694  0.7747     0.1257
    0.5    1.2020 +- 0.004  1.3922  1.2801     0.9107  1.1269  0.6372  0.8356     0.1235

It costs 1.9 % (95 % interval 1.5 to 2.3 %) and 7.1 % (6.5 to 7.7 %) on real text, in every domain.

Only because there are fewer real tokens? The control reads as many of them and no textbook: a share
of 0 with --config.train.steps=1221 (80M, as at 0.2) and 763 (50M, as at 0.5), --config.seed=0 and 1
(one H200, jax 0.11.2, 2026-11-30, commit df75d4d), and --config.checkpoint.every as many:

    real tokens  real text         books   textbooks  math    docs    code    reference  own
    80M          1.1524 +- 0.0004  1.3544  1.2256     0.8558  1.0652  0.5804  0.7827     1.7409
    50M          1.2278 +- 0.0003  1.4128  1.3078     0.9391  1.1576  0.6648  0.8677     1.8580

Yes: alone they are 2.7 % and 9.4 % worse than 100M. So at equal real tokens the textbook does not
cost but helps: 1.1437 is 0.8 % less than 1.1524, and 1.2020 is 2.1 % less than 1.2278, in every
domain. The gaps are three and six times the larger standard deviation of the seeds, but have no
paired interval: the older runs' scores by document were not kept. And the control takes fewer steps
(its warmup is 200 of them as well), so that some of the help may be the steps, not the textbook.
Share 0 with all 1,526 steps, seed 0, ran again beside it: 1.1223, where the table above has 1.1226.
It skipped three steps as spikes, the control none. The control answers no question right. Not run:
the control's third seed, and what the textbook costs where real tokens are read many times.

Exact answers, 25 questions of each kind and three seeds (chance: of a guess among what may be the answer):

    share   all              word problems  units  sequences  definitions  comparison  logic
    0       0.00             0.00           0.00   0.00       0.00         0.00        0.00
    0.2     0.37 +- 0.09     0.53           0.63   0.19       0.19         0.19        0.48
    0.5     0.36 +- 0.09     0.51           0.55   0.27       0.31         0.16        0.37
    chance  0.19             0.05           0.03   0.08       0.18         0.35        0.49

So 20M tokens teach the form of an answer, and half of the word problems and conversions; comparisons and logic stay at chance or below it,
and 30M tokens more of the same teach nothing more. At 0.5 the seeds are 0, 1 and 3: seed 2 ended at step 1,207, where 20 steps in a row had
been skipped for a gradient norm of ten times its mean, at a loss as before. Since then skipped steps count in what is usual, so that such a
run goes on (slmjax/train/state.py); it was not run again.
"""

from pathlib import Path

from slmjax import config

TOKENS = {
    "books": 24,
    "textbooks": 11,
    "math": 13,
    "docs": 17,
    "code": 4,
    "reference": 2,
}  # millions, about


def get_config(share="0.2"):
    share = float(share)
    if not 0 <= share < 1:
        raise ValueError(
            f"The share of the textbook is {share}; it must be at least 0 and less than 1."
        )
    c = config.load_recipe(str(Path(__file__).parents[1] / "30m.py"))
    c.data.sources.textbook = {"path": "runs/textbook/documents", "max_epochs": 10}
    real = {name: (1 - share) * tokens / sum(TOKENS.values()) for name, tokens in TOKENS.items()}
    c.data.phases = ({"until": 1.0, "weights": {**real, "textbook": share}},)
    c.train.steps, c.eval.every, c.eval.textbook = 1526, 1526, True
    return c
