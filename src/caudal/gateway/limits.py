"""What a client may ask of the gateway's memory and patience, in one place. Knows nothing of models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on outside input; every one of them is met by a clear refusal, never by waiting for ever.

    `head_s` runs from a request's first byte to the end of its headers, `body_s` from there to its last
    byte; neither is extended by progress, so a client that trickles is cut off all the same. `idle_s` is
    how long a kept connection may say nothing. `write_stall_s` is how long a client may take nothing while
    an answer waits for it.
    """

    head_bytes: int = 32 * 1024
    headers: int = 100
    body_bytes: int = 4 * 1024 * 1024
    head_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 75.0
    write_stall_s: float = 60.0
    connections: int = 4096
    pipelined: int = 16
    lingering: int = 256  # refused connections that may linger at once; others are closed without more
    linger_s: float = 2.0  # how long input is thrown away after a refusal, so that the client can read it
    sweep_s: float = 0.5  # how often the time limits are looked at
