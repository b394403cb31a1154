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
import time

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


def test_logprobs_of_an_echo(complete):
    """Those of a text are the same whoever wrote it: the model before, or the prompt now."""
    prompt = "One two three"
    plain = complete(prompt=prompt, max_tokens=6, logprobs=2)
    written = plain.choices[0]
    echoed = complete(prompt=prompt, max_tokens=6, logprobs=2, echo=True)
    told = echoed.choices[0].logprobs
    count = plain.usage.prompt_tokens
    assert echoed.choices[0].text == prompt + written.text
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    assert all(value <= 0 for value in told.token_logprobs[1:])
    assert told.tokens[count:] == written.logprobs.tokens
    assert told.token_logprobs[count:] == pytest.approx(written.logprobs.token_logprobs, abs=1e-4)
    # What it wrote, given as prompt: no token is written behind it.
    tokens = post("/tokenize", {"model": echoed.model, "prompt": prompt})["tokens"]
    answer = post("/tokenize", {"model": echoed.model, "prompt": written.text, "add_special_tokens": False})["tokens"]
    if len(answer) == len(written.logprobs.tokens):
        again = complete(prompt=tokens + answer, max_tokens=0, logprobs=2, echo=True)
        assert again.usage.completion_tokens == 0
        assert again.choices[0].logprobs.token_logprobs[count:] == pytest.approx(
            written.logprobs.token_logprobs, abs=0.05
        )
        for told, here in zip(again.choices[0].logprobs.top_logprobs[count:], written.logprobs.top_logprobs):
            assert max(told, key=told.get) == max(here, key=here.get)
    streamed = complete(prompt=prompt, max_tokens=2, logprobs=2, echo=True, stream=True)
    first = next(iter(streamed)).choices[0]
    assert first.text == prompt and first.logprobs.token_logprobs[0] is None


def test_prompt_logprobs(client, model, complete):
    choice = complete(prompt="One two three", max_tokens=1, extra_body={"prompt_logprobs": 2}).choices[0]
    first, *rest = choice.model_extra["prompt_logprobs"]
    assert first is None and rest
    for told in rest:
        assert 2 <= len(told) <= 3
        by_rank = sorted(told.values(), key=lambda token: token["rank"])
        assert [token["rank"] for token in by_rank[:2]] == [1, 2]
        logprobs = [token["logprob"] for token in by_rank]
        assert logprobs == sorted(logprobs, reverse=True) and all(value <= 0 for value in logprobs)
    messages = [{"role": "user", "content": "Hi"}]
    chat = client.chat.completions.create(
        model=model, messages=messages, max_tokens=1, extra_body={"prompt_logprobs": 0}
    )
    assert len(chat.model_extra["prompt_logprobs"]) == chat.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="prompt_logprobs"):
        complete(stream=True, extra_body={"prompt_logprobs": 0})


def test_embeddings(client, model):
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Shares of the bank fell on Monday."]
    made = client.embeddings.create(model=model, input=texts)
    vectors = [item.embedding for item in made.data]
    assert [item.index for item in made.data] == [0, 1, 2]
    assert all(abs(sum(value * value for value in vector) - 1) < 1e-4 for vector in vectors)

    def likeness(a, b):
        return sum(x * y for x, y in zip(a, b))

    assert likeness(vectors[0], vectors[1]) > likeness(vectors[0], vectors[2])
    # The client asks for base64 by itself; numbers are the same.
    numbers = client.embeddings.create(model=model, input=texts[0], encoding_format="float")
    assert numbers.data[0].embedding == pytest.approx(vectors[0], abs=1e-6)
    tokens = post("/tokenize", {"model": model, "prompt": texts[0]})["tokens"]
    assert numbers.usage.prompt_tokens == numbers.usage.total_tokens == len(tokens)
    again = client.embeddings.create(model=model, input=[tokens, tokens])
    assert all(item.embedding == pytest.approx(vectors[0], abs=1e-6) for item in again.data)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model=model, input=texts[0], dimensions=8)


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


# --- files and batches ---


def lines_of(client, file_id):
    found = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    return {line["custom_id"]: line for line in found}


def ended(client, batch):
    deadline = time.monotonic() + 120
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return batch


def begun(client, lines):
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("calls.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.purpose) == (len(content), "calls.jsonl", "batch")
    return file, client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"of": "a test"}
    )


def test_a_batch(client, model, chat):
    body = {"model": model, "messages": MESSAGES, **GREEDY}
    call = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    lines = [{"custom_id": f"call-{i}", **call} for i in range(5)]
    lines.append({"custom_id": "wrong", **call, "body": {**body, "temperature": 9}})
    file, batch = begun(client, lines)
    batch = ended(client, batch)
    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (6, 5, 1)
    expected = chat().choices[0].message.content
    answers = lines_of(client, batch.output_file_id)
    assert set(answers) == {f"call-{i}" for i in range(5)}
    for line in answers.values():
        assert line["response"]["body"]["choices"][0]["message"]["content"] == expected
    assert lines_of(client, batch.error_file_id)["wrong"]["response"]["body"]["error"]["param"] == "temperature"
    assert batch.id in [entry.id for entry in client.batches.list(limit=1)]
    for made in (file.id, batch.output_file_id, batch.error_file_id):
        assert client.files.retrieve(made).status == "processed"
        assert client.files.delete(made).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_a_batch_that_is_given_up(client, model):
    body = {"model": model, "prompt": "x", "max_tokens": 200, "ignore_eos": True}
    call = {"method": "POST", "url": "/v1/completions", "body": body}
    content = "\n".join(json.dumps({"custom_id": str(i), **call}) for i in range(200)).encode()
    file = client.files.create(file=content, purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    with pytest.raises(openai.ConflictError):
        client.files.delete(file.id)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch)
    assert batch.status == "cancelled"
    assert batch.request_counts.completed < 200


