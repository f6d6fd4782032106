"""The software bill of materials: valid by CycloneDX's schema, and all of what ships."""

import hashlib
import json
import platform
import re
import subprocess
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from referencing import Registry, Resource

from binary import binary
from files import ROOT, run

IMAGES = (("cpu", "x86_64"), ("cpu", "aarch64"), ("cuda", "x86_64"))


@pytest.fixture(scope="module", params=IMAGES, ids="-".join)
def bill(request):
    image, machine = request.param
    return of(image, machine)


def of(image, machine):
    done = subprocess.run(
        [ROOT / "scripts" / "sbom", f"--image={image}", f"--machine={machine}"],
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout)


def named(bill):
    return {component["name"]: component for component in bill["components"]}


def schema(name):
    return json.loads((files("cyclonedx.schema") / "_res" / name).read_text())


def test_it_is_valid_by_the_schema(bill):
    beside = ("spdx.SNAPSHOT.schema.json", "jsf-0.82.SNAPSHOT.schema.json")
    beside += ("cryptography-defs.SNAPSHOT.schema.json",)
    found = [
        (f"http://cyclonedx.org/schema/{name}", Resource.from_contents(schema(name)))
        for name in beside
    ]
    validator = jsonschema.Draft7Validator(
        schema("bom-1.6.SNAPSHOT.schema.json"), registry=Registry().with_resources(found)
    )
    assert list(validator.iter_errors(bill)) == []
    broken = bill | {"components": [{"type": "library"}]}
    assert list(validator.iter_errors(broken)), "the schema takes what it must not"


def test_references_are_unique_and_lead_somewhere(bill):
    references = [each["bom-ref"] for each in bill["components"]]
    references.append(bill["metadata"]["component"]["bom-ref"])
    assert len(references) == len(set(references))
    for each in bill["dependencies"]:
        assert {each["ref"], *each["dependsOn"]} <= set(references)
    assert {each["ref"] for each in bill["dependencies"]} == set(references)


def test_components_are_pinned_and_licensed(bill):
    for component in bill["components"]:
        if component["type"] == "library":
            assert component["hashes"][0]["alg"] == "SHA-256", component["name"]
            assert component["licenses"], component["name"]
    assert str(ROOT) not in json.dumps(bill), "a path of this machine"


def test_onnx_runtime_is_the_one_that_is_fetched(bill):
    [image] = [each["value"] for each in bill["metadata"]["properties"] if "image" in each["name"]]
    pins = ROOT / (
        "deploy/onnxruntime-cuda.txt" if image == "cuda" else "scripts/fetch-onnxruntime"
    )
    component = named(bill)["onnxruntime-gpu" if image == "cuda" else "onnxruntime"]
    text = pins.read_text()
    assert component["hashes"][0]["content"] in text
    assert component["version"] in text
    assert component["licenses"] == [{"license": {"id": "MIT"}}]


def test_the_models_and_the_base_are_in_it(bill):
    models = {
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (ROOT / "models").glob("*/*/bundle.json")
    }
    listed = [each for each in bill["components"] if each["type"] == "machine-learning-model"]
    assert models and {each["hashes"][0]["content"] for each in listed} == models
    [base] = [each for each in bill["components"] if each["type"] == "container"]
    digest = base["purl"].split("sha256%3A")[1].split("?")[0]
    assert f"{base['name']}:{base['version']}@sha256:{digest}" in (ROOT / "Dockerfile").read_text()


def test_machines_differ_in_their_library_alone():
    one, other = (named(of("cpu", machine)) for machine in ("x86_64", "aarch64"))
    assert one["onnxruntime"]["hashes"] != other["onnxruntime"]["hashes"]
    assert len(one.keys() ^ other.keys()) < 5


@pytest.mark.skipif(platform.system() != "Linux", reason="the images are for Linux")
def test_every_crate_in_the_binary_is_in_it():
    """The binary names its sources, for backtraces."""
    pattern = rb"index\.crates\.io-[0-9a-f]+/([\w+-]+?)-(\d+\.\d+\.\d+[\w.+-]*)/"
    inside = {
        (name.decode(), version.decode())
        for name, version in re.findall(pattern, Path(binary()).read_bytes())
    }
    assert len(inside) > 50, "the binary does not name its sources"
    listed = {
        (each["name"], each["version"]) for each in of("cpu", platform.machine())["components"]
    }
    # The tests' binary shares features with their HTTP client.
    client = run(
        "cargo", "tree", "--locked", "--offline", "--package=reqwest", "--prefix=none", cwd=ROOT
    )
    client = {tuple(line.split(" ")[:2]) for line in client.splitlines() if line}
    missing = {each for each in inside - listed if (each[0], f"v{each[1]}") not in client}
    assert not missing


def test_make_writes_one_for_each_image():
    said = run("make", "--no-print-directory", "sbom", cwd=ROOT).splitlines()
    assert said == [f"target/sbom/{image}-{machine}.cdx.json" for image, machine in IMAGES]
    for path in said:
        assert json.loads((ROOT / path).read_text())["specVersion"] == "1.6"
