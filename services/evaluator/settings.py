"""Settings of the evaluator; see `servox.settings` for where values come from."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from servox.settings import ServiceSettings, home


class Settings(ServiceSettings):
    """Every field is a flag of `servox serve evaluator` and an environment variable `SERVOX_EVALUATOR_…`."""

    model_config = SettingsConfigDict(env_prefix="SERVOX_EVALUATOR_", extra="forbid")

    grpc_port: int = Field(50053, ge=0, le=65535, description="port of the gRPC server; 0 lets the system choose")
    metrics_port: int = Field(9103, ge=0, le=65535, description="port of /metrics; 0 turns it off")
    embedder: str = Field("127.0.0.1:50051", description="address of the embedder")
    prober: str = Field("127.0.0.1:50052", description="address of the prober")
    peer_ca: Path | None = Field(
        None, description="PEM bundle to trust the embedder and the prober by; plain text if unset"
    )
    peer_certificate: Path | None = Field(None, description="PEM certificate shown to them (mTLS)")
    peer_private_key: Path | None = Field(None, description="PEM private key of that certificate")
    peer_api_key: Path | None = Field(None, description="file with the API key shown to both")
    store: str = Field(
        default_factory=lambda: str(home() / "store"),
        description="fsspec URL of the embeddings, shared with the prober",
    )
    runs: Path = Field(default_factory=lambda: home() / "runs", description="where results go that name no folder")
    database: str = Field(
        default_factory=lambda: f"sqlite:///{home() / 'evaluator.db'}",
        description="SQLAlchemy URL of the runs and their state",
    )
    embed_in_flight: int = Field(16, ge=1, le=1024, description="clips sent to the embedder at a time")
    head_layers: int = Field(
        1, ge=1, le=64, description="layers that a pooled head reads, one after the other, up to the bundle's own"
    )
    truncate_ms: int = Field(30_000, ge=1000, description="longer clips are cut here, and counted")
