"""The graph before export, in torch: the reference that exported graphs are compared with."""

import torch
from torch import nn

from services.embedder.runtimes import Lengths, Pcm, Result


class TorchRuntime:
    """A backbone's module, run eagerly.

    Args:
        graph: module from (pcm, lengths) to (statistics, frames, …).
        device: a torch device.
    """

    name = "torch"

    def __init__(self, graph: nn.Module, *, device: str = "cpu") -> None:
        self.device = device
        self._graph = graph.to(device).eval()

    @torch.inference_mode()
    def run(self, pcm: Pcm, lengths: Lengths, *, frames: bool = False) -> Result:
        """Embed a batch."""
        statistics, last, *_ = self._graph(
            torch.from_numpy(pcm).to(self.device), torch.from_numpy(lengths).to(self.device)
        )
        return Result(statistics=statistics.cpu().numpy(), frames=last.cpu().numpy() if frames else None)

    def close(self) -> None:
        """Nothing to free."""
