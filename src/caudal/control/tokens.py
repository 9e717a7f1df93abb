"""Tokens that are made from the control API's secret instead of being kept: whoever has one can do what it is for, and
cannot come from it to the secret."""

from __future__ import annotations

import hashlib
import hmac


def run_token(secret: str, run: str, generation: int) -> str:
    """The token that the coordinator and the workers of a run share."""
    return _made(secret, f"caudal run {run} generation {generation}")


def gang_token(secret: str, gang_id: str) -> str:
    """What a gang on another machine shows to the control API: it names the gang, and is good for its report and, where
    it is a gateway's, for what gateways ask."""
    return f"{gang_id}:{_made(secret, f'caudal gang {gang_id}')}"


def gang_of(secret: str, token: str) -> str:
    """The gang whose token this is; empty where it is nobody's."""
    gang_id, _, _ = token.rpartition(":")
    if not secret or not gang_id:
        return ""
    right = hmac.compare_digest(token.encode(), gang_token(secret, gang_id).encode())
    return gang_id if right else ""


def _made(secret: str, message: str) -> str:
    return hmac.new(secret.encode(), message.encode(), hashlib.sha256).hexdigest()
