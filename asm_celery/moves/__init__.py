"""The only place where SQL, Redis and Celery meet: every change of a run or a session is a move here."""
