"""The steps from an empty database to today's tables, applied by store/migrate.py whenever one is opened."""
