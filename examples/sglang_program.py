"""A program in SGLang's front-end language: pip install sglang, start `baton serve`, run this."""

import os

import sglang


@sglang.function
def describe(s, thing):
    s += sglang.user(f"What is a {thing}? One sentence.")
    s += sglang.assistant(sglang.gen("what", max_tokens=32, temperature=0))
    s += sglang.user("Is it something for sports? Answer yes or no.")
    s += sglang.assistant(sglang.select("sports", ["yes", "no"]))
    s += sglang.user("Name a year.")
    s += sglang.assistant(sglang.gen("year", regex="(19|20)[0-9]{2}", max_tokens=8, temperature=0))


url = os.environ.get("BATON_URL", "http://127.0.0.1:8000")
sglang.set_default_backend(sglang.RuntimeEndpoint(url, chat_template_name="chatml"))
# Side by side: what both begin with is computed once.
for state in describe.run_batch([{"thing": "relay baton"}, {"thing": "kettle"}]):
    print(f"{state['what'].strip()} | for sports: {state['sports']} | a year: {state['year']}")
