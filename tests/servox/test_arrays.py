import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servox.arrays import EmbeddingStore, LabelledClip, clip_set_digest, read_clip_set, write_clip_set
from servox.errors import BadInput, NotFound, StorageFull

BUNDLE = "ab" * 32


def _arrays(count: int, *, dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    return {f"{i:064x}": rng.normal(size=(1 + i % 3, 4)).astype(dtype) for i in range(count)}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_arrays_come_back_as_they_were_written_whatever_their_shapes(tmp_path: Path, dtype: str) -> None:
    store, arrays = EmbeddingStore(str(tmp_path)), _arrays(7, dtype=dtype)
    store.write(bundle=BUNDLE, pooling="frames", arrays=arrays)
    keys = list(reversed(arrays))
    for key, array in zip(keys, store.read(bundle=BUNDLE, pooling="frames", keys=keys), strict=True):
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, arrays[key])


def test_parts_add_up_and_poolings_and_bundles_stay_apart(tmp_path: Path) -> None:
    store, arrays = EmbeddingStore(f"file://{tmp_path}"), _arrays(6)
    first, second = dict(list(arrays.items())[:4]), dict(list(arrays.items())[4:])
    store.write(bundle=BUNDLE, pooling="mean", arrays=first)
    store.write(bundle=BUNDLE, pooling="mean", arrays=second)
    assert store.keys(bundle=BUNDLE, pooling="mean") == set(arrays)
    assert store.keys(bundle=BUNDLE, pooling="frames") == set()
    assert store.keys(bundle="cd" * 32, pooling="mean") == set()
    assert len(store.read(bundle=BUNDLE, pooling="mean", keys=list(arrays))) == 6


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    store = EmbeddingStore(str(tmp_path))
    store.write(bundle=BUNDLE, pooling="mean", arrays=_arrays(2))
    with pytest.raises(NotFound, match=r"1 of 2 clips.*first: nowhere"):
        store.read(bundle=BUNDLE, pooling="mean", keys=[f"{0:064x}", "nowhere"])


def test_a_torn_part_counts_as_missing_and_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    EmbeddingStore(str(tmp_path)).write(bundle=BUNDLE, pooling="mean", arrays=_arrays(3))
    (part,) = tmp_path.rglob("part-*.parquet")
    part.write_bytes(part.read_bytes()[:50])
    assert EmbeddingStore(str(tmp_path)).keys(bundle=BUNDLE, pooling="mean") == set()
    assert "cannot be read" in caplog.text


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not finite"):
        EmbeddingStore(str(tmp_path)).write(bundle=BUNDLE, pooling="mean", arrays={"k": np.array([np.nan], np.float32)})
    with pytest.raises(BadInput, match="float64"):
        EmbeddingStore(str(tmp_path)).write(bundle=BUNDLE, pooling="mean", arrays={"k": np.zeros(3)})


def test_a_full_disk_is_said_so_and_leaves_no_part(tmp_path: Path) -> None:
    arrays = {"k": np.random.default_rng(0).normal(size=200_000).astype(np.float32)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(StorageFull, match="free space"):
            EmbeddingStore(str(tmp_path)).write(bundle=BUNDLE, pooling="mean", arrays=arrays)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.rglob("part-*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_no_space_on_the_device_is_a_full_disk() -> None:
    from servox.arrays import storing

    with (
        pytest.raises(StorageFull, match="No space left"),
        storing("a part"),
        Path("/dev/full").open("wb", 0) as file,
    ):
        file.write(b"x")


clips = st.lists(
    st.builds(
        LabelledClip,
        key=st.text("0123456789abcdef", min_size=64, max_size=64),
        label=st.text(),
        speaker=st.text(),
    ),
    min_size=1,
    max_size=20,
)


@given(clips=clips)
def test_a_clip_set_comes_back_whole(clips: list[LabelledClip], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("sets")
    url = write_clip_set(str(folder), clips)
    assert url == write_clip_set(str(folder), clips)
    assert read_clip_set(url) == clips
    assert clip_set_digest(clips) in url


def test_bad_clip_sets_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no clips"):
        write_clip_set(str(tmp_path), [])
    with pytest.raises(NotFound, match="nothing"):
        read_clip_set(f"{tmp_path}{os.sep}nothing.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(BadInput, match="columns key, label, speaker"):
        read_clip_set(str(tmp_path / "text.parquet"))
