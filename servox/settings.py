"""Settings of a service: a flag beats an environment variable, which beats a file, which beats the default.

Every field is one flag (`--grpc-port`), one environment variable (`SERVOX_EMBEDDER_GRPC_PORT`) and one key of a TOML
file (`grpc_port`), with its unit in its name. A value that cannot be used stops the process at start, with a message
that names the field, the value and where it came from.
"""

import os
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from servox.errors import BadSetting
from servox.rpc import Server, Tls


def home() -> Path:
    """Where bundles, embeddings, heads and results lie unless told otherwise: `SERVOX_HOME`, else `.servox` here."""
    return Path(os.environ.get("SERVOX_HOME", ".servox")).absolute()


class ServiceSettings(BaseSettings):
    """What every service has."""

    model_config = SettingsConfigDict(extra="forbid")

    grpc_host: str = Field("127.0.0.1", description="interface of the gRPC server")
    grpc_port: int = Field(0, ge=0, le=65535, description="port of the gRPC server; 0 lets the system choose")
    grpc_socket: Path | None = Field(None, description="Unix socket instead of host and port")
    metrics_host: str = Field("127.0.0.1", description="interface of /metrics")
    metrics_port: int = Field(0, ge=0, le=65535, description="port of /metrics; 0 turns it off")
    max_message_bytes: int = Field(64 << 20, ge=1 << 16, description="largest message in either direction")
    max_connection_age_s: int = Field(300, ge=1, description="clients reconnect after this, and so find new replicas")
    drain_wait_s: float = Field(0.0, ge=0, description="after SIGTERM: how long endpoints get to notice NOT_SERVING")
    drain_grace_s: float = Field(30.0, ge=0, description="then: how long admitted calls get to finish")
    tls_certificate: Path | None = Field(None, description="PEM certificate chain of this server")
    tls_key: Path | None = Field(None, description="PEM private key of this server")
    tls_client_ca: Path | None = Field(None, description="PEM bundle that callers' certificates must descend from")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe level logged")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: set both or neither")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self

    @property
    def address(self) -> str:
        """What the gRPC server binds to, in gRPC's own notation."""
        return f"unix:{self.grpc_socket}" if self.grpc_socket else f"{self.grpc_host}:{self.grpc_port}"

    @property
    def tls(self) -> Tls | None:
        """The certificates of this server, or None for plain text."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return Tls(certificate=self.tls_certificate, key=self.tls_key, ca=self.tls_client_ca)

    def server(self, *services: str) -> Server:
        """The gRPC server that these settings describe, for services named in full."""
        return Server(
            address=self.address,
            services=services,
            max_message_bytes=self.max_message_bytes,
            tls=self.tls,
            max_connection_age_s=self.max_connection_age_s,
            drain_wait_s=self.drain_wait_s,
            drain_grace_s=self.drain_grace_s,
        )

    @classmethod
    def load(cls, flags: dict[str, Any] | None = None, *, file: Path | None = None) -> Self:
        """Settings from flags (None values count as not given), environment and file, in that order.

        Raises:
            BadSetting: a value out of range, an unknown key, an unreadable file.
        """
        given = {key: value for key, value in (flags or {}).items() if value is not None}
        prefix = cls.model_config.get("env_prefix", "")
        from_file = {k: v for k, v in _read(file).items() if f"{prefix}{k}".upper() not in os.environ}
        try:
            return cls(**{**from_file, **given})
        except ValidationError as error:
            raise BadSetting(_explain(error, prefix, given, from_file)) from None


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSetting(f"settings file {file}: {error}; give a readable TOML file") from None


def _explain(error: ValidationError, prefix: str, given: dict[str, Any], from_file: dict[str, Any]) -> str:
    lines = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"]) or "settings"
        variable = f"{prefix}{field}".upper()
        if problem["type"] == "missing":
            lines.append(f"{field}: missing; give --{field.replace('_', '-')}, {variable} or a settings file")
            continue
        origin = "flag" if field in given else "file" if field in from_file else f"environment variable {variable}"
        value = f" = {problem['input']!r}" if problem["loc"] else ""
        lines.append(f"{field}{value} (from {origin}): {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)
