"""WikiText's files are cut into their articles, and GSM8K's problems give their solutions."""

import io
import json

from slmjax.studies.scored_text import read_articles, read_solutions

TEXT = " \n = One = \n \n first . \n = = Part = = \n \n more = less . \n \n = Two @-@ 2 = \n \n second . \n"


def test_an_article_reaches_to_the_next_heading_of_an_article():
    first, second = read_articles(io.BytesIO(TEXT.encode()))
    assert (first.fields["id"], first.line) == ("One", 2)
    assert (second.fields["id"], second.line) == ("Two @-@ 2", 9)
    assert first.fields["text"] + second.fields["text"] == TEXT.partition("\n")[2]
    assert " = = Part = = " in first.fields["text"]
    assert list(read_articles(io.BytesIO(b"no heading\n"))) == []


def test_a_solution_is_the_answer_of_its_line():
    lines = [json.dumps({"question": f"{n}?", "answer": f"{n}\n#### {n}"}) for n in (4, 5)]
    first, second = read_solutions(io.BytesIO("\n".join(lines).encode()))
    assert first.fields == {"text": "4\n#### 4", "id": "gsm8k 1"}
    assert (second.fields["text"], second.line) == ("5\n#### 5", 2)
