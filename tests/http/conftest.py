"""`wire`: see the head of wire.py."""

from tests.http.wire import wire

__all__ = ["wire"]
