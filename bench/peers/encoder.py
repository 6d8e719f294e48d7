"""What every peer wraps: the decoder and the runtime of the product, so that only the serving differs.

A batch is padded to its longest clip, rounded up to the same step as the product pads to, and every bucket is run
once before the peer says that it is ready.
"""

from collections.abc import Sequence

import numpy as np

from bench.peers.options import Options
from services.embedder import bundle as bundles
from services.embedder.runtimes import Pcm, choose
from servox import audio

STEP_S = 0.1


class Encoder:
    """One copy of the bundle; used by one thread at a time."""

    def __init__(self, options: Options) -> None:
        self._bundle = bundles.load(options.folder)
        self._runtime = choose(self._bundle, threads=options.threads)
        self._row = self._bundle.layer_index(self._bundle.default_layer)
        self._step = round(STEP_S * self._bundle.rate_hz)
        for seconds in options.warm_s:
            noise = np.random.default_rng(0).normal(0, 0.01, int(seconds * self._bundle.rate_hz))
            self.encode([noise.astype(np.float32)])

    def decode(self, data: bytes) -> audio.Samples:
        """Mono samples at the bundle's rate."""
        return audio.decode(data, self._bundle.rate_hz).samples

    def encode(self, clips: Sequence[audio.Samples]) -> Pcm:
        """Means over frames of the default layer, [clips, d]."""
        lengths = np.array([len(clip) for clip in clips], np.int64)
        width = min(-(-int(lengths.max()) // self._step) * self._step, self._bundle.max_samples)
        pcm = np.zeros((len(clips), width), np.float32)
        for row, clip in zip(pcm, clips, strict=True):
            row[: len(clip)] = clip
        return self._runtime.run(pcm, lengths).statistics[:, self._row, 0]

    def embed(self, files: Sequence[bytes]) -> list[bytes]:
        """Files to little-endian float32 vectors."""
        return [vector.tobytes() for vector in self.encode([self.decode(data) for data in files])]
