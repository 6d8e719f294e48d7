from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.evaluator.corpora import load_cards, parse_path, read_tables
from services.evaluator.corpora.scanning import walk
from servox.errors import BadCorpus

KEYS = sorted(load_cards())
WriteTables = Callable[[str, Path, Sequence[tuple[str, str]]], bool]


@pytest.mark.parametrize("key", KEYS)
def test_the_cards_own_examples_parse(key: str, tmp_path: Path, write_tables: WriteTables) -> None:
    card = load_cards()[key]
    write_tables(key, tmp_path, [(example.path, example.raw) for example in card.examples])
    tables = read_tables(card, tmp_path, list(walk(tmp_path)))
    for example in card.examples:
        if key == "cameo":
            # Its table is Parquet inside the corpus; test_tables reads one.
            continue
        parsed = parse_path(card, example.path, tables)
        assert parsed.raw == example.raw
        assert not example.speaker or parsed.speaker == example.speaker


@pytest.mark.parametrize("key", KEYS)
def test_every_real_path_parses_to_its_raw_label(
    key: str, tmp_path: Path, write_tables: WriteTables, real_pairs: Callable[[str], list[tuple[str, str]]]
) -> None:
    card, pairs = load_cards()[key], real_pairs(key)
    write_tables(key, tmp_path, pairs)
    tables = read_tables(card, tmp_path, list(walk(tmp_path)))
    assert [(path, parse_path(card, path, tables).raw) for path, _ in pairs] == pairs
    for path, raw in pairs:
        assert card.unify(raw, "ser-evals") is not None
        assert (parse_path(card, path, tables).speaker is None) == (
            not card.speakers.id or (raw == "A" and _unknown(path))
        )


def _unknown(path: str) -> bool:
    # The first row of the MSP table that the fixture writes has an unknown speaker.
    return path.endswith("MSP-PODCAST_0281_0037.wav")


@pytest.mark.parametrize("key", [key for key in KEYS if not load_cards()[key].table_holds_label])
@pytest.mark.parametrize(
    "change", [str.upper, str.lower, lambda path: f"./some folder/{path}"], ids=["upper", "lower", "deeper"]
)
def test_case_and_outer_folders_do_not_matter(key: str, change: Callable[[str], str]) -> None:
    card = load_cards()[key]
    for example in card.examples:
        assert card.canonical(parse_path(card, change(example.path)).raw) == card.canonical(example.raw)


@given(st.sampled_from(KEYS), st.text(max_size=200))
def test_any_text_parses_or_is_a_bad_corpus(key: str, path: str) -> None:
    try:
        parsed = parse_path(load_cards()[key], path)
    except BadCorpus as problem:
        assert key in str(problem)  # noqa: PT017 - either outcome is right
    else:
        assert parsed.raw


@given(st.sampled_from(KEYS), st.data())
def test_a_damaged_path_parses_or_is_a_bad_corpus(key: str, data: st.DataObject) -> None:
    card = load_cards()[key]
    path = data.draw(st.sampled_from([example.path for example in card.examples]))
    start = data.draw(st.integers(0, len(path)))
    end = data.draw(st.integers(start, len(path)))
    damaged = path[:start] + data.draw(st.text(max_size=4)) + path[end:]
    with suppress(BadCorpus):
        assert card.canonical(parse_path(card, damaged).raw)


def test_folder_and_name_that_disagree_are_refused() -> None:
    with pytest.raises(BadCorpus, match="is named 'Happy' but stands under 'Angry'"):
        parse_path(load_cards()["urdu"], "Angry/SM1_F10_H010.wav")


def test_a_renamed_folder_leaves_the_label_in_the_name() -> None:
    parsed = parse_path(load_cards()["urdu"], "clips of anger/SM1_F10_A010.flac")
    assert (parsed.raw, parsed.label, parsed.speaker, parsed.gender) == ("Angry", "anger", "SM1", "male")


def test_the_speaker_of_turev_is_the_number_not_the_emotion_code() -> None:
    parsed = parse_path(load_cards()["turev-db"], "Sound Source/Calm/1984_sk_eger.wav")
    assert (parsed.speaker, parsed.raw, parsed.label) == ("1984", "Calm", "calm")


def test_what_else_a_path_tells() -> None:
    cards = load_cards()
    emodb = parse_path(cards["emodb"], "wav/03a01Wa.wav")
    assert (emodb.gender, emodb.age, emodb.sentence, emodb.group) == ("male", 31, "a01", "03")
    child = parse_path(cards["mesd"], "Mexican Emotional Speech Database (MESD)/Anger_C_A_por_favor.wav")
    assert (child.gender, child.speaker, child.sentence) == ("child", None, "por_favor")
    dialogue = parse_path(cards["resd"], "test/08_sadness_anger/08_sadness_anger a_010.wav")
    assert (dialogue.speaker, dialogue.group, dialogue.split) == (None, "dialogue-08", "test")


def test_a_segment_tells_span_channel_side_and_speaker() -> None:
    card = load_cards()["expresso"]
    path = "audio_48khz/conversational/ex04-ex02/sad-sympathetic/ex04-ex02_sad-sympathetic_001.wav"
    left, right = (parse_path(card, f"{path}#channel{n}@0.25-1.5") for n in (1, 2))
    assert (left.raw, left.label, left.speaker, left.channel) == ("sad", "sadness", "ex04", 1)
    assert (right.raw, right.label, right.speaker, right.channel) == ("sympathetic", "sympathy", "ex02", 2)
    assert (left.start_ms, left.end_ms) == (250, 1500)
    shared = parse_path(card, "ex01-ex02_angry_001.wav#channel2@0-1")
    assert (shared.raw, shared.speaker) == ("angry", "ex02")


def test_without_its_table_a_corpus_says_where_the_label_is() -> None:
    with pytest.raises(BadCorpus, match=r"not in its name but in train_sent_emo\.csv"):
        parse_path(load_cards()["meld"], "train/train_splits/dia182_utt6.mp4")


def test_an_over_long_path_is_refused() -> None:
    with pytest.raises(BadCorpus, match="a path of 5004 characters"):
        parse_path(load_cards()["emodb"], "a" * 5000 + ".wav")


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("enterface", "subject 6/anger/s6_an.avi"),
        ("pavoque", "pavoque-outtakes.flac"),
        ("aesdd", "sadness/s05 (3).wav"),
        ("mesd", "Reduced/Anger_F_A_1_tarde.wav"),
        ("ravdess", "Actor_01/03-02-03-01-01-01-01.wav"),
        ("crema-d", "AudioMP3/1001_DFA_ANG_XX.mp3"),
        ("asvp-esd", "Audio/actor_1/03-02-08-01-08-01-02-03-01.wav"),
    ],
)
def test_excluded_files_are_known_as_such(key: str, path: str) -> None:
    from services.evaluator.corpora.paths import excluded_because

    assert excluded_because(load_cards()[key], path, "sound")
    assert not any(excluded_because(load_cards()[key], e.path, "sound") for e in load_cards()[key].examples[:1])
