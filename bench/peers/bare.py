"""The same work without a server: as many threads as a server has workers, each decoding and running clip after clip.

    python -m bench.peers.bare CLIPS

reads orders from standard input, `decoded SECONDS` or `files SECONDS`, and answers each with one line: clips a second.
`files` decodes every clip anew, as a server must; `decoded` runs the encoder alone. CLIPS is a pickle of a list of
bytes, written by the bench itself.
"""

import pickle
import sys
import threading
import time
from pathlib import Path

import numpy as np

from bench.peers.encoder import Encoder
from bench.peers.options import Options

RAMP_S = 0.5


def measure(encoders: list[Encoder], files: list[bytes], *, decode: bool, window_s: float) -> float:
    """Clips a second of all threads together, in random order."""
    decoded = [] if decode else [encoders[0].decode(data) for data in files]
    begin_s = time.monotonic() + RAMP_S
    end_s = begin_s + window_s
    counts = [0.0] * len(encoders)

    def work(number: int) -> None:
        order, encoder = np.random.default_rng(number), encoders[number]
        while (started_s := time.monotonic()) < end_s:
            clip = int(order.integers(len(files)))
            encoder.encode([encoder.decode(files[clip]) if decode else decoded[clip]])
            ended_s = time.monotonic()
            # A clip counts by its share inside the window: with few clips in it, whole ones would be too coarse.
            inside_s = min(ended_s, end_s) - max(started_s, begin_s)
            counts[number] += max(0.0, inside_s) / (ended_s - started_s)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(encoders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / window_s


def main() -> None:
    """Obeys orders until there are no more."""
    options = Options.from_environment()
    files: list[bytes] = pickle.loads(Path(sys.argv[1]).read_bytes())
    encoders = [Encoder(options) for _ in range(options.workers)]
    print("ready", flush=True)
    for line in sys.stdin:
        what, window_s = line.split()
        print(measure(encoders, files, decode=what == "files", window_s=float(window_s)), flush=True)


if __name__ == "__main__":
    main()
