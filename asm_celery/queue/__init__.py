"""What must be decided atomically and fast, in Redis: lines, leases, the limiter, capacity."""
