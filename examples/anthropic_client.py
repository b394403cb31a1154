"""Talks to Baton with Anthropic's own client: pip install anthropic, start `baton serve`, run this."""

import os
import sys

import anthropic

# Until there are keys, any key will do; the client insists on one.
client = anthropic.Anthropic(base_url=os.environ.get("BATON_URL", "http://127.0.0.1:8000"), api_key="none")
model = client.get("/v1/models", cast_to=object)["data"][0]["id"]
messages = [{"role": "user", "content": " ".join(sys.argv[1:]) or "Why do relay runners hand over a baton?"}]

print(f"({client.messages.count_tokens(model=model, messages=messages).input_tokens} prompt tokens)")
with client.messages.stream(model=model, messages=messages, max_tokens=64) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
    print(f"\n({stream.get_final_message().usage.output_tokens} generated)")
