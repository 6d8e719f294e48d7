import dataclasses
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from services.embedder.bundle import GRAPH, Bundle, load
from services.embedder.runtimes import LANES, Pcm, Runtime, check_batch, choose, lanes
from services.embedder.runtimes.onnx import OnnxRuntime
from services.embedder.runtimes.openvino import OpenVinoRuntime, inference_precision
from servox.errors import BadSetting, BundleError, Unavailable

ENGINES: list[Callable[..., Runtime]] = [OnnxRuntime, OpenVinoRuntime]


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return load(tiny_bundle)


def test_openvino_is_the_choice_on_a_cpu(bundle: Bundle) -> None:
    for device in ("auto", "cpu"):
        runtime = choose(bundle, device)
        assert (runtime.name, runtime.device) == ("openvino", "cpu")
    assert choose(bundle, engine="onnx").name == "onnx"


def test_cuda_is_refused_where_it_is_not(bundle: Bundle) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    with pytest.raises(Unavailable, match=r"no CUDAExecutionProvider here: install servox\[gpu\]"):
        choose(bundle, "cuda")


def test_unknown_devices_and_engines_are_named(bundle: Bundle) -> None:
    with pytest.raises(BadSetting, match=r"device 'tpu'.*auto, cpu, cuda"):
        choose(bundle, "tpu")
    with pytest.raises(BadSetting, match=r"engine 'torch'.*auto, openvino, onnx"):
        choose(bundle, engine="torch")
    with pytest.raises(BadSetting, match="openvino runs on CPUs only"):
        choose(bundle, "cuda", engine="openvino")


def test_bf16_needs_a_cpu_and_an_engine_that_have_it(bundle: Bundle) -> None:
    with pytest.raises(Unavailable, match=r"no bf16.*--precision fp32"):
        inference_precision("bf16", ["FP32", "INT8"])
    assert inference_precision("bf16", ["FP32", "BF16"]) == "bf16"
    assert inference_precision("fp32", ["FP32", "BF16"]) == "f32"
    assert inference_precision("int8", ["FP32", "BF16"]) == "bf16"
    assert inference_precision("int8", ["FP32"]) == "f32"
    with pytest.raises(Unavailable, match="ONNX Runtime does not execute bf16"):
        choose(dataclasses.replace(bundle, precision="bf16"), engine="onnx")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_that_cannot_be_read_is_a_bundle_error(
    bundle: Bundle, tmp_path: Path, engine: Callable[..., Runtime]
) -> None:
    for content in (b"", b"not onnx at all", bundle.graph.read_bytes()[:-100]):
        (tmp_path / GRAPH).write_bytes(content)
        with pytest.raises(BundleError, match="cannot read"):
            engine(dataclasses.replace(bundle, folder=tmp_path))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_closed_runtime_says_so(bundle: Bundle, engine: Callable[..., Runtime]) -> None:
    runtime = engine(bundle, threads=1)
    runtime.close()
    with pytest.raises(Unavailable, match="closed"):
        runtime.run(np.zeros((1, 16_000), np.float32), np.array([16_000]))


@pytest.mark.parametrize("engine", ENGINES)
def test_results_outlive_the_next_run(bundle: Bundle, engine: Callable[..., Runtime]) -> None:
    runtime = engine(bundle, threads=1)
    rng = np.random.default_rng(0)
    first = runtime.run(rng.normal(size=(2, 8_000)).astype(np.float32), np.array([8_000, 500]), frames=True)
    assert first.frames is not None
    kept = first.statistics.copy(), first.frames.copy()
    runtime.run(rng.normal(size=(2, 8_000)).astype(np.float32), np.array([8_000, 900]), frames=True)
    np.testing.assert_array_equal(first.statistics, kept[0])
    np.testing.assert_array_equal(first.frames, kept[1])


