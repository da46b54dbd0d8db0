"""The workers' room: what runs an agent inside a Celery worker.

`app` makes the Celery application, `signals` and `pool` tie it to the life of a worker, `host` is what one
process holds; `executor` runs an attempt, `heartbeat` keeps it alive.  Celery and kombu live here and in
`dispatch`; nothing here moves a run, that is the Moves' work.
"""
