"""The HTTP face of the prober: one ASGI app, which runs beside gRPC or under any ASGI server."""

from .application import app
from .listener import Listener

__all__ = ["Listener", "app"]
