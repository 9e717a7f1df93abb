"""What to sign: which contracts, when, and how the load lies on them. Pure; the numbers come from domain/demand."""
