"""What is deployed: the worker's module and the agents shipped with it; not part of the wheel."""
