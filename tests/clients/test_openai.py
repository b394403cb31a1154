"""OpenAI's own Python client against a running Baton, whatever model it serves.

    baton serve &
    pip install -r tests/clients/requirements.txt
    BATON_URL=http://127.0.0.1:8000 pytest tests/clients
"""

import enum
import json
import os
import pathlib
import re
import subprocess
import sys

import httpx2
import jsonschema
import openai
import pydantic
import pytest

URL = os.environ.get("BATON_URL", "http://127.0.0.1:8000").rstrip("/")
EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "openai_client.py"
MESSAGES = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "Name three colours."},
]
GREEDY = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="session")
def client():
    # No retries: an error of the server shall be seen, not smoothed over.
    with openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture(scope="session")
def chat(client, model):
    def create(**changes):
        return client.chat.completions.create(**{"model": model, "messages": MESSAGES, **GREEDY, **changes})

    return create


@pytest.fixture(scope="session")
def complete(client, model):
    def create(**changes):
        return client.completions.create(**{"model": model, "prompt": "One two three", **GREEDY, **changes})

    return create


def joined(chunks, index=0):
    """Text of one choice of a chat stream."""
    choices = (choice for chunk in chunks for choice in chunk.choices)
    return "".join(choice.delta.content or "" for choice in choices if choice.index == index)


# --- models ---


def test_models(client, model):
    found = client.models.retrieve(model)
    assert found.id == model
    assert found.object == "model"
    assert model in [entry.id for entry in client.models.list()]


# --- chat ---


def test_chat(chat):
    answer = chat()
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0
    assert 1 <= usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 <= usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens


def test_greedy_answers_are_equal_whole_and_streamed(chat):
    whole = chat().choices[0].message.content
    assert joined(chat(stream=True)) == whole


def test_an_answer_can_be_sent_back(chat):
    message = chat().choices[0].message
    again = chat(messages=[*MESSAGES, message.model_dump(), {"role": "user", "content": "More."}])
    assert again.usage.prompt_tokens > 0


def test_text_parts(chat):
    parts = [{"type": "text", "text": "Name three"}, {"type": "text", "text": "colours."}]
    joined_by_hand = [{"role": "user", "content": "Name three\ncolours."}]
    by_parts = chat(messages=[{"role": "user", "content": parts}])
    assert by_parts.usage.prompt_tokens == chat(messages=joined_by_hand).usage.prompt_tokens


def test_stream_order(chat):
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    finishes = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert finishes[-1] in ("stop", "length")
    assert finishes[:-1] == [None] * (len(finishes) - 1)


