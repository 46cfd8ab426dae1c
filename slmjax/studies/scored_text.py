"""Readers of text that studies score: WikiText's articles and GSM8K's solutions.

Use: {"path": "valid.txt", "reader": "slmjax.studies.scored_text:read_articles"}.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from slmjax.text.records import Record

# A heading of an article; sections have two or more equals signs on each side.
ARTICLE = re.compile(r"^ = (?!=)(.+?)(?<!=) = \n", re.MULTILINE)


def read_articles(stream: Any) -> Iterator[Record]:
    """Yield each article of a WikiText file, with its title as its id.

    Source: Merity et al. 2016 (WikiText).
    """
    text = stream.read().decode()
    headings = list(ARTICLE.finditer(text))
    for number, heading in enumerate(headings):
        end = len(text)
        if number + 1 < len(headings):
            end = headings[number + 1].start()
        article = text[heading.start() : end]
        line = text.count("\n", 0, heading.start()) + 1
        yield Record({"text": article, "id": heading[1]}, line)


def read_solutions(stream: Any) -> Iterator[Record]:
    """Yield the solution of each GSM8K problem, with its line as its id.

    Source: Cobbe et al. 2021 (GSM8K).
    """
    for number, line in enumerate(stream, 1):
        yield Record({"text": json.loads(line)["answer"], "id": f"gsm8k {number}"}, number)
