"""Neighbours of questions against tf-idf written out, and groups that no nearest neighbour leaves."""

import math
import random
import re
from collections import Counter

import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.evals.question_neighbours import QuestionNeighbours, neighbour_groups

WORDS = "Tom has 5 red apples and buys 12 more than a girl who sold half of her 1,000 books".split()


@pytest.fixture(scope="module")
def questions():
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 25))) for _ in range(60)]


def runs(question):
    words = re.findall(r"\w+", question.lower())
    return Counter(" ".join(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1))


def cosine(a, b):
    product = sum(weight * b.get(run, 0) for run, weight in a.items())
    return product / math.sqrt(sum(w * w for w in a.values()) * sum(w * w for w in b.values()))


def test_the_ranking_is_that_of_tf_idf_written_out(questions):
    known, asked = questions[:50], questions[50:]
    documents = Counter(run for question in known for run in runs(question))
    documents = {run: sum(run in runs(question) for question in known) for run in documents}

    def weights(question):
        weight = {}
        for run, count in runs(question).items():
            if run in documents:
                idf = 1 + math.log((1 + len(known)) / (1 + documents[run]))
                weight[run] = (1 + math.log(count)) * idf
        return weight

    ranked = QuestionNeighbours(known).ranked(asked)
    for question, ranking in zip(asked, ranked, strict=True):
        similarity = [round(cosine(weights(question), weights(other)), 9) for other in known]
        assert ranking.tolist() == sorted(range(len(known)), key=lambda i: -similarity[i])


def test_no_nearest_neighbour_is_in_another_group_and_groups_are_no_larger_than_that_needs(questions):
    groups = neighbour_groups(questions)
    nearest = QuestionNeighbours(questions).nearest_others(questions)
    assert (groups[nearest] == groups).all()
    assert len(set(groups)) > 1
    # A group holds only what links of nearest neighbours join.
    reached = {i: {i} for i in range(len(questions))}
    for _ in questions:
        for question, other in enumerate(nearest.tolist()):
            both = reached[question] | reached[other]
            for member in both:
                reached[member] = both
    for question in range(len(questions)):
        assert set(np.flatnonzero(groups == groups[question]).tolist()) == reached[question]


def test_the_nearest_other_question_is_never_the_question_itself():
    questions = ["one two three", "one two three", "one two four"]
    assert QuestionNeighbours(questions).nearest_others(questions).tolist() == [1, 0, 0]


def test_too_few_questions_are_refused_in_a_sentence():
    with pytest.raises(UserError, match="1 questions have no neighbours; expected at least two"):
        neighbour_groups(["How many?"])
    with pytest.raises(UserError, match="there is no question to compare with"):
        QuestionNeighbours([])
