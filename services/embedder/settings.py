"""Settings of the embedder; see `servox.settings` for where values come from."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from servox import cpus
from servox.settings import ServiceSettings

# Upper bounds of the length buckets in seconds: a clip shares a batch with clips at most a third shorter.
BUCKETS_S = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 20, 30)


class Settings(ServiceSettings):
    """Every field is a flag of `servox serve embedder` and an environment variable `SERVOX_EMBEDDER_…`."""

    model_config = SettingsConfigDict(env_prefix="SERVOX_EMBEDDER_", extra="forbid")

    grpc_port: int = Field(50051, ge=0, le=65535, description="port of the gRPC server; 0 lets the system choose")
    metrics_port: int = Field(9101, ge=0, le=65535, description="port of /metrics; 0 turns it off")
    bundle: Path = Field(description="folder of the bundle to serve")
    model_name: str = Field("", description="name of the model for Open Inference clients; empty: that of its source")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="what the encoder runs on; auto: the CPU")
    engine: Literal["auto", "openvino", "onnx", "tensorrt"] = Field(
        "auto", description="what runs the graph; auto: what fits"
    )
    streams: int = Field(0, ge=0, le=64, description="batches at a time; 0: two on a CPU with two processors or more")
    threads: int = Field(0, ge=0, le=1024, description="threads of each stream; 0: the processors, shared evenly")
    decode_workers: int = Field(0, ge=0, le=256, description="processes that decode; 0: one a processor, at most 4")
    decode_memory_mb: int = Field(512, ge=32, description="most memory that decoding one clip may take")
    decode_timeout_s: float = Field(10.0, gt=0, description="most seconds that decoding one clip may take")
    max_inflight_audio_s: float = Field(240.0, gt=0, description="seconds of audio between admission and answer")
    batch_budget_s: float = Field(30.0, gt=0, description="seconds of audio in one batch, padding included")
    batch_clips: int = Field(
        0, ge=0, le=1024, description="most clips in one batch; 0: 64 on a GPU, 2 with OpenVINO, 1 else"
    )
    pad_step_ms: int = Field(100, ge=1, le=30_000, description="padded lengths are multiples of this")
    min_duration_ms: int = Field(25, ge=1, description="shorter clips are refused")
    max_duration_ms: int = Field(30_000, ge=100, le=3_600_000, description="longer clips are refused or cut")
    stream_in_flight: int = Field(64, ge=1, le=4096, description="most unanswered items of one stream")
    stuck_after_s: float = Field(120.0, gt=0, description="a batch that takes longer ends the process")
    canary_every_s: float = Field(30.0, gt=0, description="how often an idle device is tried, so that its death shows")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        longest_s = self.max_duration_ms / 1000
        for name in ("batch_budget_s", "max_inflight_audio_s"):
            if getattr(self, name) < longest_s:
                raise ValueError(
                    f"{name} = {getattr(self, name):g} cannot hold one clip of max_duration_ms = "
                    f"{self.max_duration_ms}: set it to {longest_s:g} or more, or lower max_duration_ms"
                )
        if self.min_duration_ms >= self.max_duration_ms:
            raise ValueError(f"min_duration_ms = {self.min_duration_ms} must be under {self.max_duration_ms}")
        return self

    @property
    def stream_count(self) -> int:
        """Batches at a time."""
        return self.streams or (min(2, cpus.here()) if self.device != "cuda" else 1)

    @property
    def threads_per_stream(self) -> int:
        """Threads of each stream."""
        return self.threads or max(1, cpus.here() // self.stream_count)

    def clips_per_batch(self, engine: str) -> int:
        """Most clips in one batch, by the engine that was chosen.

        Two of one padded length take OpenVINO 4 % less than one after the other, and give the same numbers to the bit.
        ONNX Runtime's differ in their last bits, so there it is one.
        """
        if self.batch_clips or self.device == "cuda":
            return self.batch_clips or 64
        return 2 if engine == "openvino" else 1

    @property
    def decoder_count(self) -> int:
        """Processes that decode."""
        return self.decode_workers or min(4, cpus.here())
