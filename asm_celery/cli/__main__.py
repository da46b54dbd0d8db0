"""``python -m asm_celery.cli``: the same as ``asm``, where no script is installed."""

from asm_celery.cli.program import main

if __name__ == "__main__":
    main()
