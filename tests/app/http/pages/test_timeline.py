"""The story of a sequence, and the sequence in what was pasted."""

import pytest

from app.http.pages.sequence_text import PastedItem, UnreadableSequenceError, parse_sequence
from app.http.pages.timeline import Candidate, Question, tell


def step(position, item_id, score=-1.0, margin=0.5):
    action = "deleted" if item_id is None else "replaced"
    return {"position": position, "action": action, "item_id": item_id, "score": score, "margin": margin}


def question(text, *, unknown=(), rule="anticipate", hints=None):
    """Items 'b1 f2': domain by the first letter, target food."""
    items = [PastedItem({"b": "books", "f": "food"}[name[0]], name) for name in text.split()]
    known = frozenset(item for item in items if item.item_id not in unknown)
    return Question(items, "food", known, rule, hints)


def test_every_item_has_one_fate():
    asked = question("b1 f1 b2 b3 f2", unknown=("b2", "f2"))
    told = tell(asked, {"truncated": 0, "steps": [step(0, "f9"), step(3, None)]}, {})

    assert [moment.fate for moment in told] == ["replaced", "kept", "unknown", "deleted", "kept"]
    assert told[0].probability == pytest.approx(0.3679, abs=1e-4)


def test_what_was_not_read_is_told_apart_from_what_is_unknown():
    asked = question("b1 b2 f1 b3", unknown=("b1",))
    told = tell(asked, {"truncated": 2, "steps": [step(3, "f5")]}, {})

    assert [moment.fate for moment in told] == ["not read", "not read", "not read", "replaced"]


def test_runners_up_are_what_was_neither_taken_nor_there_before():
    asked = question("f1 b1 b2 f2")
    candidates = [Candidate(name, 0.1) for name in ("f8", "f1", "f9", "f2", "f7")]
    told = tell(asked, {"truncated": 0, "steps": [step(1, "f8"), step(2, "f9")]}, {2: candidates})

    assert [candidate.item_id for candidate in told[2].runners_up] == ["f2", "f7"]
    assert told[1].runners_up == ()


def test_an_unknown_item_does_not_part_a_run():
    """The model does not see it: what stands on both sides of it is read as one stretch."""
    asked = question("b1 b2 b3", unknown=("b2",))

    assert asked.run_ends(0) == {0: 2, 2: 2}


@pytest.mark.parametrize(
    ("rule", "hints", "score", "why"),
    [
        ("anticipate", None, None, "only the last 3"),
        ("anticipate", 1, None, "only the last 1"),
        ("anticipate", 0, None, "do not help food"),
        ("paper", None, None, "nothing before it"),
        ("paper", None, 2.5, "No item of food"),
    ],
)
def test_a_deletion_has_its_reason(rule, hints, score, why):
    told = tell(question("b1", rule=rule, hints=hints), {"truncated": 0, "steps": [step(0, None, score)]}, {})

    assert why in told[0].why


def test_a_score_of_a_contrastive_rule_is_no_probability():
    told = tell(question("f1 b1", rule="paper"), {"truncated": 0, "steps": [step(1, "f2", 7.0)]}, {})

    assert (told[1].probability, told[1].score) == (None, 7.0)


@pytest.mark.parametrize(
    "text",
    [
        "food,B0\nkitchen,K1",
        "food\tB0\n\nkitchen\tK1\n",
        "domain,item\nfood,B0\nkitchen,K1",
        '[{"item_id": "B0", "domain": "food"}, {"item_id": "K1", "domain": "kitchen"}]',
        '{"sequences": [{"items": [{"item_id": "B0", "domain": "food"}, {"item_id": "K1", "domain": "kitchen"}]}]}',
    ],
)
def test_a_sequence_is_read_from_lines_and_from_json(text):
    assert parse_sequence(text) == [PastedItem("food", "B0"), PastedItem("kitchen", "K1")]


def test_a_name_with_a_comma_or_a_quote_is_quoted_as_in_csv():
    assert parse_sequence('"a,b","x ""y"""') == [PastedItem("a,b", 'x "y"')]


@pytest.mark.parametrize(
    "text", ["food", "food,", "a,b,c", '{"items": 3}', "[1]", '[{"item_id": 1, "domain": "a"}]', "{", "[" * 100_000]
)
def test_what_is_no_sequence_is_said_to_be_none(text):
    with pytest.raises(UnreadableSequenceError):
        parse_sequence(text)


def test_more_items_than_a_page_takes_are_refused():
    with pytest.raises(UnreadableSequenceError, match="4,097 items"):
        parse_sequence("a,b\n" * 4097)
