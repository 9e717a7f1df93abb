"""State (SQL), blobs (object stores) and models (pulled and published)."""
