"""The graph before export, in torch: the reference that exported graphs are compared with, and a GPU engine to compare.

It runs from a backbone's module, so it needs the checkpoint, torch and transformers, which a server's image has not:
benchmarks use it, servers do not.

- In float32 and without fused attention the module runs as it stands. That is the reference.
- Lowered, linear layers and attention compute in 16 bits with weights cast once; front end, convolutions, residual
  stream, LayerNorm and statistics stay float32.
- Fused attention takes the additive bias on keys either as a mask, which rules out flash attention, or folded into two
  more columns of queries and keys (1 and 1; the bias's upper and lower 16 bits), which does not.
- On CUDA each shape's run is captured once and replayed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from services.embedder.runtimes import Lengths, Pcm, Result
from servox.errors import BadSetting, Unavailable

Attention = Literal["plain", "masked", "folded"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_BIAS = -3e4  # nothing beside a key worth attending to, and a number that float16 has
COLUMNS = 8  # flash attention takes heads whose size is a multiple of this
WARM_RUNS = 3  # before a capture, so that libraries have chosen their kernels


class TorchRuntime:
    """A backbone's module, run eagerly or, on CUDA, from captured graphs.

    Args:
        graph: module from (pcm, lengths) to (statistics, frames, …); it is changed where it is lowered or fused.
        device: a torch device.
        precision: fp32, bf16 or fp16; lower than fp32 needs fused attention.
        attention: plain as the module has it; masked or folded fuse it (Whisper).
        captures: whether runs are captured by shape; CUDA only.
        compiled: whether blocks go through torch.compile.

    Raises:
        BadSetting: when these do not go together, or the graph's attention cannot be fused.
        Unavailable: when the device is not there.
    """

    name = "torch"

    def __init__(
        self,
        graph: nn.Module,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        attention: Attention = "plain",
        captures: bool = False,
        compiled: bool = False,
    ) -> None:
        _check(device, precision, attention, captures=captures)
        self.device = device
        graph = graph.to(device).eval()
        if attention != "plain":
            fuse(graph, folded=attention == "folded")
            lower(graph, DTYPES[precision])
        if compiled:
            for block in graph.get_submodule("blocks").children():
                block.compile(dynamic=True)
        self._graph = graph
        self._captures = captures
        self._captured: dict[tuple[int, int, bool], Captured] = {}

    @torch.inference_mode()
    def run(self, pcm: Pcm, lengths: Lengths, *, frames: bool = False) -> Result:
        """Embed a batch."""
        given = torch.from_numpy(pcm), torch.from_numpy(lengths)
        if self._captures:
            statistics, last = self._replay(*given, frames=frames)
        else:
            statistics, last = self._forward(*(tensor.to(self.device) for tensor in given))
        return Result(statistics=statistics.cpu().numpy(), frames=last.cpu().numpy() if frames else None)

    def close(self) -> None:
        """Free the captured graphs."""
        self._captured.clear()

    def _forward(self, pcm: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        with torch.device(self.device):  # the modules make their indices where they run
            statistics, last, *_ = self._graph(pcm, lengths)
        return statistics, last

    def _replay(self, pcm: Tensor, lengths: Tensor, *, frames: bool) -> tuple[Tensor, Tensor]:
        shape = (*pcm.shape, frames)
        if shape not in self._captured:
            self._captured[shape] = capture(self._forward, pcm.to(self.device), lengths.to(self.device))
        captured = self._captured[shape]
        captured.pcm.copy_(pcm)
        captured.lengths.copy_(lengths)
        captured.graph.replay()
        return captured.statistics, captured.frames


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Captured:
    """A captured run and the buffers that it reads and writes."""

    graph: Any
    pcm: Tensor
    lengths: Tensor
    statistics: Tensor
    frames: Tensor


def capture(work: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], pcm: Tensor, lengths: Tensor) -> Captured:
    """`work` on these buffers as one CUDA graph."""
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it so
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_RUNS):
            work(pcm, lengths)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        statistics, frames = work(pcm, lengths)
    return Captured(graph=graph, pcm=pcm, lengths=lengths, statistics=statistics, frames=frames)


def fuse(graph: nn.Module, *, folded: bool) -> None:
    """Put scaled-dot-product attention in the place of every block's own.

    Raises:
        BadSetting: when the graph has no block whose attention is a plain bias on keys.
    """
    blocks: list[Any] = [block for block in graph.modules() if _fusible(block)]
    if not blocks:
        raise BadSetting(f"{type(graph).__name__} has no attention that torch can fuse here: use attention plain")
    for block in blocks:
        block.attend = _attention(block, folded=folded)


def lower(graph: nn.Module, dtype: torch.dtype) -> None:
    """Linear layers to `dtype`, their input cast on the way in; everything else stays float32."""
    for layer in graph.modules():
        if isinstance(layer, nn.Linear):
            layer.to(dtype)
            layer.register_forward_pre_hook(lambda _, given: (given[0].to(dtype),))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, *, folded: bool) -> Tensor:
    """Attention [B, heads, M, e] of scaled queries, with `bias` float32 [B, 1, 1, N] on keys."""
    bias = bias.clamp(min=LEAST_BIAS)
    if not folded:
        return scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype), scale=1.0)
    upper = bias.to(query.dtype)
    lower_part = (bias - upper.float()).to(query.dtype)
    columns = torch.cat([upper, lower_part], dim=2).transpose(2, 3).expand(*key.shape[:3], 2)
    ones = query.new_ones(()).expand(*query.shape[:3], 2)
    # Two columns make a head no multiple of eight: six of zeros follow, and eight in the values.
    wide_query = pad(torch.cat([query, ones], dim=3), (0, COLUMNS - 2))
    wide_key = pad(torch.cat([key, columns], dim=3), (0, COLUMNS - 2))
    mixed = scaled_dot_product_attention(wide_query, wide_key, pad(value, (0, COLUMNS)), scale=1.0)
    return mixed[..., : value.shape[3]]


def _attention(block: Any, *, folded: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:  # noqa: ANN401 - by its parts
    def heads(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], block.heads, -1).transpose(1, 2)

    def attend_all(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
        query, key, value = heads(block.query(queries)), heads(block.key(keys)), heads(block.value(keys))
        return attend(query, key, value, bias, folded=folded).transpose(1, 2).flatten(2)

    return attend_all


def _fusible(block: nn.Module) -> bool:
    """Whisper's blocks: others add a bias of their own for each pair of frames."""
    parts = ("query", "key", "value", "heads", "attend", "mlp_norm")
    return all(hasattr(block, part) for part in parts) and not hasattr(block, "gate")


def _check(device: str, precision: str, attention: Attention, *, captures: bool) -> None:
    if precision not in DTYPES:
        raise BadSetting(f"precision {precision!r} is unknown to torch: use {', '.join(DTYPES)}")
    if precision != "fp32" and attention == "plain":
        raise BadSetting(f"precision {precision} needs attention masked or folded: plain softmax would mix precisions")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise Unavailable("torch has no CUDA device here: check the driver and that torch is a CUDA build, or use cpu")
    if captures and not device.startswith("cuda"):
        raise BadSetting(f"device {device} has no CUDA graphs: use captures=False")
