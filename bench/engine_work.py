"""How much arithmetic an encoder does, and how much the machine can do: what a fraction of peak is a fraction of."""

import time
from dataclasses import dataclass

KERNEL = 3  # width of both convolutions
PEAK_SIZE = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of one Whisper encoder."""

    mels: int
    dims: int
    inner: int
    blocks: int


def encoder_flops(sizes: Sizes, *, frames: int, tokens: int, rows: int, blocks: int) -> float:
    """Multiplications and additions of convolutions and transformer blocks for one clip, the front end left out.

    Args:
        sizes: of the encoder.
        frames: that the second convolution computes.
        tokens: that a block reads.
        rows: that the last block computes; fewer than `tokens` where only the clip's own are wanted.
        blocks: that are run.
    """
    convolutions = 2 * KERNEL * sizes.dims * (2 * frames * sizes.mels + frames * sizes.dims)

    def block(queries: int) -> int:
        keys_values = 4 * tokens * sizes.dims**2
        rest = 4 * queries * sizes.dims**2 + 4 * queries * sizes.dims * sizes.inner
        return keys_values + rest + 4 * queries * tokens * sizes.dims

    return float(convolutions + max(0, blocks - 1) * block(tokens) + (block(rows) if blocks else 0))


def peaks(threads: int, seconds: float) -> dict[str, float]:
    """Measured GFLOP/s of large square matrix products by precision, the best of about `seconds` each, in torch."""
    import torch

    torch.set_num_threads(threads)
    shape = (PEAK_SIZE, PEAK_SIZE)
    whole = torch.randint(-128, 127, shape, dtype=torch.int8)
    products = {
        "fp32": (torch.mm, torch.randn(shape)),
        "bf16": (torch.mm, torch.randn(shape).bfloat16()),
        "int8": (torch._int_mm, whole),  # noqa: SLF001 - torch offers integer products under no other name
    }
    found = {}
    for name, (product, matrix) in products.items():
        product(matrix, matrix)
        took: list[float] = []
        until = time.perf_counter() + seconds
        while not took or time.perf_counter() < until:
            began = time.perf_counter()
            product(matrix, matrix)
            took.append(time.perf_counter() - began)
        found[name] = 2 * PEAK_SIZE**3 / min(took) / 1e9
    return found
