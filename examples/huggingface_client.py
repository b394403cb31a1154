"""Talks to Baton with Hugging Face's client: pip install huggingface_hub, start `baton serve`, run this."""

import os
import sys

from huggingface_hub import InferenceClient

url = os.environ.get("BATON_URL", "http://127.0.0.1:8000")
question = " ".join(sys.argv[1:]) or "Why do relay runners hand over a baton?"

# As to an endpoint that speaks OpenAI's words ...
chat = InferenceClient(base_url=f"{url}/v1", api_key="none", timeout=120)
model = InferenceClient(model=url, provider="hf-inference").get_endpoint_info()["model_id"]
stream = chat.chat_completion([{"role": "user", "content": question}], model=model, max_tokens=48, stream=True)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)

# ... and as to one that continues text.
text = InferenceClient(model=url, provider="hf-inference", timeout=120)
print("\nOne two three", text.text_generation("One two three", max_new_tokens=8))
