"""Where tests find real speech and real encoders: one setting, `SERVOX_DATA`. What hypothesis may complain of."""

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import hypothesis
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

# How long an example takes says how busy the machine is, nothing of the code.
SLOW = (hypothesis.HealthCheck.too_slow,)
hypothesis.settings.register_profile("servox", deadline=None, suppress_health_check=SLOW, print_blob=True)
hypothesis.settings.load_profile("servox")

ROOT = Path(__file__).resolve().parent.parent


def _data_root() -> Path | None:
    named = os.environ.get("SERVOX_DATA")
    root = Path(named) if named else ROOT.parent / "shared"
    return root if (root / "corpora").is_dir() else None


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with `corpora/` and `models/`; tests that need it are skipped where it is absent."""
    root = _data_root()
    if root is None:
        pytest.skip("no real speech here: set SERVOX_DATA to a folder with corpora/ and models/")
    return root


@pytest.fixture(scope="session")
def whisper_base(data_root: Path) -> Path:
    """Checkpoint folder of whisper-base's encoder."""
    folder = data_root / "models" / "whisper-base"
    if not folder.is_dir():
        pytest.skip(f"no checkpoint at {folder}")
    return folder


@pytest.fixture(scope="session")
def whisper_tiny(data_root: Path) -> Path:
    """Checkpoint folder of whisper-tiny.en's encoder."""
    folder = data_root / "models" / "whisper-tiny.en"
    if not folder.is_dir():
        pytest.skip(f"no checkpoint at {folder}")
    return folder


@pytest.fixture(scope="session")
def hold_port() -> Iterator[Callable[[], int]]:
    """Gives a port of 127.0.0.1 that the system gives to nobody else until the tests are over.

    It is bound without listening, which lets a server that reuses addresses listen there.
    """
    with ExitStack() as held:

        def hold() -> int:
            kept = held.enter_context(socket.socket())
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind(("127.0.0.1", 0))
            return int(kept.getsockname()[1])

        yield hold


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Where every span that ends during one test goes."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # OpenTelemetry lets a process set its provider once; other tests of this process must not be traced.
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs certificates for `localhost` and 127.0.0.1."""

    name: str
    folder: Path
    key: ec.EllipticCurvePrivateKey

    @property
    def ca(self) -> Path:
        """Its own certificate."""
        return self.folder / f"{self.name}.ca.pem"

    def write(self) -> "Authority":
        """Writes its own certificate."""
        self.ca.write_bytes(self._signed(self.name, self.key.public_key(), ca=True))
        return self

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate with this common name and its key, in files of that name; others go in their place."""
        own = ec.generate_private_key(ec.SECP256R1())
        key = own.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        for path, data in zip(paths, (self._signed(name, own.public_key()), key), strict=True):
            path.write_bytes(data)
        return paths

    def _signed(self, name: str, public: ec.EllipticCurvePublicKey, *, ca: bool = False) -> bytes:
        now = datetime.now(UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self.name)]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def authority(tmp_path: Path) -> Callable[[str], Authority]:
    """Makes one by its name."""
    folder = tmp_path / "pki"
    folder.mkdir()
    return lambda name: Authority(name, folder, ec.generate_private_key(ec.SECP256R1())).write()
