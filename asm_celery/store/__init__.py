"""The truth: sessions, runs, events and operator settings in SQLite or PostgreSQL."""
