from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from services.evaluator.corpora import Scan, load_cards, scan
from servox.errors import BadCorpus

WriteTables = Callable[[str, Path, Sequence[tuple[str, str]]], bool]


def _put(root: Path, *paths: str, content: bytes = b"RIFF") -> None:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _scan(root: Path, key: str, protocol: str = "sound") -> Scan:
    return scan(root, load_cards()[key], protocol="sound" if protocol == "sound" else "ser-evals")


def _reasons(found: Scan) -> dict[str, str]:
    return {skipped.path: skipped.reason for skipped in found.skipped}


def test_an_absent_folder_is_an_error_and_an_empty_one_a_problem(tmp_path: Path) -> None:
    with pytest.raises(BadCorpus, match="emodb: no folder"):
        _scan(tmp_path / "none", "emodb")
    found = _scan(tmp_path, "emodb")
    assert found.failed
    assert "no usable clip" in str(found.problems[0])
    assert "wav/03a01Wa.wav" in str(found.problems[0])


def test_a_half_present_corpus_names_the_classes_it_lacks(tmp_path: Path) -> None:
    _put(tmp_path, "wav/03a01Wa.wav", "wav/03a01Nc.flac")
    found = _scan(tmp_path, "emodb")
    assert len(found.clips) == 2
    assert found.failed
    assert "no clip of 'L', 'E', 'A', 'F', 'T'" in str(found.problems[0])


def test_unreadable_names_and_unknown_labels_are_reported_and_skipped(tmp_path: Path) -> None:
    _put(tmp_path, "s/1a-01.wav", "s/EB0_anger_1.wav", "s/EB0_fear_1.flac")
    _put(tmp_path / "samples", "notes.txt")
    (tmp_path / "data.tsv").write_text(
        "file_id\temotion\tspeaker_id\tgender\tage\nEB0_fear_1.wav\tpanic\tEB0\tfemale\t27\n", encoding="utf-8"
    )
    found = _scan(tmp_path, "nemo")
    assert [clip.path for clip in found.clips] == ["s/EB0_anger_1.wav"]
    assert "cannot read the name 's/1a-01.wav'" in _reasons(found)["s/1a-01.wav"]
    assert "unknown label 'panic'" in _reasons(found)["s/EB0_fear_1.flac"]
    severities = {str(problem): problem.severity for problem in found.problems}
    assert any("unknown label" in text and severity == "error" for text, severity in severities.items())
    assert any("cannot read" in text and severity == "warning" for text, severity in severities.items())


def test_alike_problems_are_told_once_with_their_number(tmp_path: Path) -> None:
    _put(tmp_path, *(f"wav/take{n}.wav" for n in range(5)), "wav/03a01Wa.wav")
    unreadable = [problem for problem in _scan(tmp_path, "emodb").problems if "cannot read" in problem.message]
    assert [len(problem.paths) for problem in unreadable] == [5]
    assert "5 files" in str(unreadable[0])


def test_empty_files_and_lfs_pointers_are_no_clips(tmp_path: Path) -> None:
    _put(tmp_path, "AudioWAV/1001_DFA_ANG_XX.wav", content=b"")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    _put(tmp_path, "AudioWAV/1001_DFA_DIS_XX.wav", content=pointer)
    found = _scan(tmp_path, "crema-d")
    assert not found.clips
    assert "0 bytes" in _reasons(found)["AudioWAV/1001_DFA_ANG_XX.wav"]
    assert "git lfs pull" in _reasons(found)["AudioWAV/1001_DFA_DIS_XX.wav"]


def test_hidden_files_mac_folders_and_other_files_are_not_looked_at(tmp_path: Path) -> None:
    _put(tmp_path, "__MACOSX/m01h01.wav", "emoUERJ/._m01h01.wav", ".git/m01h01.wav", "emoUERJ/readme.pdf")
    _put(tmp_path, "emoUERJ/m01h01.wav")
    found = _scan(tmp_path, "emouerj")
    assert [clip.path for clip in found.clips] == ["emoUERJ/m01h01.wav"]
    assert not found.skipped