def test_lines_that_are_no_calls(client):
    _, batch = begun(client, [{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}])
    batch = ended(client, batch)
    assert batch.status == "failed"
    assert (batch.errors.data[0].line, batch.errors.data[0].param) == (1, "url")


def test_the_command(tmp_path, model, chat):
    body = {"model": model, "messages": MESSAGES, **GREEDY}
    calls = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body} for i in range(3)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, calls)))
    baton = pathlib.Path(__file__).parents[2] / "target/release/baton"
    command = [baton, "batch", "--url", URL, "in.jsonl", "out.jsonl"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert "3 of 3 answered" in run.stdout
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = chat().choices[0].message.content
    assert [line["response"]["body"]["choices"][0]["message"]["content"] for line in answers] == [expected] * 3
    assert not (tmp_path / "out.jsonl.errors").exists()


# --- responses ---


@pytest.fixture(scope="session")
def respond(client, model):
    def create(**changes):
        settings = {"model": model, "input": MESSAGES, "temperature": 0, "max_output_tokens": 24}
        return client.responses.create(**{**settings, **changes})

    return create


def test_a_response_is_what_a_chat_says(respond, chat):
    answer = respond()
    said = chat().choices[0].message.content
    assert answer.output_text == said
    assert answer.status in ("completed", "incomplete")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    by_instructions = respond(instructions=MESSAGES[0]["content"], input=MESSAGES[1]["content"])
    assert by_instructions.output_text == said
    assert by_instructions.instructions == MESSAGES[0]["content"]


def test_response_events(client, model, respond):
    whole = respond()
    with client.responses.stream(model=model, input=MESSAGES, temperature=0, max_output_tokens=24) as stream:
        events = list(stream)
    # The client has a final response only of one that is complete.
    final = events[-1].response
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[1].type] == ["response.created", "response.in_progress"]
    assert events[-1].type in ("response.completed", "response.incomplete")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == final.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_a_conversation_by_items_and_by_id(client, respond, chat):
    first = respond()
    more = {"role": "user", "content": "More."}
    by_items = respond(input=[*MESSAGES, *first.output, more], store=False)
    by_id = respond(input=[more], previous_response_id=first.id)
    by_chat = chat(messages=[*MESSAGES, {"role": "assistant", "content": first.output_text}, more])
    assert by_items.output_text == by_id.output_text == by_chat.choices[0].message.content
    assert client.responses.retrieve(by_id.id).output_text == by_id.output_text
    client.responses.delete(by_id.id)
    for gone in (by_id.id, by_items.id):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone)


def test_a_response_is_parsed(client, model):
    answer = client.responses.parse(
        model=model, input=MESSAGES, text_format=Picture, temperature=0, max_output_tokens=400
    )
    assert isinstance(answer.output_parsed, Picture)


def test_what_a_response_was_asked(client, model):
    said = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."},
            {"role": "user", "content": "And another."}]
    made = client.responses.create(model=model, input=said, max_output_tokens=8, temperature=0)
    items = list(client.responses.input_items.list(made.id, limit=2, order="asc"))
    assert [item.content[0].text for item in items] == ["Name a colour.", "Blue.", "And another."]
    counted = client.responses.input_tokens.count(model=model, input=said)
    assert counted.input_tokens == made.usage.input_tokens
    with pytest.raises(openai.ConflictError, match="background"):
        client.responses.cancel(made.id)
    with pytest.raises(openai.BadRequestError, match="stream"):
        client.responses.retrieve(made.id, stream=True)
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list(made.id)


def test_responses_call_tools(client, model, respond):
    tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")["function"] | {"type": "function"}]
    demanded = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 200}
    asked = respond(input=QUESTION, **demanded)
    (call,) = [item for item in asked.output if item.type == "function_call"]
    GetWeather.model_validate_json(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}
    after = respond(input=[result], previous_response_id=asked.id, tools=tools, tool_choice="none")
    again = respond(input=[*QUESTION, *asked.output, result], tools=tools, tool_choice="none")
    assert after.output_text == again.output_text
    with client.responses.stream(model=model, input=QUESTION, temperature=0, **demanded) as stream:
        pieces = [event for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert len(pieces) > 1
    assert final.output[0].arguments == call.arguments


def test_response_logprobs(respond):
    included = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = respond(**included)
    tokens = answer.output[0].content[0].logprobs
    assert len(tokens) == answer.usage.output_tokens
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)
    streamed = [
        token
        for event in respond(stream=True, **included)
        if event.type == "response.output_text.delta"
        for token in event.logprobs
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
def test_refused_fields_of_responses(respond, changes, param):
    with pytest.raises(openai.BadRequestError) as caught:
        respond(**changes)
    assert caught.value.param == param
