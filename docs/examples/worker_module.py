from asm_celery import AgentSessions

asm = AgentSessions.from_env()  # ASM_REDIS_URL, ASM_DATABASE_URL


@asm.agent(run_timeout=600)
def chat(ctx, text):
    earlier = ctx.history(20)  # the ended runs of this session, oldest first
    for word in f"This is message {len(earlier) + 1}: {text}".split():
        yield word + " "  # a generator is left at a yield when its run is stopped


@asm.agent("report", queue="slow", max_attempts=3)
def write_report(ctx, document):
    for number, _page in enumerate(document["pages"], start=1):
        ctx.check()  # raises once a stop was asked for
        ctx.emit("page_written", {"page": number})
    return {"pages": len(document["pages"])}


app = asm.celery_app
