"""What /openapi.json says holds: schemathesis makes requests of it and checks each answer."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from server import PATIENCE

# 504 is what a request gets that asks for a microsecond.
CONFIGURATION = """
[checks.not_a_server_error]
expected-statuses = ["2XX", "3XX", "4XX", "504"]
"""
# Random bytes are no image, so that what fits the document may be refused as well.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
]
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


def test_every_route_is_in_the_document(server):
    answer = requests.get(server.url("/openapi.json"), timeout=PATIENCE)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert document["openapi"].startswith("3.")
    # However the parameters are called.
    found = {re.sub(r"\{\w+\}", "{}", path): entry for path, entry in document["paths"].items()}
    missing = {path for path, method in PATHS.items() if method not in found.get(path, {})}
    assert not missing


@pytest.mark.parametrize("seed", [1])
def test_answers_are_as_documented(server, tmp_path, seed):
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    command = [
        Path(sys.executable).parent / "schemathesis",
        f"--config-file={configuration}",
        "run",
        server.url("/openapi.json"),
        f"--checks={','.join(CHECKS)}",
        "--phases=examples,coverage,fuzzing",
        "--max-examples=50",
        f"--seed={seed}",
        "--generation-database=none",
        "--continue-on-failure",
        "--no-color",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=5 * PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
