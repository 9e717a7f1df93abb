"""What next: a pure function from a snapshot and a time to a decision with its reasons."""

from caudal.policy.decide import decide
from caudal.policy.rules import Rules

__all__ = ["Rules", "decide"]
