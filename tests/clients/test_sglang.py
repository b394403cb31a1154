"""SGLang's front-end language against a running Baton: see test_openai.py for how."""

import json
import os
import re
import urllib.request

import pytest
import sglang

URL = os.environ.get("BATON_URL", "http://127.0.0.1:8000").rstrip("/")
PROMPT = "One two three"


@pytest.fixture(scope="module", autouse=True)
def backend():
    backend = sglang.RuntimeEndpoint(URL, chat_template_name="chatml")
    sglang.set_default_backend(backend)
    return backend


@sglang.function
def go_on(s, prompt, **settings):
    s += prompt + sglang.gen("rest", temperature=0, **settings)


@sglang.function
def talk(s):
    s += sglang.user("Name three colours.")
    s += sglang.assistant(sglang.gen("colours", max_tokens=12, temperature=0))
    s += sglang.user("More.")
    s += sglang.assistant(sglang.gen("more", max_tokens=6, temperature=0))


@sglang.function
def tips(s):
    s += "Two tips for a healthy life:"
    forks = s.fork(2)
    for i, fork in enumerate(forks):
        fork += f" {i + 1}." + sglang.gen("tip", max_tokens=6, temperature=0)
    s["tips"] = [fork["tip"] for fork in forks]


def generate(**body):
    request = urllib.request.Request(f"{URL}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def test_the_model_is_named(backend):
    assert backend.get_model_name()


def test_gen():
    state = go_on.run(prompt=PROMPT, max_tokens=8)
    meta = state.get_meta_info("rest")
    assert meta["completion_tokens"] <= 8
    assert meta["finish_reason"]["type"] in ("length", "stop")
    assert state.text() == PROMPT + state["rest"]


def test_streamed_and_whole_are_equal():
    whole = go_on.run(prompt=PROMPT, max_tokens=8)["rest"]
    state = go_on.run(prompt=PROMPT, max_tokens=8, stream=True)
    assert "".join(state.text_iter("rest")) == whole


def test_stop():
    text = go_on.run(prompt=PROMPT, max_tokens=12)["rest"]
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    state = go_on.run(prompt=PROMPT, max_tokens=12, stop=stop)
    assert state["rest"] == text[: text.index(stop)]
    assert state.get_meta_info("rest")["finish_reason"] == {"type": "stop", "matched": stop}


def test_logprobs():
    state = go_on.run(prompt=PROMPT, max_tokens=4, return_logprob=True, top_logprobs_num=2, return_text_in_logprobs=True)
    meta = state.get_meta_info("rest")
    tokens = meta["output_token_logprobs"]
    assert len(tokens) == meta["completion_tokens"]
    assert "".join(text for _, _, text in tokens) == state["rest"]
    # Greedy: the chosen token is the likeliest one.
    assert [top[0] for top in meta["output_top_logprobs"]] == tokens


def likelihood(prompt, more):
    """Mean log-probability of what is `more` than the prompt."""
    start = generate(text=prompt, sampling_params={"max_new_tokens": 0})["meta_info"]["prompt_tokens"]
    meta = generate(
        text=prompt + more,
        sampling_params={"max_new_tokens": 0},
        return_logprob=True,
        return_text_in_logprobs=True,
        logprob_start_len=start,
    )["meta_info"]
    tokens = meta["input_token_logprobs"]
    assert len(tokens) == meta["prompt_tokens"] - start
    assert "".join(text for _, _, text in tokens) == more
    return sum(value for value, _, _ in tokens) / len(tokens)


def test_logprobs_of_a_prompt():
    meta = generate(
        text=PROMPT,
        sampling_params={"max_new_tokens": 2, "temperature": 0},
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=2,
    )["meta_info"]
    (first, _, _), *rest = meta["input_token_logprobs"]
    assert first is None and all(value <= 0 for value, _, _ in rest)
    assert len(rest) + 1 == meta["prompt_tokens"] == len(meta["input_top_logprobs"])
    assert all(len(top) == 2 for top in meta["input_top_logprobs"][1:])
    # The answer's own tokens are as likely as when they stand in a prompt.
    whole = generate(text=PROMPT, sampling_params={"max_new_tokens": 4, "temperature": 0}, return_logprob=True)
    values = [value for value, _, _ in whole["meta_info"]["output_token_logprobs"]]
    assert likelihood(PROMPT, whole["text"]) == pytest.approx(sum(values) / len(values), abs=0.05)


@sglang.function
def choose(s, question, options):
    s += question
    s += sglang.select("answer", choices=options)


def test_select():
    state = choose.run(question="The capital of France is", options=[" Paris", " banana", " 17"])
    assert state["answer"] == " Paris"
    decision = state.get_meta_info("answer")
    scores = dict(zip([" Paris", " banana", " 17"], decision["normalized_prompt_logprobs"]))
    assert max(scores, key=scores.get) == " Paris"
    greedy = sglang.greedy_token_selection
    unconditional = sglang.unconditional_likelihood_normalized
    for method in (greedy, unconditional):

        @sglang.function
        def program(s, method=method):
            s += "One, two, three, four,"
            s += sglang.select("next", choices=[" five", " purple"], choices_method=method)

        assert program.run()["next"] == " five"


def test_programs_with_turns_and_forks():
    state = talk.run()
    assert state["colours"] and state["more"]
    assert len(tips.run()["tips"]) == 2


def test_a_batch_of_programs_and_of_prompts():
    states = go_on.run_batch([{"prompt": PROMPT, "max_tokens": 4}, {"prompt": "A B C", "max_tokens": 4}], num_threads=2)
    answers = generate(text=[PROMPT, "A B C"], sampling_params={"temperature": 0, "max_new_tokens": 4})
    assert [answer["text"] for answer in answers] == [state["rest"] for state in states]


def test_tokens_as_prompt():
    answer = generate(input_ids=[65, 66, 67], sampling_params={"max_new_tokens": 2, "ignore_eos": True})
    assert answer["meta_info"]["prompt_tokens"] == 3
    assert len(answer["output_ids"]) == 2


def test_constrained_gen():
    state = go_on.run(prompt="My number is ", max_tokens=20, regex=r"[0-9]{3}-[0-9]{2}")
    assert re.fullmatch(r"[0-9]{3}-[0-9]{2}", state["rest"])
    schema = json.dumps({"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3})
    answer = generate(text=PROMPT, sampling_params={"json_schema": schema, "max_new_tokens": 60})
    assert set(json.loads(answer["text"])) <= {"a", "b"}


def test_flush_cache(backend):
    ask = {"text": PROMPT * 40, "sampling_params": {"temperature": 0, "max_new_tokens": 1}}
    generate(**ask)
    assert generate(**ask)["meta_info"]["cached_tokens"] > 0
    backend.flush_cache()
    assert generate(**ask)["meta_info"]["cached_tokens"] == 0


def test_health_generates():
    with urllib.request.urlopen(f"{URL}/health_generate", timeout=60) as response:
        assert response.status == 200


def test_refusals_reach_the_program():
    refused = pytest.raises(Exception, match="sampling_params.regex")
    with refused:
        state = go_on.run(prompt=PROMPT, max_tokens=4, regex="(?=a)b")
        state.sync()
        if error := state.error():
            raise error
