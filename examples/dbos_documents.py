"""Documents through durable steps of DBOS: pip install dbos openai, start `baton serve`, run this with a path.

The path is of the database in which DBOS keeps how far it is. Kill this wherever you like and start it again:
answers that were kept are not asked for again, and the call that was cut off goes on, since it has the same key.
"""

import json
import os
import sys

import openai
from dbos import DBOS, SetWorkflowID

URL = os.environ.get("BATON_URL", "http://127.0.0.1:8000") + "/v1"
# Of the first try, which no answer keeps; every next one has twice as much, and comes later.
SECONDS, TRIES = 0.05, 12
DOCUMENTS = [
    "The library is closed on Mondays. On other days it opens at nine.",
    "Bread is made of flour, water and salt. It needs an hour to rise.",
    "The night train to Lisbon leaves at ten and has no dining car.",
]

database, run = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "documents"
# Until there are keys, any key will do; the client insists on one.
client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
DBOS(config={"name": "documents", "system_database_url": f"sqlite:///{database}", "log_level": "ERROR"})


@DBOS.step(retries_allowed=True, interval_seconds=SECONDS, backoff_rate=2.0, max_attempts=TRIES)
def ask(model, instruction, text, max_tokens):
    key = f"{DBOS.workflow_id}-{DBOS.step_id}"
    print("asks:", key, flush=True)
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "system", "content": instruction}, {"role": "user", "content": text}],
        max_tokens=max_tokens,
        timeout=SECONDS * 2**DBOS.step_status.current_attempt,
        extra_headers={"Idempotency-Key": key},
    )
    return {"id": answer.id, "text": answer.choices[0].message.content}


@DBOS.step()
def model_name():
    return client.models.list().data[0].id


@DBOS.workflow()
def pipeline(documents):
    model, answers = model_name(), []
    for document in documents:
        summary = ask(model, "Summarise the text in one sentence.", document, 60)
        title = ask(model, "Give the text a title.", summary["text"], 30)
        answers += [summary, title]
    return answers


DBOS.launch()  # goes on with what was cut off
with SetWorkflowID(run):
    found = DBOS.start_workflow(pipeline, DOCUMENTS).get_result()
for title in found[1::2]:
    print("title:", json.dumps(title["text"]))
print("answers:", len({answer["id"] for answer in found}))
DBOS.destroy()