def test_a_mirrored_tree_is_read_once(tmp_path: Path) -> None:
    name = "Actor_01/03-01-03-01-01-01-01.wav"
    _put(tmp_path, name, f"audio_speech_actors_01-24/{name}")
    found = _scan(tmp_path, "ravdess")
    assert [clip.path for clip in found.clips] == [name]
    assert _reasons(found) == {f"audio_speech_actors_01-24/{name}": f"a second copy of {name!r}"}


def test_exclusions_have_reasons_and_may_hold_for_one_protocol(tmp_path: Path) -> None:
    main = "Mexican Emotional Speech Database (MESD)/Anger_F_A_tarde.wav"
    reduced = "Reduced selection/Anger_F_A_1_tarde.wav"
    _put(tmp_path, main, reduced)
    sound, paper = _scan(tmp_path, "mesd"), _scan(tmp_path, "mesd", "ser-evals")
    assert [clip.path for clip in sound.clips] == [main]
    assert "reduced selection" in _reasons(sound)[reduced]
    assert {clip.path for clip in paper.clips} == {main, reduced}


def test_labels_differ_by_protocol_and_unused_ones_are_skipped(tmp_path: Path) -> None:
    folder = "thorsten-emotional_v02"
    stem = "2cc2cc4a34b961ef1657cc82dbd18875"
    _put(tmp_path, *(f"{folder}/{style}/{stem}.wav" for style in ("amused", "whisper", "angry")))
    sound, paper = _scan(tmp_path, "thorsten"), _scan(tmp_path, "thorsten", "ser-evals")
    assert Counter(clip.label for clip in sound.clips) == {"amusement": 1, "anger": 1}
    assert Counter(clip.label for clip in paper.clips) == {"happiness": 1, "other": 1, "anger": 1}
    assert "'whisper' stands for no class of 'sound'" in _reasons(sound)[f"{folder}/whisper/{stem}.wav"]


def test_a_speakers_gender_is_what_most_clips_say(tmp_path: Path) -> None:
    _put(tmp_path, "05Angry/a5-01-01-01-09.wav", "05Angry/a5-02-01-02-09.wav", "03Happy/h3-01-01-01-09.wav")
    assert {clip.gender for clip in _scan(tmp_path, "ased").clips} == {"female"}


def test_long_files_are_cut_by_their_table(tmp_path: Path, write_tables: WriteTables) -> None:
    pairs = [("pavoque-angry.flac#spike0001@0.5-2.25", "angry"), ("pavoque-angry.flac#m0158@3-4.5", "angry")]
    outtakes = [("pavoque-outtakes.flac#m0107e@1-2", "happy")]
    write_tables("pavoque", tmp_path, pairs + outtakes)
    _put(tmp_path, "pavoque-angry.flac", "pavoque-outtakes.flac", "pavoque-sad.flac")
    found = _scan(tmp_path, "pavoque")
    clips = [(clip.path, clip.label, clip.start_ms, clip.end_ms, clip.file.name) for clip in found.clips]
    assert clips == [
        ("pavoque-angry.flac#spike0001@0.5-2.25", "anger", 500, 2250, "pavoque-angry.flac"),
        ("pavoque-angry.flac#m0158@3-4.5", "anger", 3000, 4500, "pavoque-angry.flac"),
    ]
    assert "outtakes" in _reasons(found)["pavoque-outtakes.flac"]
    assert "no segments" in _reasons(found)["pavoque-sad.flac"]


