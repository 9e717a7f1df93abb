"""Keys of the front door, and what was used with them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Three tables more; what is there stays."""
    op.create_table(
        "api_keys",
        sa.Column("id", NAME, primary_key=True),
        sa.Column("name", NAME, nullable=False),
        sa.Column("revoked", sa.Boolean, nullable=False),
        sa.Column("doc", sa.Text, nullable=False),
    )
    op.create_table(
        "usage",
        sa.Column("key_id", NAME, primary_key=True),
        sa.Column("model", NAME, primary_key=True),
        sa.Column("hour", COUNT, primary_key=True, autoincrement=False),
        sa.Column("requests", COUNT, nullable=False),
        sa.Column("failed", COUNT, nullable=False),
        sa.Column("prompt_tokens", COUNT, nullable=False),
        sa.Column("completion_tokens", COUNT, nullable=False),
        sa.Column("cached_tokens", COUNT, nullable=False),
    )
    op.create_index("usage_hour", "usage", ["hour"])
    op.create_table(
        "usage_sources",
        sa.Column("source", NAME, primary_key=True),
        sa.Column("seq", COUNT, nullable=False),
    )
