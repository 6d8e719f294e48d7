import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.evaluator.corpora import load_cards, parse_path, read_given, read_tables
from services.evaluator.corpora.card import Table
from services.evaluator.corpora.formats import read_rows
from services.evaluator.corpora.scanning import walk
from services.evaluator.corpora.templates import fill
from servox.errors import BadCorpus


def _table(format_: str, **more: object) -> Table:
    return Table(files=("x",), format=format_, key="{a}", join="{stem}", columns={}, **more)  # type: ignore[arg-type]


def test_one_content_reads_alike_from_every_tabular_format(tmp_path: Path) -> None:
    expected = [{"a": "1", "b": "angry & loud"}, {"a": "2", "b": "sad"}]
    (tmp_path / "t.csv").write_text('a,b\r\n1,"angry & loud"\r\n2,sad\r\n', encoding="utf-8-sig")
    (tmp_path / "t.tsv").write_text("a\tb\n1\tangry & loud\n2\tsad\n", encoding="utf-16")
    (tmp_path / "t.json").write_text(json.dumps(expected))
    (tmp_path / "t.yaml").write_text("- {a: 1, b: angry & loud}\n- {a: 2, b: sad}\n")
    pq.write_table(pa.table({"a": [1, 2], "b": ["angry & loud", "sad"], "audio": [b"x", b"y"]}), tmp_path / "t.parquet")
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    cells = '<c r="A2"><v>1</v></c><c r="B2" t="inlineStr"><is><t>angry &amp; loud</t></is></c>'
    rows = '<row><c r="A1" t="s"><v>0</v></c><c r="B1" t="s"><v>1</v></c></row>' + f"<row>{cells}</row>"
    rows += '<row><c r="A3"><v>2.0</v></c><c r="B3" t="str"><v>sad</v></c></row>'
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as book:
        book.writestr("xl/sharedStrings.xml", f"<sst {space}><si><t>a</t></si><si><r><t>b</t></r></si></sst>")
        book.writestr("xl/worksheets/sheet1.xml", f"<worksheet {space}><sheetData>{rows}</sheetData></worksheet>")

    def read(format_: str, name: str, **more: object) -> list[dict[str, str]]:
        return [
            {name: value for name, value in row.items() if name != "table_stem"}
            for row in read_rows(_table(format_, **more), tmp_path / name)
        ]

    assert read("delimited", "t.csv") == expected
    assert read("delimited", "t.tsv", delimiter="\t") == expected
    assert read("json", "t.json") == expected
    assert read("yaml", "t.yaml") == expected
    assert read("parquet", "t.parquet") == expected
    assert read("xlsx", "t.xlsx") == expected
    assert read("xlsx", "t.csv") == read("xlsx", "t.tsv") == expected


@pytest.mark.parametrize(
    ("format_", "name", "content"),
    [
        ("xlsx", "t.xlsx", b"not a zip"),
        ("json", "t.json", b"{"),
        ("json", "t.json", b"3"),
        ("yaml", "t.yaml", b"a: [1"),
        ("yaml", "t.yaml", b"- !!python/object/apply:os.system [id]"),
        ("textgrid", "t.TextGrid", b"no tiers here"),
        ("parquet", "t.parquet", b"PAR1"),
        ("delimited", "t.csv", b"a,b\n\x81\xff,1"),
    ],
)
def test_a_damaged_table_is_a_bad_corpus_that_names_it(tmp_path: Path, format_: str, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadCorpus, match=f"{name}.*Restore the original"):
        list(read_rows(_table(format_, encodings=("utf-8",)), tmp_path / name))


def test_a_spreadsheet_that_declares_entities_is_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]><worksheet>&a;</worksheet>'
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as book:
        book.writestr("xl/worksheets/sheet1.xml", bomb)
    with pytest.raises(BadCorpus, match="declares a document type"):
        list(read_rows(_table("xlsx"), tmp_path / "t.xlsx"))


def test_a_table_without_its_column_says_which_and_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "labels_consensus.csv").write_text("FileName,EmoAct\nMSP-PODCAST_0001_0008.wav,4\n")
    with pytest.raises(BadCorpus, match="no column 'EmoClass'; it has 'FileName', 'EmoAct'"):
        read_given(load_cards()["msp-podcast"], [tmp_path / "labels_consensus.csv"])


