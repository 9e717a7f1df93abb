"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """From nothing."""
    _beliefs()
    _histories()
    meta = op.create_table(
        "meta",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", COUNT, nullable=False),
        sa.Column("event_seq", COUNT, nullable=False),
        sa.Column("decision_seq", COUNT, nullable=False),
        sa.Column("waiting", sa.Text, nullable=False),
        sa.Column("leader_epoch", COUNT, nullable=False),
        sa.Column("leader", sa.Text, nullable=True),
        sa.Column("leader_until", sa.Float(53), nullable=True),
    )
    first = {"id": 1, "version": 0, "event_seq": 0, "decision_seq": 0, "waiting": "{}", "leader_epoch": 0}
    op.bulk_insert(meta, [first])


def _beliefs() -> None:
    """What is believed and promised now."""
    op.create_table(
        "fleet",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("doc", sa.Text, nullable=False),
    )
    op.create_table(
        "workloads",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("doc", sa.Text, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("id", NAME, primary_key=True),
        sa.Column("site", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("live", sa.Boolean, nullable=False),
        sa.Column("doc", sa.Text, nullable=False),
    )
    op.create_index("leases_live", "leases", ["live"])
    op.create_table(
        "gangs",
        sa.Column("id", NAME, primary_key=True),
        sa.Column("slot", NAME, nullable=False),
        sa.Column("incarnation", COUNT, nullable=False),
        sa.Column("workload", NAME, nullable=False),
        sa.Column("ended_at", sa.Float(53), nullable=True),
        sa.Column("shown", sa.Boolean, nullable=False),
        sa.Column("doc", sa.Text, nullable=False),
    )
    op.create_index("gangs_shown", "gangs", ["shown", "slot"])
    op.create_table(
        "reports",
        sa.Column("gang_id", NAME, primary_key=True),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("doc", sa.Text, nullable=False),
    )


def _histories() -> None:
    """What was done and said."""
    op.create_table(
        "intents",
        sa.Column("id", NAME, primary_key=True),
        sa.Column("subject", NAME, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("changed_at", sa.Float(53), nullable=False),
        sa.Column("doc", sa.Text, nullable=False),
    )
    op.create_index("intents_state", "intents", ["state", "changed_at"])
    op.create_index("intents_changed", "intents", ["changed_at"])
    op.create_index("intents_subject", "intents", ["subject", "created_at"])
    op.create_table(
        "points",
        sa.Column("run", NAME, primary_key=True),
        sa.Column("seq", COUNT, primary_key=True, autoincrement=False),
        sa.Column("doc", sa.Text, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("seq", COUNT, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", NAME, nullable=False),
        sa.Column("doc", sa.Text, nullable=False),
    )
    op.create_index("events_subject", "events", ["subject", "seq"])
    op.create_table(
        "decisions",
        sa.Column("seq", COUNT, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("doc", sa.Text, nullable=False),
    )
    op.create_table(
        "decision_subjects",
        sa.Column("subject", NAME, primary_key=True),
        sa.Column("seq", COUNT, sa.ForeignKey("decisions.seq", ondelete="CASCADE"), primary_key=True),
    )
    op.create_index("decision_subjects_seq", "decision_subjects", ["seq"])
