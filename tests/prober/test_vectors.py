"""Reading a store: each clip once, in order, within a budget."""
# ruff: noqa: ANN401 -- the corpus is a fixture of this folder

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.prober.frames import FrameFile
from services.prober.vectors import Vectors
from servox.arrays import EmbeddingStore
from servox.errors import BadInput, NotFound


def keys(corpus: Any) -> list[str]:
    return [clip.key for clip in corpus.clips]


def read(vectors: Vectors, corpus: Any, chosen: list[str]) -> Any:
    return vectors.pooled(corpus.store, bundle=corpus.bundle, layers=[corpus.layer], keys=chosen)


def test_vectors_come_in_the_order_of_the_keys(corpus: Any) -> None:
    every = keys(corpus)
    chosen = [every[5], every[0], every[5], every[70]]
    wanted = corpus.vectors()[[5, 0, 5, 70]]
    vectors = Vectors(1 << 20)
    np.testing.assert_array_equal(read(vectors, corpus, chosen), wanted)
    np.testing.assert_array_equal(read(vectors, corpus, chosen), wanted)


def test_several_layers_come_one_after_the_other(corpus: Any) -> None:
    every = keys(corpus)
    stored = EmbeddingStore(corpus.store).read(bundle=corpus.bundle, pooling="mean", keys=every)
    vectors = Vectors(1 << 20)
    read(vectors, corpus, every[:9])  # one of the layers is in memory for some of the clips
    together = vectors.pooled(corpus.store, bundle=corpus.bundle, layers=[0, 1, 2], keys=every)
    np.testing.assert_array_equal(together, np.stack(stored).reshape(len(every), -1))


def test_a_clip_is_read_once(corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plain = EmbeddingStore.read

    def counted(self: EmbeddingStore, *, bundle: str, pooling: str, keys: Any) -> Any:
        asked.append(len(keys))
        return plain(self, bundle=bundle, pooling=pooling, keys=keys)

    monkeypatch.setattr(EmbeddingStore, "read", counted)
    vectors = Vectors(1 << 20)
    read(vectors, corpus, keys(corpus)[:50])
    read(vectors, corpus, keys(corpus))
    read(vectors, corpus, keys(corpus))
    assert asked == [50, 22]


def test_the_budget_is_kept(corpus: Any) -> None:
    vectors = Vectors(10 * corpus.dims * 4)
    np.testing.assert_array_equal(read(vectors, corpus, keys(corpus)), corpus.vectors())
    assert len(vectors._held) == 10
    np.testing.assert_array_equal(read(vectors, corpus, keys(corpus)), corpus.vectors())
    assert vectors._bytes <= 10 * corpus.dims * 4


def test_what_is_not_there_is_said(corpus: Any) -> None:
    vectors = Vectors(1 << 20)
    with pytest.raises(NotFound, match="1 of 1 clips have no mean embedding"):
        read(vectors, corpus, ["f" * 64])
    with pytest.raises(BadInput, match="no clips were named"):
        read(vectors, corpus, [])
    with pytest.raises(BadInput, match="has no layer 3"):
        vectors.pooled(corpus.store, bundle=corpus.bundle, layers=[3], keys=keys(corpus)[:1])


def test_frames_lie_in_a_file_as_they_were(corpus: Any, tmp_path: Path) -> None:
    every = keys(corpus)[:40]
    wanted = EmbeddingStore(corpus.store).read(bundle=corpus.bundle, pooling="frames", keys=every)
    vectors, calls = Vectors(0), list[int]()

    def parts() -> Any:
        calls.append(1)
        return vectors.frames(corpus.store, bundle=corpus.bundle, keys=every)

    file = FrameFile(tmp_path)
    values, lengths = file.open(parts)
    assert file.open(parts)[0] is values
    assert calls == [1]
    np.testing.assert_array_equal(values, np.concatenate(wanted))
    assert lengths.tolist() == [len(frames) for frames in wanted]
    file.close()
    assert not list(tmp_path.iterdir()), "nothing stays on the disk"


def test_stored_shapes_that_make_no_sense_are_refused(corpus: Any, tmp_path: Path) -> None:
    store = EmbeddingStore(str(tmp_path))
    store.write(bundle=corpus.bundle, pooling="frames", arrays={"a" * 64: np.zeros(3, dtype=np.float32)})
    store.write(bundle=corpus.bundle, pooling="mean", arrays={"a" * 64: np.zeros((2, 3), dtype=np.float32)})
    store.write(bundle=corpus.bundle, pooling="mean", arrays={"b" * 64: np.zeros((2, 4), dtype=np.float32)})
    vectors = Vectors(0)
    with pytest.raises(BadInput, match=r"shape \[3\], not \[frames, d\]"):
        list(vectors.frames(str(tmp_path), bundle=corpus.bundle, keys=["a" * 64]))
    with pytest.raises(BadInput, match=r"\[3, 4\] dimensions"):
        vectors.pooled(str(tmp_path), bundle=corpus.bundle, layers=[0], keys=["a" * 64, "b" * 64])
