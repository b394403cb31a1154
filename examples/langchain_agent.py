"""A round of an agent with LangChain: pip install langchain-openai, start `baton serve`, run this."""

import os
from typing import Literal

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI

URL = os.environ.get("BATON_URL", "http://127.0.0.1:8000") + "/v1"


@tool
def weather(city: Literal["Paris", "London"]) -> str:
    """The weather in a city."""
    return f"In {city} the sun shines and it has 21 degrees."


# Until there are keys, any key will do; the clients insist on one.
name = OpenAI(base_url=URL, api_key="none").models.list().data[0].id
model = ChatOpenAI(base_url=URL, api_key="none", model=name, temperature=0, max_tokens=100)
messages = [HumanMessage("What is the weather in Paris?")]
# A small model is told to call; a larger one may choose for itself.
asked = model.bind_tools([weather], tool_choice="required", parallel_tool_calls=False).invoke(messages)
messages.append(asked)
for call in asked.tool_calls:
    print("calls:", call["name"], call["args"])
    messages.append(weather.invoke(call))
answering = model.bind_tools([weather], tool_choice="none")
print("answers: ", end="")
for chunk in answering.stream(messages):
    print(chunk.content, end="", flush=True)
print()
