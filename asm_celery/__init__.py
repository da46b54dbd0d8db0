"""asm_celery."""
