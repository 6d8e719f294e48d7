"""Buffers on the device, one set for each shape, so that only small statistics come back and addresses never change.

A CUDA graph replays a captured run on the very addresses that it was captured with. So shapes come from a short list
where a captured graph pays: a small batch, which a GPU finishes sooner than its kernels can be launched one by one.
Pure but for `Buffers`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from services.embedder.bundle import Bundle
from services.embedder.runtimes import Lengths, Pcm

WIDTHS_S = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 20, 30)  # the server's length buckets
CAPTURED_S = 32.0  # seconds of audio in a batch up to which launches, not arithmetic, take the time


def captured_shape(rows: int, width: int, bundle: Bundle) -> tuple[int, int] | None:
    """The shape that a batch is padded to for a captured graph: rows to a power of two, width to its bucket.

    None where the batch is so large that it had better run as it is.
    """
    widths = [min(bundle.max_samples, int(seconds * bundle.rate_hz)) for seconds in WIDTHS_S]
    fitting = [wide for wide in (*widths, bundle.max_samples) if wide >= width]
    padded = 1 << (rows - 1).bit_length(), min(fitting)
    seconds = padded[0] * padded[1] / bundle.rate_hz
    return padded if seconds <= CAPTURED_S or rows == 1 else None


def padded_batch(pcm: Pcm, lengths: Lengths, shape: tuple[int, int]) -> tuple[Pcm, Lengths]:
    """The batch in the shape of a captured graph: zeros after the clips, and rows of one sample below them."""
    wide = np.zeros(shape, np.float32)
    wide[: pcm.shape[0], : pcm.shape[1]] = pcm
    return wide, np.concatenate([lengths, np.ones(shape[0] - len(lengths), np.int64)])


class Buffers:
    """Inputs and statistics of one shape, on the device from the first run to the last.

    Args:
        session: that reads and writes them.
        shape: rows and samples.
        statistics: layers and dimensions of a row's statistics.
        device: `cuda` or `cpu`.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        *,
        shape: tuple[int, int],
        statistics: tuple[int, int],
        device: str,
    ) -> None:
        self._session = session
        of = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self._inputs: Mapping[str, Any] = {
            "pcm": of(shape, np.float32, device, 0),
            "lengths": of((shape[0],), np.int64, device, 0),
        }
        layers, dims = statistics
        self._statistics: Any = of((shape[0], layers, 2, dims), np.float32, device, 0)
        self._binding: Any = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output("statistics", self._statistics)

    def run(self, pcm: Pcm, lengths: Lengths) -> NDArray[np.float32]:
        """Statistics of a batch of this shape."""
        self._inputs["pcm"].update_inplace(pcm)
        self._inputs["lengths"].update_inplace(lengths)
        self._session.run_with_iobinding(self._binding)
        return np.array(self._statistics.numpy(), np.float32)
