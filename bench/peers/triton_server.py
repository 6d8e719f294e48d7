"""NVIDIA Triton through PyTriton: its C++ front, dynamic batcher and queue policy; the encoder in Python."""

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.peers.encoder import Encoder
from bench.peers.options import Options

config = importlib.import_module("pytriton.model_config")
decorators = importlib.import_module("pytriton.decorators")
triton = importlib.import_module("pytriton.triton")


def _copy(options: Options) -> Callable[..., dict[str, Any]]:
    """One instance of the model."""
    encoder = Encoder(options)

    def embed(clip: Any) -> dict[str, Any]:  # noqa: ANN401 -- an array of bytes objects [batch, 1]
        # A zero byte at the end would be lost on the way, so each file came with one more byte.
        vectors = encoder.encode([encoder.decode(bytes(row[0])[:-1]) for row in clip])
        return {"vector": vectors}

    found: Callable[..., dict[str, Any]] = decorators.batch(embed)
    return found


def main() -> None:
    """Serves until SIGTERM."""
    options = Options.from_environment()
    policy = config.common.QueuePolicy(
        timeout_action=config.common.TimeoutAction.REJECT,
        default_timeout_microseconds=options.deadline_ms * 1000,
        max_queue_size=options.queue,
    )
    batcher = config.DynamicBatcher(
        max_queue_delay_microseconds=round(options.wait_ms * 1000), default_queue_policy=policy
    )
    settings = triton.TritonConfig(
        http_address="127.0.0.1", http_port=options.port, allow_grpc=False, allow_metrics=False, log_verbose=0
    )
    with triton.Triton(config=settings) as server:
        server.bind(
            model_name="embed",
            infer_func=[_copy(options) for _ in range(options.workers)],
            inputs=[config.Tensor(name="clip", dtype=bytes, shape=(1,))],
            outputs=[config.Tensor(name="vector", dtype=np.float32, shape=(-1,))],
            config=config.ModelConfig(max_batch_size=options.batch, batcher=batcher),
            strict=False,
        )
        server.run()
        while server.is_alive():
            time.sleep(1)


if __name__ == "__main__":
    main()
