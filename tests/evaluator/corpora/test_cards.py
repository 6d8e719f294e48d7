from collections import Counter
from pathlib import Path

import pytest

from services.evaluator.corpora import UNUSED, find_card, load_cards, read_card
from services.evaluator.corpora.cards import FOLDER
from servox.emotions import CLASSES, PAPER_CLASSES
from servox.errors import BadCorpus, NotFound

KEYS = sorted(load_cards())
PAPER = [
    "urdu",
    "emodb",
    "emovo",
    "enterface",
    "mesd",
    "masc",
    "demos",
    "casia",
    "aesdd",
    "baum",
    "eekk",
    "thorsten",
    "resd",
    "meld",
    "mead",
    "cafe",
    "expresso",
    "shemo",
    "subesco",
]
OTHERS = [
    "ravdess",
    "crema-d",
    "tess",
    "savee",
    "nemo",
    "emozionalmente",
    "emouerj",
    "jl-corpus",
    "emns",
    "oreau",
    "pavoque",
    "esd",
    "emov-db",
    "ased",
    "iemocap",
    "msp-podcast",
    "banglaser",
    "cameo",
    "polish",
    "turev-db",
    "asvp-esd",
]


def test_every_corpus_has_a_card() -> None:
    assert set(KEYS) == {*PAPER, *OTHERS}
    assert {key for key, card in load_cards().items() if card.paper} == set(PAPER)


@pytest.mark.parametrize("key", KEYS)
def test_no_fact_is_missing(key: str) -> None:
    card = load_cards()[key]
    for text in (card.name, card.language, card.citation, card.licence.name, card.licence.source, card.obtain.how):
        assert len(text.strip()) > 1
    assert card.url.startswith(("http://", "https://"))
    assert 1990 < card.year < 2030
    assert card.folders
    assert card.audio.format
    assert card.faults
    assert card.counts.clips or card.counts.note
    assert set(card.labels.paper) == set(card.labels.sound)
    assert set(card.labels.paper.values()) <= set(PAPER_CLASSES)
    assert set(card.labels.sound.values()) <= {*CLASSES, UNUSED}
    assert len({example.path for example in card.examples}) >= 3
    assert all(archive.url.startswith(("http://", "https://")) for archive in card.obtain.archives)
    if card.licence.use == "restricted":
        assert not card.obtain.direct


@pytest.mark.parametrize("key", KEYS)
def test_speakers_are_told_or_their_absence_is_explained(key: str) -> None:
    speakers = load_cards()[key].speakers
    assert speakers.id or speakers.reason
    assert speakers.count != 1 or "one speaker" in speakers.reason
    known = [*speakers.female, *speakers.male, *speakers.child]
    assert len(known) == len(set(known))
    if known:
        assert len(known) == speakers.count or key == "oreau"
        assert set(speakers.ages) <= set(known)


@pytest.mark.parametrize("key", KEYS)
def test_splits_name_known_parts_and_disjoint_speakers(key: str) -> None:
    for split in load_cards()[key].splits:
        assert bool(split.parts) != bool(split.speakers)
        named = [speaker for ids in split.speakers.values() for speaker in ids]
        assert len(named) == len(set(named))


# Raw counts under the paper's map equal the published class counts for these; the others are below.
EXACT = [
    "urdu",
    "emodb",
    "emovo",
    "masc",
    "demos",
    "casia",
    "aesdd",
    "eekk",
    "thorsten",
    "resd",
    "cafe",
    "shemo",
    "subesco",
]


@pytest.mark.parametrize("key", EXACT)
def test_the_papers_map_reproduces_the_papers_counts(key: str) -> None:
    card = load_cards()[key]
    assert card.paper
    assert _counted(key) == {label: count for label, count in card.paper.counts.items() if count}
    assert sum(card.paper.counts.values()) == card.counts.clips


