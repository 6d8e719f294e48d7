"""What a caller asks of a recognition, whichever way they came; the audio and its windows apart."""

from dataclasses import dataclass, field

from .prior import Prior


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Which head answers, and how.

    Attributes:
        head: name, or name:version.
        prior: to assume.
        tenant: whose calibration answers; empty for the caller's own, if there is one.
        uncalibrated: whether to answer beside it what the head says without the tenant's calibration.
        purpose: what the answers are for.
        session: who is asking, so that a canary stays with them; empty for the caller's key.
    """

    head: str
    prior: Prior = field(default_factory=Prior)
    tenant: str = ""
    uncalibrated: bool = False
    purpose: str = ""
    session: str = ""
