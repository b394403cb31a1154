"""Clients of Text Generation Inference against a running Baton: see test_openai.py for how."""

import json
import os
import re

import huggingface_hub
import pytest
import text_generation
import text_generation.errors
from huggingface_hub.errors import ValidationError

URL = os.environ.get("BATON_URL", "http://127.0.0.1:8000").rstrip("/")
PROMPT = "One two three"


@pytest.fixture(scope="session")
def tgi():
    return text_generation.Client(URL, timeout=120)


@pytest.fixture(scope="session")
def hub():
    return huggingface_hub.InferenceClient(model=URL, provider="hf-inference", timeout=120)


@pytest.fixture(scope="session")
def model(hub):
    return hub.get_endpoint_info()["model_id"]


# --- text-generation ---


def test_generate(tgi):
    answer = tgi.generate(PROMPT, max_new_tokens=8)
    details = answer.details
    assert details.finish_reason in ("length", "eos_token")
    assert details.generated_tokens == len(details.tokens) <= 8
    assert "".join(token.text for token in details.tokens) == answer.generated_text
    assert all(token.logprob <= 0 for token in details.tokens)
    assert tgi.generate(PROMPT, max_new_tokens=8, return_full_text=True).generated_text == PROMPT + answer.generated_text


def test_streamed_and_whole_are_equal(tgi):
    whole = tgi.generate(PROMPT, max_new_tokens=8)
    steps = list(tgi.generate_stream(PROMPT, max_new_tokens=8))
    assert "".join(step.token.text for step in steps if not step.token.special) == whole.generated_text
    assert [step.generated_text for step in steps] == [None] * (len(steps) - 1) + [whole.generated_text]
    assert steps[-1].details.finish_reason == whole.details.finish_reason
    assert steps[-1].details.generated_tokens == whole.details.generated_tokens


def test_a_stop_sequence_stays_in_the_text(tgi):
    text = tgi.generate(PROMPT, max_new_tokens=12).generated_text
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    expected = text[: text.index(stop) + len(stop)]
    answer = tgi.generate(PROMPT, max_new_tokens=12, stop_sequences=[stop])
    assert answer.generated_text == expected
    assert answer.details.finish_reason == "stop_sequence"
    *_, last = tgi.generate_stream(PROMPT, max_new_tokens=12, stop_sequences=[stop])
    assert last.generated_text == expected
    assert last.details.finish_reason == "stop_sequence"


def test_seeds_and_the_best_of_several(tgi):
    drawn = [tgi.generate(PROMPT, max_new_tokens=6, do_sample=True, seed=3) for _ in range(2)]
    assert drawn[0].generated_text == drawn[1].generated_text
    assert drawn[0].details.seed == 3
    best = tgi.generate(PROMPT, max_new_tokens=6, do_sample=True, best_of=3, top_n_tokens=2).details

    def mean(sequence):
        return sum(token.logprob for token in sequence.tokens) / max(1, len(sequence.tokens))

    assert len(best.best_of_sequences) == 2
    assert all(mean(best) >= mean(other) for other in best.best_of_sequences)
    assert all(len(top) == 2 for top in best.top_tokens)


def test_refusals_of_tgi(tgi):
    with pytest.raises(text_generation.errors.ValidationError, match="typical_p"):
        tgi.generate(PROMPT, typical_p=0.5)
    with pytest.raises(text_generation.errors.ValidationError, match="context"):
        tgi.generate(PROMPT, max_new_tokens=10**9)


# --- huggingface_hub ---


def test_text_generation(hub):
    plain = hub.text_generation(PROMPT, max_new_tokens=8)
    detailed = hub.text_generation(PROMPT, max_new_tokens=8, details=True)
    assert detailed.generated_text == plain
    assert detailed.details.generated_tokens == len(detailed.details.tokens)
    assert "".join(hub.text_generation(PROMPT, max_new_tokens=8, stream=True)) == plain


def test_chat_completion(hub, model):
    messages = [{"role": "user", "content": "Name three colours."}]
    answer = hub.chat_completion(messages, model=model, max_tokens=8, temperature=0)
    streamed = hub.chat_completion(messages, model=model, max_tokens=8, temperature=0, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
    assert text == answer.choices[0].message.content


def test_refusals_of_the_hub(hub):
    with pytest.raises(ValidationError, match="grammar"):
        hub.text_generation(PROMPT, grammar={"type": "regex", "value": "("})


def test_grammars(hub):
    regex = hub.text_generation(PROMPT, max_new_tokens=20, grammar={"type": "regex", "value": "[0-9]{2,4}!"})
    assert re.fullmatch("[0-9]{2,4}!", regex)
    schema = {"type": "object", "required": ["n"], "additionalProperties": False, "properties": {"n": {"enum": [1, 2]}}}
    text = hub.text_generation(PROMPT, max_new_tokens=60, grammar={"type": "json", "value": schema})
    assert json.loads(text)["n"] in (1, 2)


def test_endpoint_info(hub):
    info = hub.get_endpoint_info()
    assert info["model_pipeline_tag"] == "text-generation"
    assert 0 < info["max_input_tokens"] < info["max_total_tokens"]
