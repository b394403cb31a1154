"""Talks to Baton as to Text Generation Inference: pip install text-generation, start `baton serve`, run this."""

import os
import sys

import text_generation

client = text_generation.Client(os.environ.get("BATON_URL", "http://127.0.0.1:8000"), timeout=120)
prompt = " ".join(sys.argv[1:]) or "A relay runner hands over"

print(prompt, end="")
for answer in client.generate_stream(prompt, max_new_tokens=32):
    if not answer.token.special:
        print(answer.token.text, end="", flush=True)
    if answer.details:
        print(f"\n({answer.details.generated_tokens} generated: {answer.details.finish_reason.value})")
