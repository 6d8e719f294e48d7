"""Settings of a service: a flag beats an environment variable, which beats a file, which beats the default.

Every field is one flag (`--grpc-port`), one environment variable (`SERVOX_EMBEDDER_GRPC_PORT`) and one key of a TOML
file (`grpc_port`), with its unit in its name. A value that cannot be used stops the process at start, with a message
that names the field, the value and where it came from.
"""

import ipaddress
import os
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from servox.doors import Door
from servox.errors import BadSetting
from servox.keys import Keys
from servox.quotas import Allowance
from servox.rpc import Server, Tls
from servox.scopes import SCOPES
from servox.telemetry import DoorMetrics, Metrics
from servox.tokens import ALGORITHMS, Issuer, KeySet, Tokens


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
    tls_client_scopes: str = Field("*", description="what a caller's certificate alone lets them do, with commas")
    keys: Path | None = Field(None, description="file of API keys (`servox keys`); callers must then show one")
    jwt_jwks: str = Field("", description="https URL or file of the keys (JWKS) that sign callers' tokens (JWT)")
    jwt_issuer: str = Field("", description="issuer (iss) that tokens must have")
    jwt_audience: str = Field("", description="audience (aud) that tokens must have")
    jwt_algorithms: str = Field("RS256,ES256,EdDSA", description="algorithms of signatures that count, with commas")
    jwt_leeway_s: float = Field(30.0, ge=0, le=600, description="how far clocks may differ")
    jwt_stale_s: float = Field(3600.0, ge=0, description="how long the last JWKS counts while its URL does not answer")
    jwt_name_claim: str = Field("sub", min_length=1, description="claim that names the caller")
    jwt_tenant_claim: str = Field("", description="claim that names the caller's tenant; unset: tokens have none")
    jwt_scope_claim: str = Field("scope", min_length=1, description="claim with the caller's scopes")
    jwt_rate_per_s: float = Field(0.0, ge=0, description="calls a second of each token or certificate; 0: any")
    jwt_audio_s_per_day: float = Field(0.0, ge=0, description="seconds of audio a day (UTC) of each; 0: any")
    jwt_streams: int = Field(0, ge=0, description="streams at a time of each; 0: any")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe level logged")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: set both or neither")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self

    @model_validator(mode="after")
    def _callers_are_known(self) -> Self:
        if unknown := sorted(_words(self.tls_client_scopes) - set(SCOPES)):
            raise ValueError(f"tls_client_scopes: {unknown[0]!r} is no scope; use {', '.join(SCOPES)}")
        if self.jwt_jwks and not (self.jwt_issuer and self.jwt_audience):
            raise ValueError("jwt_jwks needs jwt_issuer and jwt_audience: else any token of that issuer would do")
        if unknown := sorted(_words(self.jwt_algorithms) - set(ALGORITHMS)):
            raise ValueError(f"jwt_algorithms: {unknown[0]!r} cannot be used; use {', '.join(ALGORITHMS)}")
        exposed = [f"{name} = {host}" for name, host in self.interfaces().items() if not is_loopback(host)]
        if exposed and not self.asks_callers:
            raise ValueError(
                f"{' and '.join(exposed)} can be reached from other machines, where callers would not have to say who "
                "they are: set keys (a file that `servox keys create` makes), jwt_jwks or tls_client_ca; or listen on "
                "127.0.0.1 or a Unix socket"
            )
        return self

    @property
    def asks_callers(self) -> bool:
        """Whether callers have to say who they are."""
        return bool(self.keys or self.jwt_jwks or (self.tls_client_ca and self.tls_client_scopes))

    def interfaces(self) -> dict[str, str]:
        """Where callers reach this service over a network: setting and host; metrics apart, which hold no speech."""
        return {} if self.grpc_socket else {"grpc_host": self.grpc_host}

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

    def door(self, metrics: Metrics) -> Door:
        """Who is let in.

        Raises:
            BadSetting: the file of keys cannot be read.
        """
        shown = DoorMetrics(metrics)
        issuer = Issuer(
            name=self.jwt_issuer,
            audience=self.jwt_audience,
            algorithms=tuple(sorted(_words(self.jwt_algorithms))),
            leeway_s=self.jwt_leeway_s,
            name_claim=self.jwt_name_claim,
            tenant_claim=self.jwt_tenant_claim,
            scope_claim=self.jwt_scope_claim,
        )
        return Door(
            keys=Keys(self.keys, alarm=shown.stale("keys")) if self.keys else None,
            tokens=Tokens(KeySet(self.jwt_jwks, stale_s=self.jwt_stale_s, alarm=shown.stale("jwks")), issuer)
            if self.jwt_jwks
            else None,
            certificate_scopes=frozenset(_words(self.tls_client_scopes) if self.tls_client_ca else ()),
            allowance=Allowance(
                rate_per_s=self.jwt_rate_per_s, audio_s_per_day=self.jwt_audio_s_per_day, streams=self.jwt_streams
            ),
            counted=shown.counted,
            stale=shown.stale,
        )

    def server(self, *services: str, door: Door) -> Server:
        """The gRPC server that these settings describe, for services named in full."""
        return Server(
            address=self.address,
            services=services,
            max_message_bytes=self.max_message_bytes,
            tls=self.tls,
            door=door,
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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an interface; a name that is not `localhost` might mean any."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _words(text: str) -> set[str]:
    return {word.strip() for word in text.split(",") if word.strip()}


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
        if not problem["loc"]:  # of several fields, which its text names
            lines.append(problem["msg"].removeprefix("Value error, "))
            continue
        field = ".".join(str(part) for part in problem["loc"])
        variable = f"{prefix}{field}".upper()
        if problem["type"] == "missing":
            lines.append(f"{field}: missing; give --{field.replace('_', '-')}, {variable} or a settings file")
            continue
        origin = "flag" if field in given else "file" if field in from_file else f"environment variable {variable}"
        lines.append(f"{field} = {problem['input']!r} (from {origin}): {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)
