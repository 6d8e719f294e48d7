"""LitServe: workers that collect batches from one queue; clips travel as base64 in JSON, as its documents show."""

import base64
import importlib
from collections.abc import Sequence
from typing import Any

from bench.peers.encoder import Encoder
from bench.peers.options import Options

litserve: Any = importlib.import_module("litserve")


class Api(litserve.LitAPI):  # type: ignore[misc]  # LitServe is installed beside the product, not with it
    """The encoder behind /predict."""

    def setup(self, _device: str) -> None:
        """Loads and warms the encoder in the worker."""
        self._encoder = Encoder(Options.from_environment())

    def decode_request(self, request: dict[str, str]) -> bytes:
        """The file."""
        return base64.b64decode(request["clip"])

    def batch(self, inputs: Sequence[bytes]) -> Sequence[bytes]:
        """Files stay files: they are of different lengths."""
        return inputs

    def unbatch(self, output: Sequence[bytes]) -> Sequence[bytes]:
        """One vector a clip."""
        return output

    def predict(self, x: Any) -> Any:  # noqa: ANN401 -- a list of files, or one where batches are off
        """Vectors of a batch."""
        return self._encoder.embed(x) if isinstance(x, list) else self._encoder.embed([x])[0]

    def encode_response(self, output: bytes) -> dict[str, str]:
        """The vector."""
        return {"vector": base64.b64encode(output).decode()}


def main() -> None:
    """Serves until SIGTERM."""
    options = Options.from_environment()
    api = Api(max_batch_size=options.batch, batch_timeout=options.wait_ms / 1000)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=options.workers, timeout=options.deadline_ms / 1000, fast_queue=True
    )
    server.run(port=options.port, host="127.0.0.1", generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main()
