"""Settings of the prober; see `servox.settings` for where values come from."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from servox import cpus
from servox.settings import ServiceSettings, home


class Settings(ServiceSettings):
    """Every field is a flag of `servox serve prober` and an environment variable `SERVOX_PROBER_…`."""

    model_config = SettingsConfigDict(env_prefix="SERVOX_PROBER_", extra="forbid")

    grpc_port: int = Field(50052, ge=0, le=65535, description="port of the gRPC server; 0 lets the system choose")
    metrics_port: int = Field(9102, ge=0, le=65535, description="port of /metrics; 0 turns it off")
    http_host: str = Field("127.0.0.1", description="interface of the HTTP server")
    http_port: int = Field(8080, ge=0, le=65535, description="port of the HTTP server; 0 turns it off")
    http_socket: Path | None = Field(None, description="Unix socket of the HTTP server instead of host and port")
    http_origins: str = Field("", description="origins whose pages may call over HTTP, with commas; * for all")
    http_timeout_s: float = Field(1800.0, gt=0, description="longest time for one HTTP request, its body included")
    http_idle_s: float = Field(30.0, gt=0, description="longest silence of an HTTP client who has to send or to read")
    max_requests: int = Field(256, ge=1, description="HTTP requests with audio at a time; more are refused")
    max_streams: int = Field(256, ge=1, description="streams on the WebSocket at a time; more are refused")
    embedder: str = Field("127.0.0.1:50051", description="address of the embedder, which Recognize asks")
    embedder_ca: Path | None = Field(None, description="PEM bundle to trust the embedder by; plain text if unset")
    embed_timeout_s: float = Field(60.0, gt=0, description="longest wait for the embedder's answer to one call")
    heads: Path = Field(default_factory=lambda: home() / "heads", description="folder of the registry of heads")
    scratch: Path | None = Field(None, description="folder for temporary files; the system's if unset")
    train_device: Literal["cpu", "cuda"] = Field("cpu", description="what MLPs are trained on")
    train_threads: int = Field(default_factory=cpus.here, ge=1, description="fits at a time")
    cache_bytes: int = Field(256 << 20, ge=0, description="embeddings kept in memory")
    heads_in_memory: int = Field(128, ge=1, description="heads kept in memory")
    max_heads: int = Field(4096, ge=1, description="heads that one Train call may ask for")
    max_duration_ms: int = Field(600_000, ge=1000, description="longest audio that Recognize cuts into windows")
    max_file_ms: int = Field(21_600_000, ge=1000, description="longest file that is answered window by window")
    max_file_bytes: int = Field(1 << 30, ge=1 << 16, description="largest file that is kept in scratch meanwhile")
    files_at_a_time: int = Field(16, ge=1, le=256, description="files that are read at a time; more wait")
    decode_memory_mb: int = Field(512, ge=32, description="most memory that decoding one file may take")
    decode_timeout_s: float = Field(10.0, gt=0, description="longest wait for the next block of a file")
    stream_idle_s: float = Field(30.0, gt=0, description="longest wait for a live stream's next message")
    vad: Path | None = Field(None, description="Silero's silero_vad.onnx, to tell speech; unset: the level alone")
    max_windows: int = Field(5000, ge=1, description="windows that one Recognize call may ask for")
    windows_in_flight: int = Field(16, ge=1, description="windows of one call that are with the embedder at a time")

    # ---- who may call, and for what ------------------------------------------------------------------------------
    embedder_certificate: Path | None = Field(None, description="PEM certificate shown to the embedder (mTLS)")
    embedder_private_key: Path | None = Field(None, description="PEM private key of that certificate")
    embedder_api_key: Path | None = Field(None, description="file with the API key shown to the embedder")
    policy: Path | None = Field(None, description="TOML file of the purposes that answers may be used for")
    gate: Path | None = Field(None, description="TOML file of the rules that a promotion must pass; see gate.toml")

    # ---- calibration to tenants ----------------------------------------------------------------------------------
    tenants: Path = Field(default_factory=lambda: home() / "tenants", description="folder of tenants' calibrations")
    max_tenants: int = Field(1000, ge=1, description="tenants on disk; one more is refused")
    tenants_in_memory: int = Field(256, ge=1, description="calibrations kept in memory")
    tenant_gauges: int = Field(100, ge=0, description="tenants with metrics of their own; the others share one")
    tenant_save_s: float = Field(10.0, gt=0, description="how often calibrations that changed are written")
    tenant_ready_clips: float = Field(16.0, ge=4, description="clips from which on a tenant's own mean answers")
    tenant_settled_clips: float = Field(64.0, ge=4, description="once it answers, a clip moves it by one of so many")
    tenant_hourly_clips: float = Field(16.0, gt=0, description="most clips an hour that move it")
    tenant_horizon_clips: float = Field(512.0, ge=16, description="clips that it stands for; older ones fade")
    tenant_call_clips: int = Field(4, ge=1, le=64, description="most clips of one call or stream that count")
    tenant_em: bool = Field(False, description="allow the prior estimated-em, which mostly hurts")

    def interfaces(self) -> dict[str, str]:
        """See `ServiceSettings`; HTTP as well."""
        http = {} if self.http_socket or not self.http_port else {"http_host": self.http_host}
        return {**super().interfaces(), **http}
