"""Documents through a DuraGraph pipeline: pip install 'duragraph[openai]', start `baton serve`, run this.

A call that takes too long is given up and made again, later and with more time. Its key says which call of
which run it is, so that Baton goes on with the one that was given up instead of computing it again.
"""

import asyncio
import dataclasses
import hashlib
import json
import os

import openai
from duragraph import Graph, entrypoint, llm_node
from duragraph.llm import register_provider
from duragraph.llm.openai import OpenAIProvider

URL = os.environ.get("BATON_URL", "http://127.0.0.1:8000") + "/v1"
RUN = os.environ.get("RUN", os.urandom(8).hex())
# Of the first try, which no answer keeps; every next one has twice as much.
SECONDS, TRIES = 0.05, 12
DOCUMENTS = [
    "The library is closed on Mondays. On other days it opens at nine.",
    "Bread is made of flour, water and salt. It needs an hour to rise.",
    "The night train to Lisbon leaves at ten and has no dining car.",
]

# Until there are keys, any key will do; the client insists on one.
MODEL = openai.OpenAI(base_url=URL, api_key="none").models.list().data[0].id
given_up, answers = 0, set()


class Baton(OpenAIProvider):
    """Where nodes of Baton's models are answered."""

    supported_models = property(lambda self: [MODEL])

    def __init__(self):
        super().__init__(api_key="none", base_url=URL, max_retries=0)

    async def acomplete(self, request):
        global given_up
        words = json.dumps([RUN, request.system_prompt, request.messages])
        headers = {"Idempotency-Key": hashlib.sha256(words.encode()).hexdigest()}
        for attempt in range(TRIES):
            patience = {"timeout": SECONDS * 2**attempt, "extra_headers": headers}
            try:
                answer = await super().acomplete(dataclasses.replace(request, extra_params=patience))
                answers.add(answer.raw_response.id)
                return answer
            except openai.APIConnectionError:  # time-outs are among them
                given_up += 1
                await asyncio.sleep(SECONDS * 2**attempt)
        raise TimeoutError("no answer")


register_provider("baton", Baton)


@Graph(id="documents")
class Documents:
    """A summary of a document, and a title for that."""

    @entrypoint
    @llm_node(model=MODEL, max_tokens=60, system_prompt="Summarise the text in one sentence.")
    def summarise(self, state):
        return state

    @llm_node(model=MODEL, max_tokens=30, system_prompt="Give the last answer a title.")
    def entitle(self, state):
        return state

    summarise >> entitle


async def main():
    states = [{"messages": [{"role": "user", "content": document}]} for document in DOCUMENTS]
    results = await asyncio.gather(*(Documents().arun(state) for state in states))
    for result in results:
        print("title:", json.dumps(result.output["messages"][-1]["content"]))
    print("answers:", len(answers))
    print("given up:", given_up)


asyncio.run(main())