def test_lanes_of_one_graph_answer_each_its_own_batch(bundle: Bundle) -> None:
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=(1, samples)).astype(np.float32) for samples in (8_000, 16_000, 5_000, 12_000)]
    alone = choose(bundle, threads=1)
    expected = [alone.run(clip, np.array([clip.shape[1]])).statistics for clip in clips]
    shared = lanes(bundle, streams=2, threads=1)
    assert len(shared) == len(clips) == LANES * 2

    def work(lane: Runtime, clip: Pcm) -> list[np.ndarray]:
        return [lane.run(clip, np.array([clip.shape[1]])).statistics for _ in range(30)]

    with ThreadPoolExecutor(len(shared)) as threads:
        for found, wanted in zip(threads.map(work, shared, clips), expected, strict=True):
            for statistics in found:
                np.testing.assert_allclose(statistics, wanted, atol=1e-5)
    shared[0].close()
    shared[1].run(clips[0], np.array([8_000]))


def test_an_engine_that_does_not_queue_gets_a_lane_a_stream(bundle: Bundle) -> None:
    assert [lane.name for lane in lanes(bundle, engine="onnx", streams=2, threads=1)] == ["onnx", "onnx"]


@pytest.mark.parametrize("engine", ENGINES)
def test_samples_that_may_not_be_written_are_read(bundle: Bundle, engine: Callable[..., Runtime]) -> None:
    pcm = np.random.default_rng(0).normal(size=(1, 8_000)).astype(np.float32)
    runtime = engine(bundle, threads=1)
    expected = runtime.run(pcm, np.array([8_000])).statistics
    pcm.flags.writeable = False
    np.testing.assert_array_equal(runtime.run(pcm, np.array([8_000])).statistics, expected)


def test_batches_that_do_not_fit_are_faults_of_the_caller() -> None:
    pcm = np.zeros((2, 100), np.float32)
    for lengths in ([1], [1, 2, 3], [0, 5], [5, 101]):
        with pytest.raises(ValueError, match="lengths"):
            check_batch(pcm, np.array(lengths), 1000)
    with pytest.raises(ValueError, match="lengths"):
        check_batch(pcm[:0], np.array([], np.int64), 1000)
    with pytest.raises(ValueError, match="lengths"):
        check_batch(pcm, np.array([100, 60]), 80)
    assert check_batch(pcm, np.array([80, 60]), 80).shape == (2, 80)
    assert check_batch(np.asfortranarray(pcm.astype(np.float64)), np.array([80, 60]), 100).flags.c_contiguous


def test_opening_openvino_forks_nothing_and_reports_to_no_one() -> None:
    code = (
        "import sys\n"
        "def watch(event, arguments):\n"
        "    if event in ('os.fork', 'os.posix_spawn', 'socket.connect'): print('did', event)\n"
        "sys.addaudithook(watch)\n"
        "from services.embedder.runtimes.openvino import openvino\n"
        "openvino.Core()\n"
        "print('stub' if 'openvino.tools.ovc.telemetry_stub' in sys.modules else 'telemetry')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["stub"], done.stderr


FIRST_TOGETHER = """
import sys, threading
import numpy as np
import services.embedder.runtimes.openvino
import openvino
from openvino import opset15 as opset

def request():
    given = opset.parameter([-1, -1], np.float32, name="x")
    model = openvino.Model([opset.result(opset.relu(given))], [given], "m")
    return openvino.Core().compile_model(model, "CPU").create_infer_request()

def infer(request, barrier):
    barrier.wait()
    request.infer({0: np.zeros((1, 4), np.float32)}, share_inputs=True, share_outputs=True)

requests, barrier = [request() for _ in range(8)], threading.Barrier(8)
sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=infer, args=(each, barrier), daemon=True) for each in requests]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(30)
sys.exit(any(thread.is_alive() for thread in threads))
"""


def test_threads_that_infer_first_together_do_not_wait_for_each_other_for_ever() -> None:
    # Without the tables filled at import, every second process hangs: several make a miss unlikely.
    processes = [subprocess.Popen([sys.executable, "-c", FIRST_TOGETHER]) for _ in range(4)]
    try:
        assert [process.wait(120) for process in processes] == [0] * 4
    finally:
        for process in processes:
            process.kill()
