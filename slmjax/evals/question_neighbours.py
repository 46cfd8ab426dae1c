"""Which questions are alike in their words: neighbours by tf-idf, and groups of nearest neighbours.

scikit-learn is imported late; it is the extra `studies`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from slmjax.errors import UserError

WORDS_IN_ROW = (1, 3)  # shortest and longest run of words that is a feature
WORD = r"(?u)\b\w\w+\b"  # of two characters or more
AT_ONCE = 256  # questions compared in one matrix product
DIGITS = 9  # of a similarity: sums in another order differ in later ones


class QuestionNeighbours:
    """Questions whose neighbours can be asked for.

    A question is its runs of one to three words, in lower case. A run that occurs n times weighs
    (1 + log n) times its inverse document frequency. Similarity is the cosine.

    Source: Salton & Buckley 1988.
    """

    def __init__(self, questions: Sequence[str]):
        """Take the questions that are known. Raises: UserError without scikit-learn or questions."""
        if not questions:
            raise UserError("there is no question to compare with; expected at least one.")
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise UserError(
                "neighbours of questions need scikit-learn; install it with: "
                "pip install -e '.[studies]'."
            ) from error
        self._features = TfidfVectorizer(
            ngram_range=WORDS_IN_ROW, token_pattern=WORD, sublinear_tf=True
        )
        self._known = self._features.fit_transform(questions).T.tocsr()

    def ranked(self, questions: Sequence[str]) -> Iterator[Int[np.ndarray, " known"]]:
        """Yield for each question the known questions by similarity, the most similar first.

        Of equally similar ones the first in the list comes first.
        """
        for similarities in self._similarities(questions):
            yield np.argsort(-similarities, kind="stable")

    def nearest_others(self, questions: Sequence[str]) -> Int[np.ndarray, " known"]:
        """Return the nearest other question of each known question.

        Args:
          questions: those that the object was made from.
        """
        nearest = []
        for own, similarities in enumerate(self._similarities(questions)):
            similarities[own] = -1
            nearest.append(int(similarities.argmax()))
        return np.array(nearest)

    def _similarities(self, questions: Sequence[str]) -> Iterator[Float[np.ndarray, " known"]]:
        for first in range(0, len(questions), AT_ONCE):
            rows = self._features.transform(questions[first : first + AT_ONCE])
            yield from np.round((rows @ self._known).toarray(), DIGITS)


def neighbour_groups(questions: Sequence[str]) -> Int[np.ndarray, " questions"]:
    """Return the group of each question, numbered by first appearance.

    Two questions are in one group if one of them is the other's nearest neighbour, or if others
    join them in this way. So no question's nearest neighbour is in another group.

    Raises: UserError without scikit-learn, or with fewer than two questions.
    """
    if len(questions) < 2:
        raise UserError(f"{len(questions)} questions have no neighbours; expected at least two.")
    nearest = QuestionNeighbours(questions).nearest_others(questions)
    # Each question's group is known by one of its members (union-find).
    member = list(range(len(questions)))

    def root(question: int) -> int:
        while member[question] != question:
            member[question] = member[member[question]]
            question = member[question]
        return question

    for question, other in enumerate(nearest.tolist()):
        first, second = sorted((root(question), root(other)))
        member[second] = first
    # The root of a group is its first question, so groups are numbered by first appearance.
    roots = [root(question) for question in range(len(questions))]
    _, groups = np.unique(roots, return_inverse=True)
    return groups
