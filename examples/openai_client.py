"""Talks to Baton with OpenAI's own client: pip install openai, start `baton serve`, run this."""

import os
import sys

from openai import OpenAI

# Until there are keys, any key will do; the client insists on one.
client = OpenAI(base_url=os.environ.get("BATON_URL", "http://127.0.0.1:8000") + "/v1", api_key="none")
model = client.models.list().data[0].id
question = " ".join(sys.argv[1:]) or "Why do relay runners hand over a baton?"

stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": question}],
    max_tokens=64,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage:
        print(f"\n({chunk.usage.prompt_tokens} prompt tokens, {chunk.usage.completion_tokens} generated)")
