"""A server's certificates, read again when their files change: new connections get the new one, open ones go on.

What cannot be used (a key that does not fit, a file that is half written) changes nothing and is said in the log.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from servox.errors import BadSetting
from servox.watched import Watched


@dataclass(frozen=True, slots=True, kw_only=True)
class Pems:
    """What the files hold, found to be usable."""

    certificate: bytes
    key: bytes
    ca: bytes | None


class Certificates:
    """PEM files of a server.

    Args:
        certificate: chain.
        key: private.
        ca: what callers' certificates must descend from; None asks for none.
        alarm: see `Watched`.

    Raises:
        BadSetting: they cannot be read or do not fit.
    """

    def __init__(
        self, certificate: Path, key: Path, ca: Path | None, *, alarm: Callable[[bool], None] = lambda _: None
    ) -> None:
        self._certificate, self._key, self._ca = certificate, key, ca
        files = [certificate, key, *([ca] if ca else [])]
        self._pems = Watched(files, self._read, alarm=alarm)

    def _read(self) -> Pems:
        _context(self._certificate, self._key, self._ca)
        return Pems(
            certificate=_bytes(self._certificate),
            key=_bytes(self._key),
            ca=_bytes(self._ca) if self._ca else None,
        )

    def grpc(self) -> grpc.ServerCredentials:
        """For a gRPC server; it asks at every handshake."""
        given = [self._pems.get()]

        def fetched() -> Any:  # noqa: ANN401 -- its types know no None, which means: what gRPC has
            if (pems := self._pems.get()) is given[0]:
                return None
            given[0] = pems
            return _configuration(pems)

        return grpc.dynamic_ssl_server_credentials(_configuration(given[0]), fetched, self._ca is not None)

    def ssl(self) -> ssl.SSLContext:
        """For any other server; every handshake gets the context of the files as they are then."""
        first, given = _context(self._certificate, self._key, self._ca), [self._pems.get()]
        current = [first]

        def chosen(connection: ssl.SSLObject, _name: str | None, _old: ssl.SSLContext) -> None:
            if (pems := self._pems.get()) is not given[0]:
                try:
                    current[0] = _context(self._certificate, self._key, self._ca)
                    given[0] = pems
                except BadSetting:
                    pass  # it changed once more just now: the next handshake sees it
            connection.context = current[0]

        first.sni_callback = chosen  # called whether or not a name is given
        return first


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.ca)


def _context(certificate: Path, key: Path, ca: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
        if ca:
            context.load_verify_locations(ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # ssl's own errors are of the first kind
        raise BadSetting(
            f"TLS files {certificate}, {key}{f', {ca}' if ca else ''}: {_why(error)}; give readable PEM files that fit"
        ) from None
    return context


def _why(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadSetting(f"TLS file {path}: {error.strerror}; give a readable PEM file") from None


def subject_of(peer: "ssl.SSLObject | None") -> str | None:
    """The common name of the caller's certificate; None without one."""
    found: Any = peer.getpeercert() if peer else None
    names = (pair for part in (found or {}).get("subject", ()) for pair in part)
    return next((value for name, value in names if name == "commonName"), None)
