"""Leases and gangs are found by when they ended: bills are made of those that did, too."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_leases = sa.table(
    "leases",
    sa.column("id", sa.Text()),
    sa.column("requested_at", sa.Float(53)),
    sa.column("ended_at", sa.Float(53)),
    sa.column("doc", sa.Text()),
)


def upgrade() -> None:
    """Two columns more, filled from the documents; what is there stays."""
    with op.batch_alter_table("leases") as batch:
        batch.add_column(sa.Column("requested_at", sa.Float(53), nullable=False, server_default="0"))
        batch.add_column(sa.Column("ended_at", sa.Float(53), nullable=True))
    connection = op.get_bind()
    for name, doc in connection.execute(sa.select(_leases.c.id, _leases.c.doc)).all():
        said = json.loads(doc)
        times = {"requested_at": said["requested_at"], "ended_at": said.get("ended_at")}
        connection.execute(sa.update(_leases).where(_leases.c.id == name).values(times))
    with op.batch_alter_table("leases") as batch:
        batch.alter_column("requested_at", server_default=None)
    op.create_index("leases_ended", "leases", ["ended_at"])
    op.create_index("gangs_ended", "gangs", ["ended_at"])


def downgrade() -> None:
    """As step 2 had it: the documents hold all that the columns did."""
    op.drop_index("gangs_ended", "gangs")
    op.drop_index("leases_ended", "leases")
    with op.batch_alter_table("leases") as batch:
        batch.drop_column("ended_at")
        batch.drop_column("requested_at")
