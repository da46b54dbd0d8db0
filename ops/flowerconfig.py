"""Flower's settings: ``celery -A workers.app flower --conf=ops/flowerconfig.py``.

Flower shows each run as a task under its run id, named by its agent, with session and run in its arguments.
What it needs of secrets comes from its own variables, such as ``FLOWER_BASIC_AUTH=user:password``.
"""

port = 5555
# a web page without a password is for the loopback only
address = "127.0.0.1"
# what is kept in memory; the log in SQL has everything
max_tasks = 10_000
tasks_columns = "uuid,name,args,state,received,started,runtime,worker"
natural_time = True
auto_refresh = True
