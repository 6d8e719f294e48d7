"""What can be wrong with a checkpoint, of every family: each a clear error before any work is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.small_models import SMALL_MODELS, save
from services.embedder.backbones import open_backbone
from services.embedder.backbones.checkpoint import CONVERT
from services.embedder.export import beside, export
from services.embedder.leftovers import OLD, hidden, sweep
from services.embedder.runtimes.torch import TorchRuntime
from servox.errors import BadInput, BadSetting

FAMILIES = ("whisper-80", "wav2vec2-robust", "hubert-base", "wavlm-base", "mert-base", "w2v-bert", "clap")
RATES = {"mert": 24_000, "clap": 48_000}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("originals")
    return lambda name: folder / name if (folder / name).exists() else save(folder, name)


@pytest.fixture(params=FAMILIES)
def copy(request: pytest.FixtureRequest, originals: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint to spoil, in a folder named after its family."""
    folder = tmp_path / str(request.param)
    shutil.copytree(originals(request.param), folder)
    return folder


def edited(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path, words: str, *, blocks: int | str = "all") -> None:
    """Export says `words` and leaves nothing beside the checkpoint."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(BadInput, match=words):
        export(str(folder), folder.parent / "bundle", blocks=blocks)
    assert sorted(folder.parent.rglob("*")) == before


def encoder_tensor(tensors: dict[str, torch.Tensor]) -> str:
    """A tensor of the encoder's last block that every family must have."""
    kinds = ("layers.2.fc1.weight", "layers.1.feed_forward.intermediate_dense.weight",
             "layers.1.ffn1.intermediate_dense.weight", "layers.3.blocks.1.intermediate.dense.weight")  # fmt: skip
    return next(name for name in tensors if name.endswith(kinds) and "decoder" not in name)


def test_an_unknown_family(copy: Path) -> None:
    edited(copy / "config.json", model_type="bert")
    refused(copy, "of the family 'bert', which cannot be exported: use one of whisper, wav2vec2, .*clap.*logmel")


def test_a_missing_tensor(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = encoder_tensor(tensors)
    save_file({key: t for key, t in tensors.items() if key != name}, copy / "model.safetensors")
    refused(copy, rf"lacks the tensor .*{name[-18:]}")


def test_a_tensor_that_the_config_does_not_know(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = encoder_tensor(tensors)
    save_file({**tensors, name.replace("weight", "adapter"): torch.ones(3)}, copy / "model.safetensors")
    refused(copy, "a tensor .*adapter that its config.json does not know")


def test_a_tensor_of_another_shape(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = encoder_tensor(tensors)
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, copy / "model.safetensors")
    refused(copy, r"tensor .* is \[\d+, \d+\] and its config.json says \[\d+, \d+\]")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.9])
def test_a_truncated_file(copy: Path, keep: float) -> None:
    path = copy / "model.safetensors"
    os.truncate(path, int(path.stat().st_size * keep))
    refused(copy, "model.safetensors of the checkpoint is damaged or cut short .*fetch the checkpoint again")


