"""Calls made from the OpenAPI document of a running Baton, right and wrong ones.

    openapi_calls.py URL CALLS

Run by `cargo test` (tests/openapi.rs) against the mock backend. Fails on any
5xx, and on an answer of another status, type or shape than the document says.
"""

import json
import sys
import urllib.request

import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
LIMITS = {"max_tokens": 8, "max_completion_tokens": 8, "max_new_tokens": 8, "max_output_tokens": 8}


def post(url, body, kind):
    request = urllib.request.Request(url, body, {"content-type": kind})
    return json.load(OPENER.open(request))


def kept_file(url):
    """The id of a file for a batch."""
    call = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "mock", "prompt": "x"}}
    part = 'content-disposition: form-data; name='
    body = (
        f'--x\r\n{part}"purpose"\r\n\r\nbatch\r\n'
        f'--x\r\n{part}"file"; filename="a"\r\n\r\n{json.dumps(call)}\r\n--x--\r\n'
    )
    return post(f"{url}/v1/files", body.encode(), "multipart/form-data; boundary=x")["id"]


def narrowed(document, file):
    """The same, so that random calls get past the model's name and end soon."""
    text = json.loads(json.dumps(document))
    for schema in text["components"]["schemas"].values():
        properties = schema.get("properties", {})
        if properties.get("model", {}).get("type"):
            properties["model"] = {"const": "mock"}
        for name, most in LIMITS.items():
            if name in properties:
                properties[name] = {"type": "integer", "minimum": 1, "maximum": most}
    for path in text["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "x-baton-deadline-ms":
                    # A call whose time is over gets 504, as it should.
                    parameter["schema"]["minimum"] = 60_000
    tokens = text["components"]["schemas"]["DetokenizeBody"]["properties"]["tokens"]
    tokens["items"] = {"type": "integer", "minimum": 0, "maximum": 255}
    text["components"]["schemas"]["BatchBody"]["properties"]["input_file_id"] = {"const": file}
    return text


def main(url, calls):
    document = json.load(OPENER.open(f"{url}/openapi.json"))
    OpenAPIV31SpecValidator(document).validate()
    schema = schemathesis.openapi.from_dict(narrowed(document, kept_file(url)))
    schema.config.update(base_url=url)
    operations = [result.ok() for result in schema.get_all_operations()]
    with_body = [operation for operation in operations if operation.body]
    each = max(1, calls // len(with_body))
    statuses = {}
    for operation in operations:
        one = operation in with_body
        for mode in schemathesis.GenerationMode if one else [schemathesis.GenerationMode.POSITIVE]:
            run = settings(
                max_examples=max(1, each // 2) if one else 1,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                verbosity=Verbosity.quiet,
                suppress_health_check=list(HealthCheck),
            )

            def call(case):
                response = case.call(timeout=60)
                key = (operation.label, response.status_code)
                statuses[key] = statuses.get(key, 0) + 1
                case.validate_response(response, checks=CHECKS)

            run(given(case=operation.as_strategy(generation_mode=mode))(call))()
    for (label, status), count in sorted(statuses.items()):
        print(f"{label} {status}: {count}")
    made = sum(statuses.values())
    print(f"{made} calls")
    assert made >= calls // 2, "too few calls were made"
    for operation in with_body:
        assert statuses.get((operation.label, 200)), f"{operation.label}: no call was answered"


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), int(sys.argv[2]))
