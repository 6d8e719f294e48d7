"""What stands for the padding under `cached:K`: where its tokens are, how much each counts, and what the blocks see.

Where a padded encoder looks while it hears a clip decides how few tokens can stand for the padding:

- It looks at the frames just after the clip far more than at later ones, by about one over their distance. So segments
  grow geometrically from the clip's end, one token each.
- It keeps *attention sinks* in silence: a few dozen positions, the same for every clip, whose states grow thirtyfold
  halfway up and which every later block attends to (arXiv 2309.17453 and 2402.17762 found them in language models).
  One token too many on a sink, or one too few, spoils the deep layers. So a quarter of the tokens are sinks and
  together count for all of them, and every other token stands beside one.
- The window's last frame sees the zeros beyond it and is like no other: it is a token of its own.

Silent frames hear each other far more than they hear the clip, so what the padded encoder makes of them hardly depends
on it: block 1 sees the clip's own level of silence, every later block sees states that the padded encoder had on short
synthetic signals. They are closer to the truth than what K lonely tokens make of themselves, and cost nothing.

`silence:K` knows none of this: its tokens stand at golden-ratio strides, a sink only by chance.
Positions are frames from 0 to 1499, and every frame after a clip is counted exactly once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.embedder.speechlike import speechlike

WINDOW = 1_500  # frames of the encoder's window, 30 s
BORDER = 2  # frames after a clip that its last samples still reach through the convolutions
GOLDEN = 0.618034
FRAMES_A_SECOND = 50
STEEPNESS = 4.0  # the longest segment is about e⁴ times the shortest; 3 to 5 do as well
SINK_SHARE = 4  # one token in so many is a sink
SINK_RATIO = 8.0  # how far a sink's norm lies above the median one; whisper-base has 29 such frames, up to 15 times

SIGNALS, SIGNAL_S = 4, 0.5  # that the padded encoder hears for its states of silence

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Silence:
    """What an encoder makes of silence.

    Attributes:
        states: [blocks, frames, d], what each block after the first reads and, last, what the last one gives.
        sinks: positions of its attention sinks, the strongest first.
    """

    states: NDArray[np.float32]
    sinks: tuple[int, ...]


def hear(window: Callable[[NDArray[np.float32]], NDArray[np.float32]], rate_hz: int) -> Silence:
    """Means over a few signals; where they sound, the silence that comes next.

    Args:
        window: samples to the hidden states [1 + blocks, frames, d] of the whole padded window.
        rate_hz: of the samples.
    """
    signals = [speechlike(seed, duration_s=SIGNAL_S, rate_hz=rate_hz) for seed in range(SIGNALS)]
    total = window(signals[0])[1:].copy()
    for signal in signals[1:]:
        total += window(signal)[1:]
    states = np.asarray(total / SIGNALS, np.float32)
    first = round(SIGNAL_S * FRAMES_A_SECOND) + BORDER
    states[:, :first] = states[:, first : first + 1]
    return Silence(states=states, sinks=sinks(states[-1]))


def sinks(states: NDArray[np.floating]) -> tuple[int, ...]:
    """Positions whose silent states [frames, d] after the last block are sinks; the strongest first."""
    norms = np.linalg.norm(states.astype(np.float64), axis=1)
    ratio = norms / np.median(norms)
    order = np.argsort(-ratio, kind="stable")
    return tuple(int(place) for place in order if ratio[place] > SINK_RATIO)


def placement(own: int, *, tokens: int, sinks: Sequence[int]) -> tuple[Ints, Floats]:
    """Positions [tokens] of the tokens after a clip of `own` frames, and how many frames each counts for.

    A clip after which no more than `tokens` frames remain gets one token a frame, the plain padding; those left over
    count for none.
    """
    start = own + BORDER
    if WINDOW - start <= tokens:
        places = np.arange(start, start + tokens)
        return places.clip(max=WINDOW - 1), (places < WINDOW).astype(np.float64)
    end = WINDOW - 1
    here = [place for place in sinks if start <= place < end]
    chosen = here[: tokens // SINK_SHARE]
    rest = np.setdiff1d(np.arange(start, end), here if chosen else [])
    spread = tokens - 1 - len(chosen)
    if len(rest) < spread:  # hardly more frames than tokens: nothing is gained by knowing the sinks
        chosen, rest, spread = [], np.arange(start, end), tokens - 1
    edges = segments(len(rest), spread)
    widths = np.diff(edges)
    jitter = np.arange(1, spread + 1) * GOLDEN % 1
    inside = rest[edges[:-1] + np.floor(widths * jitter).astype(np.int64)]
    share = [len(here) / len(chosen)] * len(chosen) if chosen else []
    return np.concatenate([inside, chosen, [end]]).astype(np.int64), np.concatenate([widths, share, [1.0]])


def segments(frames: int, count: int) -> Ints:
    """Edges [count + 1] of `count` segments of `frames`, growing geometrically, none of them empty."""
    grown = np.expm1(STEEPNESS * np.arange(count + 1) / count) / np.expm1(STEEPNESS)
    edges = np.round(frames * grown).astype(np.int64)
    steps = np.arange(count + 1)
    edges = np.maximum.accumulate(edges - steps) + steps  # each a frame after the one before
    return np.asarray(np.minimum(edges, frames - count + steps))


def table(*, tokens: int, sinks: Sequence[int]) -> tuple[Ints, Floats]:
    """`placement` for every length of a clip, [frames + 1, tokens] each: a graph looks up a clip's row."""
    rows = [placement(own, tokens=tokens, sinks=sinks) for own in range(WINDOW + 1)]
    return np.stack([places for places, _ in rows]), np.stack([counts for _, counts in rows])