def test_several_choices(chat):
    answer = chat(n=3, temperature=1, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    streamed = list(chat(n=3, temperature=1, seed=7, stream=True))
    finished = {choice.index for chunk in streamed for choice in chunk.choices if choice.finish_reason}
    assert finished == {0, 1, 2}
    # Equal seeds draw equal tokens, choice by choice.
    assert [joined(streamed, i) for i in range(3)] == [choice.message.content for choice in answer.choices]


def test_logprobs(chat):
    answer = chat(logprobs=True, top_logprobs=3, max_tokens=5)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        best = [top.logprob for top in token.top_logprobs]
        assert best == sorted(best, reverse=True)
        # Greedy: the chosen token is the likeliest one.
        assert token.bytes == token.top_logprobs[0].bytes
    streamed = [
        token
        for chunk in chat(logprobs=True, top_logprobs=3, max_tokens=5, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content
    ]
    assert [token.bytes for token in streamed] == [token.bytes for token in content]


def test_stop_string(chat):
    text = chat().choices[0].message.content
    middle = len(text) // 2
    stop = text[middle : middle + 2]
    if len(stop) < 2 or "\ufffd" in stop:
        pytest.skip("the answer is too short to stop in its middle")
    stopped = chat(stop=stop)
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert joined(chat(stop=[stop, "never seen"], stream=True)) == text[: text.index(stop)]


def test_limits(chat):
    answer = chat(max_tokens=None, max_completion_tokens=3, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"


def test_the_bill(chat):
    bill = chat().usage.model_extra["baton_bill"]
    assert bill["queue_ms"] >= 0
    assert bill["transfer_bytes"] >= 0


def test_extensions_of_vllm(chat):
    extra = {"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 4}
    answer = chat(temperature=1, seed=1, max_tokens=8, extra_body=extra)
    assert 4 <= answer.usage.completion_tokens <= 8


# --- completions ---


def test_completions(complete):
    answer = complete()
    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason in ("stop", "length")
    streamed = "".join(choice.text for chunk in complete(stream=True) for choice in chunk.choices)
    assert streamed == answer.choices[0].text


def test_several_prompts(complete):
    answer = complete(prompt=["One two three", "A B C"], n=2, max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text, "greedy"


def test_token_ids_as_prompt(complete):
    answer = complete(prompt=[[65, 66, 67], [68]], max_tokens=2)
    assert answer.usage.prompt_tokens == 4
    assert len(answer.choices) == 2


def test_completions_logprobs(complete):
    logprobs = complete(logprobs=2, max_tokens=4).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs)
    assert logprobs.text_offset[0] == 0
    assert all(value <= 0 for value in logprobs.token_logprobs)


def test_echo(complete):
    plain = complete(prompt=["One two three", "A B C"], max_tokens=4)
    echoed = complete(prompt=["One two three", "A B C"], max_tokens=4, echo=True)
    expected = ["One two three" + plain.choices[0].text, "A B C" + plain.choices[1].text]
    assert [choice.text for choice in echoed.choices] == expected
    streamed = complete(max_tokens=4, echo=True, stream=True)
    assert "".join(choice.text for chunk in streamed for choice in chunk.choices) == expected[0]


def test_the_best_of_several(complete):
    settings = {"temperature": 1, "seed": 5, "max_tokens": 6, "logprobs": 0}
    every = complete(n=4, **settings).choices
    best = complete(n=2, best_of=4, **settings).choices

    def mean(choice):
        return sum(choice.logprobs.token_logprobs) / max(1, len(choice.logprobs.tokens))

    expected = sorted(every, key=mean, reverse=True)[:2]
    assert [choice.text for choice in best] == [choice.text for choice in expected]


# --- vLLM's extras ---


def post(path, body):
    with httpx2.Client(base_url=URL, timeout=120, trust_env=False) as client:
        return client.post(path, json=body).raise_for_status().json()


def test_tokens_there_and_back(complete, model):
    text = "Déjà vu: 12 words."
    found = post("/tokenize", {"model": model, "prompt": text, "add_special_tokens": False, "return_token_strs": True})
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert post("/detokenize", {"model": model, "tokens": found["tokens"]})["prompt"] == text
    assert complete(prompt=found["tokens"], max_tokens=1).usage.prompt_tokens == found["count"]


def test_a_chat_is_tokenized_as_it_is_asked(chat, model):
    assert post("/tokenize", {"model": model, "messages": MESSAGES})["count"] == chat(max_tokens=1).usage.prompt_tokens


def test_prompts_can_be_truncated(complete, model):
    tokens = post("/tokenize", {"model": model, "prompt": "one two three four five"})["tokens"]
    short = complete(prompt=tokens[-2:])
    cut = complete(prompt=tokens, extra_body={"truncate_prompt_tokens": 2})
    assert cut.usage.prompt_tokens == 2
    assert cut.choices[0].text == short.choices[0].text


def test_an_answer_that_is_begun_goes_on(chat):
    whole = chat().choices[0].message.content
    begun = [*MESSAGES, {"role": "assistant", "content": whole[: whole.index(" ")]}]
    switches = {"continue_final_message": True, "add_generation_prompt": False}
    assert chat(messages=begun, extra_body=switches).choices[0].message.content.startswith(" ")


def test_the_stop_string_is_named_and_can_be_kept(complete):
    text = complete().choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    choice = complete(stop=stop, extra_body={"include_stop_str_in_output": True}).choices[0]
    assert choice.text == text[: text.index(stop) + len(stop)]
    assert choice.model_extra["stop_reason"] == stop


def test_version_and_load():
    with httpx2.Client(base_url=URL, trust_env=False) as client:
        assert client.get("/version").json()["version"]
        assert client.get("/load").json()["server_load"] == 0


# --- errors ---


def test_unknown_model(chat):
    with pytest.raises(openai.NotFoundError) as caught:
        chat(model="no-such-model")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"max_tokens": 10**9}, "max_tokens", "context_length_exceeded"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"extra_body": {"guided_regex": "("}}, "guided_regex", "invalid_value"),
        ({"extra_body": {"no_such_thing": 1}}, "no_such_thing", "unsupported_parameter"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refused_parameters(chat, changes, param, code, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(stream=stream, **changes)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"


def test_a_client_that_leaves_early(chat):
    for _ in range(3):
        with chat(stream=True, max_tokens=64) as stream:
            next(iter(stream))
    assert chat(max_tokens=1).usage.completion_tokens == 1


# --- structured output ---


class Colour(enum.StrEnum):
    RED = "red"
    GREEN = "grün"


class Point(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    x: int = pydantic.Field(ge=0, le=99)
    y: int | None


class Picture(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    title: str = pydantic.Field(max_length=20)
    colour: Colour
    points: list[Point] = pydantic.Field(max_length=3)


def test_a_pydantic_model_is_parsed(client, model):
    answer = client.chat.completions.parse(
        model=model, messages=MESSAGES, response_format=Picture, temperature=0, max_tokens=400
    )
    assert answer.choices[0].finish_reason == "stop"
    picture = answer.choices[0].message.parsed
    assert isinstance(picture, Picture) and len(picture.title) <= 20


def test_a_streamed_schema_is_the_whole_one(chat):
    form = {"type": "json_schema", "json_schema": {"name": "p", "strict": True, "schema": Picture.model_json_schema()}}
    whole = chat(response_format=form, max_tokens=400).choices[0].message.content
    assert joined(chat(response_format=form, max_tokens=400, stream=True)) == whole
    jsonschema.validate(json.loads(whole), Picture.model_json_schema())


def test_a_json_object_as_long_as_it_may_be(chat):
    choice = chat(response_format={"type": "json_object"}, max_tokens=40).choices[0]
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


def test_vllms_guided_decoding(chat, complete):
    regex = r"[a-z]{3,8}, [a-z]{3,8} (and|or) [a-z]{3,8}"
    assert re.fullmatch(regex, chat(extra_body={"guided_regex": regex}, max_tokens=60).choices[0].message.content)
    for answer in chat(extra_body={"guided_choice": ["yes", "no"]}, n=2, temperature=1).choices:
        assert (answer.message.content, answer.finish_reason) in [("yes", "stop"), ("no", "stop")]
    grammar = 'start: "(" start ")" | "x"'
    text = complete(extra_body={"structured_outputs": {"grammar": grammar}}, max_tokens=200).choices[0].text
    assert re.fullmatch(r"\(*x\)*", text) and text.count("(") == text.count(")")


# --- tools ---


class GetWeather(pydantic.BaseModel):
    """Tells the weather of a city."""

    model_config = pydantic.ConfigDict(extra="forbid")
    city: str = pydantic.Field(max_length=20)
    unit: Colour


TOOLS = [openai.pydantic_function_tool(GetWeather, name="get_weather")]
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


def test_a_demanded_call_fits_and_its_result_goes_on(chat):
    answer = chat(messages=QUESTION, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=200)
    message = answer.choices[0].message
    assert (answer.choices[0].finish_reason, message.content) == ("tool_calls", None)
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    GetWeather.model_validate_json(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
    after = chat(messages=[*QUESTION, message, result], tools=TOOLS, tool_choice="none")
    assert after.choices[0].message.content


def test_several_calls_and_one_by_name(chat):
    for call in chat(messages=QUESTION, tools=TOOLS, tool_choice="required", max_tokens=600).choices[0].message.tool_calls:
        GetWeather.model_validate_json(call.function.arguments)
    named = {"type": "function", "function": {"name": "get_weather"}}
    (call,) = chat(messages=QUESTION, tools=TOOLS, tool_choice=named, max_tokens=200).choices[0].message.tool_calls
    GetWeather.model_validate_json(call.function.arguments)


def test_streamed_calls_are_the_whole_ones(client, chat, model):
    demanded = {"messages": QUESTION, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    whole = chat(**demanded, max_tokens=200).choices[0].message.tool_calls[0]
    with client.chat.completions.stream(model=model, temperature=0, max_tokens=200, **demanded) as stream:
        pieces = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion().choices[0]
    assert len(pieces) > 1
    assert "".join(piece.arguments_delta for piece in pieces) == whole.function.arguments
    assert isinstance(final.message.tool_calls[0].function.parsed_arguments, GetWeather)
    assert final.finish_reason == "tool_calls"


def test_a_strict_tool_that_may_be_called(chat):
    message = chat(messages=QUESTION, tools=TOOLS, max_tokens=200).choices[0].message
    for call in message.tool_calls or []:
        GetWeather.model_validate_json(call.function.arguments)
    assert message.tool_calls or message.content


# --- the example ---


def test_the_example_runs():
    environment = {**os.environ, "BATON_URL": URL}
    run = subprocess.run(
        [sys.executable, EXAMPLE, "hi"], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert "prompt tokens" in run.stdout


# --- retries ---


def test_a_retried_call_is_answered_once(chat):
    key = {"Idempotency-Key": f"test-{os.urandom(8).hex()}"}
    first, again = chat(extra_headers=key, temperature=1), chat(extra_headers=key, temperature=1)
    assert again == first, "the id too"
    assert chat(extra_headers={"Idempotency-Key": f"test-{os.urandom(8).hex()}"}).id != first.id
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        chat(extra_headers=key, max_tokens=3)
    assert caught.value.code == "idempotency_key_reused"
