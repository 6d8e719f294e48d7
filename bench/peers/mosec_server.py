"""mosec: its Rust front batches; one stage that decodes and encodes, or a stage of decoders before the encoders."""

import importlib
import os
from collections.abc import Sequence
from typing import Any

from bench.peers.encoder import Encoder
from bench.peers.options import Options
from servox import audio

mosec: Any = importlib.import_module("mosec")


class Decode(mosec.Worker):  # type: ignore[misc]  # mosec is installed beside the product, not with it
    """The first of two stages."""

    def deserialize(self, data: bytes) -> bytes:
        """The body is the file; mosec lends it as a view."""
        return bytes(data)

    def forward(self, data: bytes) -> audio.Samples:
        """Decodes one clip."""
        return audio.decode(data, 16_000).samples


class Encode(mosec.Worker):  # type: ignore[misc]  # as above
    """The second of two stages, or the only one."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._options = Options.from_environment()
        self._encoder = Encoder(self._options)

    def deserialize(self, data: bytes) -> bytes:
        """The body is the file; mosec lends it as a view."""
        return bytes(data)

    def serialize(self, data: bytes) -> bytes:
        """The body is the vector."""
        return data

    def forward(self, data: Any) -> Any:  # noqa: ANN401 -- a list of clips, or one where batches are off
        """Encodes a batch."""
        clips: Sequence[Any] = data if self._options.batch > 1 else [data]
        samples = [self._encoder.decode(clip) if isinstance(clip, bytes) else clip for clip in clips]
        vectors = [vector.tobytes() for vector in self._encoder.encode(samples)]
        return vectors if self._options.batch > 1 else vectors[0]


def main() -> None:
    """Serves until SIGTERM."""
    options = Options.from_environment()
    os.environ["MOSEC_PORT"] = str(options.port)
    os.environ["MOSEC_ADDRESS"] = "127.0.0.1"
    os.environ["MOSEC_TIMEOUT"] = str(options.deadline_ms)
    os.environ["MOSEC_CAPACITY"] = str(options.queue)
    os.environ["MOSEC_LOG_LEVEL"] = "error"
    server = mosec.Server()
    if options.decoders:
        server.append_worker(Decode, num=options.decoders)
    server.append_worker(
        Encode, num=options.workers, max_batch_size=options.batch, max_wait_time=max(1, round(options.wait_ms))
    )
    server.run()


if __name__ == "__main__":
    main()
