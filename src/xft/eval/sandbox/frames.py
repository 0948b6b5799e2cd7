"""Messages between the parent and a candidate: one letter, a length, a payload.

Runs in a bare interpreter, 3.9 or later. The parent trusts none of what comes from the candidate.

    to the candidate    P token and program    C entry point and code    A room for the answer, and arguments
                        F files                S a step
    from the candidate  p passed, with the token     f failed     m out of memory     x SystemExit
                        c the code was executed      b begun: large arguments are decoded
                        r returned, and much is to be encoded    l more than there is room for    v what a call returned
                        s a step was started         e a step ended
"""

from __future__ import annotations

import os
import struct

HEADER = struct.Struct("=cI")
LARGE = 1 << 15
"""Bytes of arguments from which on a call's clock starts at `b`."""


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """Return a message."""
    return HEADER.pack(kind, len(payload)) + payload


def write(channel: int, kind: bytes, payload: bytes = b"") -> None:
    """Write a message, all of it."""
    data = memoryview(frame(kind, payload))
    while data:
        data = data[os.write(channel, data) :]


class Reader:
    """Read messages from a channel, waiting for them."""

    def __init__(self, channel: int) -> None:
        self.channel = channel
        self.data = bytearray()

    def next(self) -> tuple[bytes, bytes] | None:
        """Return the next message; None at the end."""
        if not self._have(HEADER.size):
            return None
        kind, length = HEADER.unpack_from(self.data)
        if not self._have(HEADER.size + length):
            return None
        payload = bytes(self.data[HEADER.size : HEADER.size + length])
        del self.data[: HEADER.size + length]
        return kind, payload

    def _have(self, length: int) -> bool:
        while len(self.data) < length:
            data = os.read(self.channel, 1 << 18)
            if not data:
                return False
            self.data += data
        return True
