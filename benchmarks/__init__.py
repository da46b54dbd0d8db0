"""What the hot paths cost, beside plain Celery in the same run: ``./dev bench``."""
