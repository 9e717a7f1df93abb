"""Usage says what it cost at external addresses: keys may have budgets in US dollars."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """One column more; what was used before is taken to have cost nothing."""
    with op.batch_alter_table("usage") as batch:
        batch.add_column(sa.Column("picodollars", COUNT, nullable=False, server_default="0"))
    with op.batch_alter_table("usage") as batch:
        batch.alter_column("picodollars", server_default=None)


def downgrade() -> None:
    """As step 3 had it."""
    with op.batch_alter_table("usage") as batch:
        batch.drop_column("picodollars")
