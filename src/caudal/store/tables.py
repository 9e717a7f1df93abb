"""The tables: real columns for keys, states and indexes, and the whole row as a JSON document.

The documents are what is read; columns exist to find and to guard. Knows nothing of what the rows mean.
Changed only together with a new file in migrations/versions; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.types import TypeEngine

metadata = MetaData()

NAME: TypeEngine[str] = Text().with_variant(Text(collation="C"), "postgresql")
"""Text that is compared byte by byte, as SQLite does; a range scan then finds all names below one."""

DOCUMENT = Text()
"""A value as store/codec.py writes it. Text, not the database's own JSON: it is kept as it was written, and
no driver parses what the codec is to parse. In SQL: `doc ->> '$.state'`, `doc::json ->> 'state'`."""

COUNT: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
"""64 bits in both."""

meta = Table(
    "meta",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1: the row that commits lock
    Column("version", COUNT, nullable=False),
    Column("event_seq", COUNT, nullable=False),
    Column("decision_seq", COUNT, nullable=False),
    Column("waiting", DOCUMENT, nullable=False),  # {subject: why it waits}, of the last decision
    Column("leader_epoch", COUNT, nullable=False),
    Column("leader", DOCUMENT, nullable=True),  # ports.Holder; null before the first
    Column("leader_until", Float(53), nullable=True),  # null: resigned
)

fleet = Table(
    "fleet",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("doc", DOCUMENT, nullable=False),
)

workloads = Table(
    "workloads",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("doc", DOCUMENT, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("id", NAME, primary_key=True),
    Column("site", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("live", Boolean, nullable=False),
    Column("requested_at", Float(53), nullable=False),
    Column("ended_at", Float(53), nullable=True),
    Column("doc", DOCUMENT, nullable=False),
    Index("leases_live", "live"),
    Index("leases_ended", "ended_at"),
)

gangs = Table(
    "gangs",
    metadata,
    Column("id", NAME, primary_key=True),
    Column("slot", NAME, nullable=False),
    Column("incarnation", COUNT, nullable=False),
    Column("workload", NAME, nullable=False),
    Column("ended_at", Float(53), nullable=True),
    Column("shown", Boolean, nullable=False),  # not over, or one of its slot's last few that are
    Column("doc", DOCUMENT, nullable=False),
    Index("gangs_shown", "shown", "slot"),
    Index("gangs_ended", "ended_at"),
)

intents = Table(
    "intents",
    metadata,
    Column("id", NAME, primary_key=True),
    Column("subject", NAME, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("changed_at", Float(53), nullable=False),
    Column("doc", DOCUMENT, nullable=False),
    Index("intents_state", "state", "changed_at"),
    Index("intents_changed", "changed_at"),
    Index("intents_subject", "subject", "created_at"),
)

reports = Table(
    "reports",
    metadata,
    Column("gang_id", NAME, primary_key=True),
    Column("at", Float(53), nullable=False),
    Column("doc", DOCUMENT, nullable=False),
)

points = Table(
    "points",
    metadata,
    Column("run", NAME, primary_key=True),
    Column("seq", COUNT, primary_key=True, autoincrement=False),
    Column("doc", DOCUMENT, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("seq", COUNT, primary_key=True, autoincrement=False),
    Column("at", Float(53), nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject", NAME, nullable=False),
    Column("doc", DOCUMENT, nullable=False),
    Index("events_subject", "subject", "seq"),
)

decisions = Table(
    "decisions",
    metadata,
    Column("seq", COUNT, primary_key=True, autoincrement=False),
    Column("at", Float(53), nullable=False),
    Column("doc", DOCUMENT, nullable=False),
)

decision_subjects = Table(
    "decision_subjects",
    metadata,
    Column("subject", NAME, primary_key=True),
    Column("seq", COUNT, ForeignKey("decisions.seq", ondelete="CASCADE"), primary_key=True),
    Index("decision_subjects_seq", "seq"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", NAME, primary_key=True),
    Column("name", NAME, nullable=False),
    Column("revoked", Boolean, nullable=False),
    Column("doc", DOCUMENT, nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("key_id", NAME, primary_key=True),
    Column("model", NAME, primary_key=True),
    Column("hour", COUNT, primary_key=True, autoincrement=False),  # when it began, seconds since 1970
    Column("requests", COUNT, nullable=False),
    Column("failed", COUNT, nullable=False),
    Column("prompt_tokens", COUNT, nullable=False),
    Column("completion_tokens", COUNT, nullable=False),
    Column("cached_tokens", COUNT, nullable=False),
    Column("picodollars", COUNT, nullable=False),
    Index("usage_hour", "hour"),
)

usage_sources = Table(
    "usage_sources",
    metadata,
    Column("source", NAME, primary_key=True),  # one gateway process
    Column("seq", COUNT, nullable=False),  # of its batches, the last that is in the sums
)