def test_dialogues_are_cut_by_channel_under_sound_and_taken_whole_as_the_paper_did(tmp_path: Path) -> None:
    folder = "audio_48khz/conversational/ex04-ex02/sad-sympathetic"
    name = "ex04-ex02_sad-sympathetic_001"
    _put(tmp_path, f"{folder}/{name}.wav", "audio_48khz/read/ex03/sad/base/ex03_sad_00041.wav")
    (tmp_path / "VAD_segments.txt").write_text(
        f"{name}/channel1\t(0.5, 2.0) (3.0, 4.0)\n{name}/channel2\t(2.0, 3.0)\nother/channel1\t(0.1, 0.2)\n"
    )
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "dev.txt").write_text(f"# dev\nex03_sad_00041\n{name}\t(,60.0s)\n")
    sound, paper = _scan(tmp_path, "expresso"), _scan(tmp_path, "expresso", "ser-evals")
    found = {(clip.label, clip.speaker, clip.channel, clip.start_ms, clip.split) for clip in sound.clips}
    assert found == {
        ("sadness", "ex04", 1, 500, None),
        ("sadness", "ex04", 1, 3000, None),
        ("sympathy", "ex02", 2, 2000, None),
        ("sadness", "ex03", None, None, "dev"),
    }
    assert Counter(clip.label for clip in paper.clips) == {"sadness": 2}


def test_a_corpus_whose_table_is_missing_is_lost(tmp_path: Path) -> None:
    _put(tmp_path, "cleaned_webm/recorded_audio_RF6OuQ4.webm")
    found = _scan(tmp_path, "emns")
    assert found.failed
    assert "no table 'metadata.csv'" in str(found.problems[0])


def test_a_damaged_table_loses_the_corpus_with_one_clear_problem(tmp_path: Path) -> None:
    _put(tmp_path, "BAUM1a_MP4_all/s001/S001_001.mp4")
    (tmp_path / "Annotations_BAUM1a.xlsx").write_bytes(b"broken")
    found = _scan(tmp_path, "baum")
    assert found.failed
    assert [problem.severity for problem in found.problems] == ["error"]
    assert "Annotations_BAUM1a.xlsx" in str(found.problems[0])


def test_a_name_that_is_not_utf8_is_reported_not_fatal(tmp_path: Path) -> None:
    _put(tmp_path, "wav/03a01Wa.wav")
    (tmp_path / "wav").joinpath(b"03a\xff1Wa.wav".decode("utf-8", "surrogateescape")).write_bytes(b"RIFF")
    found = _scan(tmp_path, "emodb")
    assert len(found.clips) == 1
    assert len(found.skipped) == 1


@pytest.mark.parametrize(
    ("folder", "key", "clips", "speakers", "classes"),
    [
        ("EmoDB", "emodb", 535, 10, 7),
        ("RAVDESS", "ravdess", 720, 24, 8),
        ("URDU", "urdu", 400, 29, 4),
        ("nEMO", "nemo", 636, 9, 6),
        ("TurEV-DB", "turev-db", 440, 6, 4),
    ],
)
def test_real_copies_scan_whole(
    data_root: Path, folder: str, key: str, clips: int, speakers: int, classes: int
) -> None:
    found = _scan(data_root / "corpora" / folder, key)
    assert (len(found.clips), len(found.skipped), found.failed) == (clips, 0, False)
    assert len({clip.speaker for clip in found.clips}) == speakers
    assert len({clip.label for clip in found.clips}) == classes
    assert all(clip.file.is_file() and clip.gender for clip in found.clips) or key == "turev-db"
    # A speaker with one class only would let the speaker tell the label.
    assert (
        all(len({c.label for c in found.clips if c.speaker == s}) > 1 for s in {c.speaker for c in found.clips})
        or key == "urdu"
    )


def test_the_real_emodb_has_the_papers_counts_under_the_papers_map(data_root: Path) -> None:
    card = load_cards()["emodb"]
    found = _scan(data_root / "corpora" / "EmoDB", "emodb", "ser-evals")
    assert card.paper
    assert Counter(clip.label for clip in found.clips) == dict(card.paper.counts)
