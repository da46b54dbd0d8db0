import asyncio

from asm_celery import AgentSessions

asm = AgentSessions.local()  # an embedded Valkey, SQLite and one worker, all inside this process


@asm.agent
async def hello(ctx, prompt):
    for word in f"You said: {prompt}".split():
        await asyncio.sleep(0.2)  # a stop lands here, cleanly
        yield word + " "  # stored, streamed, replayable


with asm:
    server = asm.start_session("hello")
    run_id = server.submit_run("good morning")
    for event in server.subscribe(run_id=run_id):
        print(event.sequence, event.type, event.data)
    print(server.await_run(run_id).output)
