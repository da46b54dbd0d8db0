"""The Log: events are written, committed, then published; anyone follows them without a gap."""