def test_a_pickle_is_refused_with_the_way_to_convert_it(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    refused(copy, f"{copy.name} holds its weights as a pickle.*convert it where you trust it")


def test_the_conversion_reads_one_pickle_or_several(originals: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = load_file(originals("mert-base") / "model.safetensors")
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        torch.save({name: tensors[name] for name in part}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    shutil.copy(originals("mert-base") / "config.json", tmp_path)
    with pytest.raises(BadInput, match="as a pickle"):
        open_backbone(str(tmp_path))
    subprocess.run(CONVERT.replace("python", sys.executable, 1), shell=True, check=True, cwd=tmp_path)
    converted = load_file(tmp_path / "model.safetensors")
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[name], tensors[name]) for name in tensors)


def test_a_wrong_sampling_rate(copy: Path) -> None:
    edited(copy / "preprocessor_config.json", sampling_rate=8000)
    refused(copy, f"sampling_rate 8000: only .*{RATES.get(copy.name.partition('-')[0], 16_000)}")


def test_a_shard_that_is_not_there(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model-1-of-1.safetensors")}))
    refused(copy, r"lacks model-1-of-1\.safetensors, which its model\.safetensors\.index\.json names")
    for named in ({}, {"x": "../elsewhere.safetensors"}, ["x"]):
        index.write_text(json.dumps({"weight_map": named}))
        refused(copy, "names no files beside it")


@pytest.mark.parametrize("blocks", [-1, 99])
def test_a_depth_that_is_not_there(copy: Path, blocks: int) -> None:
    with pytest.raises(BadSetting, match=rf"--blocks {blocks} is out of range for {copy.name}: use 0 to \d, or all"):
        export(str(copy), copy.parent / "bundle", blocks=blocks)


def test_audio_shorter_than_the_receptive_field_gives_one_frame(copy: Path) -> None:
    """The server refuses such a clip; the graph itself takes it as followed by silence, and stays finite."""
    backbone = open_backbone(str(copy))
    graph = TorchRuntime(backbone.graph(backbone.default_context, 1))
    width = max(backbone.window_samples, 2)
    pcm = np.random.default_rng(0).normal(0, 0.1, (2, width)).astype(np.float32)
    result = graph.run(pcm, np.array([1, width]), frames=True)
    assert np.isfinite(result.statistics).all()
    assert np.abs(result.statistics[0, :, 1]).max() < 1e-4  # one frame has no spread


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_every_small_model_is_of_a_known_family(originals: Callable[[str], Path], name: str) -> None:
    backbone = open_backbone(str(originals(name)))
    assert len(backbone.layers(backbone.blocks)) > backbone.blocks
    assert backbone.rate_hz == RATES.get(
        name, 24_000 if name.startswith("mert") else 48_000 if "clap" in name else 16_000
    )


def test_an_export_that_is_killed_leaves_no_half_bundle(tmp_path: Path) -> None:
    """What it leaves is hidden, and the next export sweeps it."""
    out = tmp_path / "bundle"
    code = (
        "import time; from services.embedder.export import export; "
        "hold = lambda step, _: time.sleep(600 if step == 'trace the graph' else 0); "
        f"export('logmel', {str(out)!r}, progress=hold)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        deadline = time.monotonic() + 200
        while not any(path.stat().st_mode & 0o055 for path in tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)  # its mode is set once the export has its lock
        sweep(out)
        left = list(tmp_path.glob(".bundle.*"))
        process.send_signal(signal.SIGKILL)
    assert len(left) == 1  # another export does not sweep what is in use
    assert not out.exists()
    sweep(out)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_swept_before_its_lock_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep between the two is what happens when two exports to one place begin together."""
    out, made, make = tmp_path / "bundle", list[str](), tempfile.mkdtemp

    def make_and_lose(*, prefix: str, dir: Path) -> str:  # noqa: A002 -- its name
        made.append(make(prefix=prefix, dir=dir))
        if len(made) < 3:
            sweep(out)
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose)
    with hidden(out) as folder:
        assert str(folder) == made[2]
        assert [str(path) for path in tmp_path.iterdir()] == [made[2]]


def test_a_new_folder_waits_for_the_sweep_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the lock of a sweep and its removal nobody begins to use the folder."""
    out, removing, go_on, remove = tmp_path / "bundle", threading.Event(), threading.Event(), shutil.rmtree
    stale = tmp_path / ".bundle.stale"
    stale.mkdir()

    def remove_late(path: Path, *, ignore_errors: bool) -> None:
        removing.set()
        assert go_on.wait(20)
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", remove_late)
    names = iter([str(stale), str(tmp_path / "fresh")])
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: next(names))

    def make() -> Path:
        with hidden(out) as folder:
            return folder

    with ThreadPoolExecutor(2) as threads:
        swept = threads.submit(sweep, out)
        assert removing.wait(20)
        (tmp_path / "fresh").mkdir()
        made = threads.submit(make)
        assert not wait([made], timeout=0.3).done
        go_on.set()
        swept.result()
        assert made.result() == tmp_path / "fresh"
    assert not stale.exists()


def test_the_one_copy_of_a_bundle_is_never_swept(tmp_path: Path) -> None:
    """A kill between the two renames of a replacement leaves the old bundle under its hidden name only."""
    old = tmp_path / f".bundle.{OLD}x" / "bundle"
    old.mkdir(parents=True)
    (tmp_path / ".bundle.file").write_text("mine")
    (tmp_path / ".bundles.y").mkdir()
    sweep(tmp_path / "bundle")
    assert old.is_dir()
    (tmp_path / "bundle").mkdir()
    sweep(tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bundle.file", ".bundles.y", "bundle"]


def test_a_bundle_in_the_making_is_held(tmp_path: Path) -> None:
    with beside(tmp_path / "bundle") as folder:
        sweep(tmp_path / "bundle")
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []
