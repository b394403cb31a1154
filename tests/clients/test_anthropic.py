"""Anthropic's own Python client against a running Baton: see test_openai.py for how."""

import os

import anthropic
import pytest

URL = os.environ.get("BATON_URL", "http://127.0.0.1:8000").rstrip("/")
MESSAGES = [{"role": "user", "content": "Name three colours."}]
# This version of the client has no name for the temperature any more.
SETTINGS = {"max_tokens": 24, "system": "You are brief.", "extra_body": {"temperature": 0}}


@pytest.fixture(scope="session")
def client():
    with anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def model(client):
    return client.get("/v1/models", cast_to=object)["data"][0]["id"]


@pytest.fixture(scope="session")
def create(client, model):
    def create(**changes):
        return client.messages.create(**{"model": model, "messages": MESSAGES, **SETTINGS, **changes})

    return create


def test_a_message(create):
    message = create()
    assert (message.type, message.role) == ("message", "assistant")
    assert message.id.startswith("msg_")
    assert message._request_id == message.id.removeprefix("msg_")
    assert [block.type for block in message.content] == ["text"]
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert message.stop_sequence is None
    assert 1 <= message.usage.output_tokens <= 24


def test_streamed_and_whole_are_equal(client, create, model):
    whole = create()
    with client.messages.stream(model=model, messages=MESSAGES, **SETTINGS) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_stop_sequences(create):
    text = create().content[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    message = create(stop_sequences=[stop, "never seen"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == text[: text.index(stop)]


def test_a_conversation_of_blocks(create):
    first = create()
    blocks = [{"type": "text", "text": "More.", "cache_control": {"type": "ephemeral"}}]
    answer = {"role": "assistant", "content": first.content}
    again = create(messages=[*MESSAGES, answer, {"role": "user", "content": blocks}])
    usage = again.usage
    assert usage.cache_read_input_tokens > 0, "the first turn"
    assert usage.input_tokens > 0


def test_an_answer_that_is_begun_goes_on(create):
    whole = create().content[0].text
    begun = whole[: whole.index(" ")]
    rest = create(messages=[*MESSAGES, {"role": "assistant", "content": begun}]).content[0].text
    assert rest.startswith(" ")


def test_counting(client, create, model):
    count = client.messages.count_tokens(model=model, system="You are brief.", messages=MESSAGES)
    usage = create().usage
    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


TOOL = {
    "name": "get_weather",
    "description": "Tells the weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def test_a_demanded_tool_and_its_result(client, create, model):
    demanded = {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "get_weather"}, "max_tokens": 200}
    whole = create(**demanded)
    assert whole.stop_reason == "tool_use"
    (block,) = whole.content
    assert (block.type, block.name, list(block.input)) == ("tool_use", "get_weather", ["city"])
    with client.messages.stream(model=model, messages=MESSAGES, **{**SETTINGS, **demanded}) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert len(pieces) > 1
    assert final.content[0].input == block.input
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "21 degrees"}]}
    after = create(messages=[*MESSAGES, {"role": "assistant", "content": whole.content}, result], tools=[TOOL])
    assert after.content


def test_unknown_model(create):
    with pytest.raises(anthropic.NotFoundError) as caught:
        create(model="no-such-model")
    assert caught.value.body["error"]["type"] == "not_found_error"
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"extra_body": {"temperature": 1.5}}, "temperature"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 10**9}, "context"),
        ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools[0].name"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"extra_body": {"no_such_thing": 1}}, "no_such_thing"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refused_parameters(create, changes, field, stream):
    with pytest.raises(anthropic.BadRequestError) as caught:
        create(stream=stream, **changes)
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert field in caught.value.body["error"]["message"]
