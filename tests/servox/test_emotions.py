import pytest
from hypothesis import given
from hypothesis import strategies as st

from servox.emotions import (
    CLASSES,
    FURTHER_CLASSES,
    PAPER_CLASSES,
    did_you_mean,
    in_order,
    paper_index,
    require_class,
)
from servox.errors import BadInput


def test_the_papers_classes_have_the_papers_indices() -> None:
    assert {name: paper_index(name) for name in PAPER_CLASSES} == {
        "happiness": 0,
        "sadness": 1,
        "disgust": 2,
        "fear": 3,
        "surprise": 4,
        "anger": 5,
        "other": 6,
        "neutral": 7,
    }


def test_the_vocabulary_has_no_class_twice_and_explains_the_further_ones() -> None:
    assert len(set(CLASSES)) == len(CLASSES) == len(PAPER_CLASSES) + len(FURTHER_CLASSES)
    assert all(FURTHER_CLASSES.values())
    assert list(FURTHER_CLASSES) == sorted(FURTHER_CLASSES)


@pytest.mark.parametrize(("wrong", "meant"), [("hapiness", "happiness"), ("boredem", "boredom"), ("Anger", "anger")])
def test_a_misspelt_class_is_an_error_that_names_the_right_one(wrong: str, meant: str) -> None:
    with pytest.raises(BadInput, match=f"Did you mean '{meant}'"):
        require_class(wrong)


def test_a_further_class_has_no_index_in_the_paper() -> None:
    with pytest.raises(BadInput, match="'boredom' is not one of the paper's eight"):
        paper_index("boredom")


def test_in_order_sorts_by_taxonomy_and_drops_repeats() -> None:
    assert in_order(["calm", "neutral", "anger", "boredom", "anger"]) == ("anger", "neutral", "boredom", "calm")


@given(st.text())
def test_any_text_is_a_class_or_a_bad_input(text: str) -> None:
    if text in CLASSES:
        assert require_class(text) == text
    else:
        with pytest.raises(BadInput):
            require_class(text)


@given(st.text(), st.lists(st.text()))
def test_did_you_mean_names_a_choice_or_nothing(value: str, choices: list[str]) -> None:
    question = did_you_mean(value, choices)
    assert question == "" or any(f"Did you mean {choice!r}?" in question for choice in choices)
