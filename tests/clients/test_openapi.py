"""What /openapi.json says holds: schemathesis makes requests of it and checks each answer."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema_rs
import pytest
import requests

from pictures import FILES, TENSORS
from server import MODEL, PATIENCE

PATHS = {
    "/v1/classify": "post",
    "/v1/models": "get",
    "/v1/models/{}": "get",
    "/v1/models/{}/statistics": "get",
    "/v2": "get",
    "/v2/health/live": "get",
    "/v2/health/ready": "get",
    "/v2/models/{}": "get",
    "/v2/models/{}/ready": "get",
    "/v2/models/{}/config": "get",
    "/v2/models/{}/stats": "get",
    "/v2/models/{}/infer": "post",
    "/v2/models/{}/versions/{}": "get",
    "/v2/models/{}/versions/{}/ready": "get",
    "/v2/models/{}/versions/{}/config": "get",
    "/v2/models/{}/versions/{}/stats": "get",
    "/v2/models/{}/versions/{}/infer": "post",
    "/v2/models/stats": "get",
    "/v2/repository/index": "post",
}

PICTURE = base64.b64encode(FILES[0]).decode()
ENCODED = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [PICTURE]}
NUMBERS = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32]}
INFER = {
    "id": "a",
    "parameters": {"path": "policy", "threshold": 0.5, "max_blocks": 8, "top_k": 2},
    "inputs": [ENCODED],
    "outputs": [
        {"name": "class", "parameters": {"binary_data": False}},
        {"name": "probabilities", "parameters": {"classification": 2}},
    ],
}
CLASSIFY = {"images": [{"b64": PICTURE}, {"b64": PICTURE}]}
BODIES = {
    "classify": ("/v1/classify", CLASSIFY),
    "infer": ("/v2/models/{}/infer", INFER),
    "flat": (
        "/v2/models/{}/infer",
        {"inputs": [NUMBERS | {"data": TENSORS[0].reshape(-1).tolist()}]},
    ),
    "nested": ("/v2/models/{}/infer", {"inputs": [NUMBERS | {"data": [TENSORS[0].tolist()]}]}),
}

# 504 is what a request gets that asks for a microsecond.
CONFIGURATION = """
[checks.not_a_server_error]
expected-statuses = ["2XX", "3XX", "4XX", "504"]
"""
# So that what is generated gets past the name of its model.
KNOWN = f"""
[parameters]
"path.model" = "{MODEL}"
"path.version" = "1"
"query.model" = "{MODEL}"
"query.version" = "1"
"""
# Random bytes are no image, so that what fits the document may be refused as well.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
]


@pytest.fixture
def document(server):
    answer = requests.get(server.url("/openapi.json"), timeout=PATIENCE)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def paths(document):
    """The document's paths, however their parameters are called."""
    return {re.sub(r"\{\w+\}", "{}", path): entry for path, entry in document["paths"].items()}


def test_every_route_is_in_the_document(document):
    assert document["openapi"].startswith("3.")
    found = paths(document)
    missing = {path for path, method in PATHS.items() if method not in found.get(path, {})}
    assert not missing


@pytest.mark.parametrize("case", BODIES)
def test_what_clients_send_and_get_is_documented(server, document, case):
    path, body = BODIES[case]
    operation = paths(document)[path]["post"]

    def check(part, value):
        schema = part["content"]["application/json"]["schema"]
        schema = schema | {"components": document["components"]}
        jsonschema_rs.validator_for(schema).validate(value)

    check(operation["requestBody"], body)
    answer = requests.post(server.url(path.format(MODEL)), json=body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    check(operation["responses"]["200"], answer.json())


def fuzz(folder, schema, *options, configuration=CONFIGURATION):
    file = folder / "schemathesis.toml"
    file.write_text(configuration)
    command = [
        Path(sys.executable).parent / "schemathesis",
        f"--config-file={file}",
        "run",
        schema,
        f"--checks={','.join(CHECKS)}",
        "--phases=examples,coverage,fuzzing",
        "--seed=1",
        "--generation-database=none",
        "--continue-on-failure",
        "--no-color",
        *options,
    ]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=5 * PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_answers_are_as_documented(server, tmp_path):
    fuzz(tmp_path, server.url("/openapi.json"), "--max-examples=30")


def test_answers_to_images_are_as_documented(server, document, tmp_path):
    """As above, around requests that succeed: nothing that is generated from nothing is an image."""
    for path, entry in paths(document).items():
        if path.endswith(("/infer", "/classify")):
            operation = entry["post"]
            example = CLASSIFY if path.endswith("/classify") else INFER
            # Without a header that says where binary tensors begin, all of a body is JSON.
            operation["requestBody"]["content"] = {
                "application/json": operation["requestBody"]["content"]["application/json"]
                | {"example": example}
            }
            operation["parameters"] = [
                one for one in operation.get("parameters", []) if one["in"] != "header"
            ]
    schema = tmp_path / "openapi.json"
    schema.write_text(json.dumps(document))
    options = (f"--url={server.url('')}", "--include-method=POST", "--max-examples=60")
    fuzz(tmp_path, schema, *options, configuration=CONFIGURATION + KNOWN)