def test_a_path_without_row_and_a_key_listed_twice_are_refused(tmp_path: Path) -> None:
    card = load_cards()["emns"]
    file = tmp_path / "metadata.csv"
    file.write_text(
        "id|emotion|audio_recording\n1|Happy|wavs/recorded_audio_a.wav\n2|Sad|wavs/recorded_audio_a.wav\n"
        "3|Sad|wavs/recorded_audio_b.wav\n4|Sad|wavs/recorded_audio_b.wav\n"
    )
    tables = read_given(card, [file])
    assert parse_path(card, "cleaned_webm/recorded_audio_b.webm", tables).raw == "Sad"
    with pytest.raises(BadCorpus, match="listed twice with different labels"):
        parse_path(card, "cleaned_webm/recorded_audio_a.webm", tables)
    with pytest.raises(BadCorpus, match="no row for"):
        parse_path(card, "cleaned_webm/recorded_audio_c.webm", tables)


def test_nemo_speakers_padded_with_spaces_join_and_a_contradiction_is_refused(tmp_path: Path) -> None:
    card = load_cards()["nemo"]
    header = "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage\n"
    rows = (
        'EB0_anger_53.wav\tanger\t"Tak.\ttak\t        EB0\tfemale\t27\nEB0_fear_1.wav\tsadness\tx\tx\tEB0\tfemale\t27\n'
    )
    (tmp_path / "data.tsv").write_text(header + rows, encoding="utf-8")
    tables = read_tables(card, tmp_path, ["data.tsv"])
    assert tables.row(0, "EB0_anger_53") == {"label": "anger", "speaker": "EB0", "gender": "female", "age": "27"}
    with pytest.raises(BadCorpus, match="says 'fear', its table says 'sadness'"):
        parse_path(card, "samples/EB0_fear_1.flac", tables)


def test_cameo_reads_its_labels_from_parquet(tmp_path: Path) -> None:
    card = load_cards()["cameo"]
    columns = {
        "file_id": ["EB0_anger_53.wav", "12-P-2-5.wav"],
        "emotion": ["anger", "fear"],
        "speaker_id": ["EB0", "12"],
        "gender": ["female", "male"],
        "age": ["27", None],
        "dataset": ["nEMO", "cafe"],
        "language": ["Polish", "French"],
    }
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "data" / "nemo-00000-of-00001.parquet")
    tables = read_tables(card, tmp_path, list(walk(tmp_path)))
    parsed = parse_path(card, "nemo/EB0_anger_53.wav", tables)
    assert (parsed.raw, parsed.speaker, parsed.gender, parsed.age) == ("anger", "nemo-EB0", "female", 27)
    assert parse_path(card, "cafe/12-P-2-5.flac", tables).label == "fear"


def test_emozionalmente_joins_three_tables_in_a_row(tmp_path: Path) -> None:
    card = load_cards()["emozionalmente"]
    folder = tmp_path / "metadata" / "split"
    folder.mkdir(parents=True)
    (folder.parent / "samples.csv").write_text(
        "file_name,sentence,actor,emotion_expressed\n1613655062436.wav,ciao,u7,joy\n"
    )
    (folder.parent / "users.csv").write_text("username,gender,age\nu7,other,33\n")
    (folder / "test.csv").write_text("file_name\n1613655062436.wav\n")
    tables = read_tables(card, tmp_path, list(walk(tmp_path)))
    parsed = parse_path(card, "audio/1613655062436.wav", tables)
    assert (parsed.label, parsed.speaker, parsed.gender, parsed.age, parsed.split) == (
        "happiness",
        "u7",
        "other",
        33,
        "test",
    )


def test_an_optional_table_that_cannot_be_read_does_not_lose_the_corpus(tmp_path: Path) -> None:
    card = load_cards()["crema-d"]
    (tmp_path / "VideoDemographics.csv").write_text("Actor,Age\n1001,51\n")
    tables = read_tables(card, tmp_path, ["VideoDemographics.csv"])
    assert parse_path(card, "AudioWAV/1001_DFA_ANG_XX.wav", tables).label == "anger"
    assert "no column 'ActorID'" in tables.unread[0]


def test_a_table_for_a_corpus_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCorpus, match="has no table"):
        read_given(load_cards()["emodb"], [tmp_path / "x.csv"])


def test_templates() -> None:
    assert fill("S{n:int}-{x:stem}", {"n": "007", "x": "wavs/a.b.wav"}) == "S7-a.b"
    assert fill("{t:num}", {"t": "6"}) == fill("{t:num}", {"t": "6.00"}) == "6.0"
    assert fill("{a}{b}", {"a": "1"}) is None
    assert fill("constant", {}) == "constant"
