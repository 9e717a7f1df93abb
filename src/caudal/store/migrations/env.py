"""What Alembic runs around the steps: on the connection, and in the transaction, that it is handed.

Imported by Alembic only. Knows nothing of URLs or configuration files.
"""

from __future__ import annotations

from alembic import context

from caudal.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=context.config.attributes["version_table"],
    transactional_ddl=True,  # also SQLite's: store/database.py begins its transactions itself
)
context.run_migrations()
