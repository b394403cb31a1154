"""A round of an agent with LiteLLM: pip install litellm, start `baton serve`, run this."""

import json
import os

# Else it asks the network for prices before it does anything.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import litellm
from openai import OpenAI

URL = os.environ.get("BATON_URL", "http://127.0.0.1:8000") + "/v1"
CITY = {"type": "string", "enum": ["Paris", "London"]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": CITY},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def weather(city):
    return f"In {city} the sun shines and it has 21 degrees."


# Until there are keys, any key will do; the clients insist on one.
name = OpenAI(base_url=URL, api_key="none").models.list().data[0].id
settings = {"model": f"openai/{name}", "api_base": URL, "api_key": "none", "temperature": 0, "max_tokens": 100}
messages = [{"role": "user", "content": "What is the weather in Paris?"}]
# A small model is told to call; a larger one may choose for itself.
asked = litellm.completion(messages=messages, tools=[WEATHER], tool_choice="required", **settings)
message = asked.choices[0].message
messages.append(message.model_dump(exclude_none=True))
for call in message.tool_calls:
    arguments = json.loads(call.function.arguments)
    print("calls:", call.function.name, arguments)
    messages.append({"role": "tool", "tool_call_id": call.id, "content": weather(**arguments)})
print("answers: ", end="")
for chunk in litellm.completion(messages=messages, stream=True, **settings):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