def test_boredom_and_guilt_are_folded_by_the_paper_and_kept_apart_by_sound() -> None:
    cards = load_cards()
    assert _counted("emodb")["sadness"] == 143 == 81 + 62
    assert _counted("demos")["sadness"] == 2659 == 1129 + 1530
    assert cards["emodb"].unify("L", "sound") == "boredom"
    assert cards["demos"].unify("col", "sound") == "guilt"
    assert (cards["shemo"].unify("F", "ser-evals"), cards["shemo"].unify("F", "sound")) == ("other", "fear")
    assert (cards["mead"].unify("contempt", "ser-evals"), cards["mead"].unify("contempt", "sound")) == (
        "disgust",
        "contempt",
    )


def test_counts_that_differ_from_the_papers_differ_by_what_is_known() -> None:
    cards = load_cards()
    mesd, mead = cards["mesd"].paper, cards["mead"].paper
    assert mesd
    assert mead
    # 288 clips of the reduced selection, 48 a class, counted twice.
    assert {label: count - 48 for label, count in mesd.counts.items()} == _counted("mesd")
    assert _counted("mead")["disgust"] == mead.counts["disgust"] == 4215 + 4284
    assert all(0 <= _counted("mead")[label] - count <= 3 for label, count in mead.counts.items())


def _counted(key: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    card = load_cards()[key]
    for raw, count in card.counts.labels.items():
        counts[card.labels.paper[raw]] += count
    return dict(counts)


def test_the_papers_counts_are_the_published_ones(data_root: Path) -> None:
    file = data_root / "reference" / "ser_evals_corpora.csv"
    if not file.is_file():
        pytest.skip("no list of published counts")
    header, *rows = [line.split(",") for line in file.read_text().split()]
    for key, _, cluster, *counts in rows:
        paper = load_cards()[key].paper
        assert paper
        assert paper.cluster == int(cluster or 0)
        assert [paper.counts.get(label, 0) for label in header[3:]] == [int(count) for count in counts]


def test_an_unknown_key_is_an_error_that_names_the_right_one() -> None:
    with pytest.raises(NotFound, match="Did you mean 'emodb'"):
        find_card("emodbb")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('language = "German"', "", "field language is missing"),
        (
            "redistributable = true",
            "redistributable = true\nredistributeable = true",
            "redistributeable is unknown.*Did you mean",
        ),
        ("year = 2005", 'year = "long ago"', "field year"),
        ("(?P<version>[a-z])", "(?P<version>[a-z]", "patterns.0.regex: not a regular expression"),
        ('L = "boredom"', "", "labels.sound: no mapping for the raw label 'L'"),
        ('L = "sadness"', "", "labels.paper: no mapping for the raw label 'L'"),
        ('L = "boredom"', 'L = "boredem"', "unknown class 'boredem'.*Did you mean 'boredom'"),
        ('L = "sadness"', 'L = "boredom"', "labels.paper: unknown class 'boredom'"),
        ('id = "{speaker}"', 'id = "{actor}"', "speakers.id: no pattern or table gives 'actor'"),
        ('id = "{speaker}"', "", "speakers.id is absent"),
        ('id = "{speaker}"', 'id = "{speaker:integer}"', "unknown filter 'integer'.*Did you mean"),
        ("labels = { W = 127", "labels = { Z = 127", "counts.labels: 'Z' is no raw label"),
        ("clips = 535", "clips = 500", "add up to more than the 500"),
        ('key = "emodb"', 'key = "emodb2"', "field key is 'emodb2'; it must equal"),
        ("[licence]", "[licence", "not readable TOML"),
        ('archives = [{ url = "http://emodb.bilderbar.info/download/download.zip" }]', "", "obtain.archives is empty"),
    ],
)
def test_a_faulty_card_is_refused_with_card_field_and_remedy(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = (FOLDER / "emodb.toml").read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / "emodb.toml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(BadCorpus, match=rf"card emodb\.toml: .*{says}"):
        read_card(file)
