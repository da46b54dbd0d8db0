def test_x(sqlite_config, start_worker, monkeypatch):
    from asm_celery import AgentSessions
    open("/tmp/solo_mod.py","w").write('''
import workers.app
from workers.app import app
import asm_celery.worker.host as h, traceback, sys
import asm_celery.worker.heartbeat as hb
o=h.ExecutorHost.stop
def stop(self):
    traceback.print_stack(); print("STOP", self._heartbeat, file=sys.stderr)
    o(self)
h.ExecutorHost.stop=stop
o2=hb.Heartbeat.leave
def leave(self):
    print("LEAVE", file=sys.stderr)
    o2(self)
    print("LEFT", file=sys.stderr)
hb.Heartbeat.leave=leave
o3=h.ExecutorHost.start
def start(self, **k):
    print("START", k, file=sys.stderr); o3(self, **k)
h.ExecutorHost.start=start
''')
    w=start_worker("solo_mod", pool="solo", concurrency=2, loglevel="INFO", env={**__import__("tests.conftest").conftest.environment(sqlite_config), "PYTHONPATH":"/work/main:/tmp"})
    with AgentSessions(sqlite_config) as asm:
        asm.start_session("echo").execute_run({"a": 1}, timeout=20)
        w.terminate(); w.wait()
    print(w.log[-5000:])
    assert 0
