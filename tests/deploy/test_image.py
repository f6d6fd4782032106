"""Dockerfile and the compose file. No image is built here: what they name is compared with what there is."""

import fnmatch
import json
import re
import shlex
import shutil

import pytest

from binary import call, refused
from files import DEPLOY, ENDING, ROOT, load, run, tool

DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = DEPLOY / "compose.yaml"


def stages():
    """Name to (image, instructions); an instruction is (word, rest)."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            instructions = []
            found[name] = (image, instructions)
        elif word:
            instructions.append((word, rest))
    return found


STAGES = stages()
TARGETS = ("cpu", "cuda")


def rest(target, word):
    return [rest for each, rest in STAGES[target][1] if each == word]


def copied(stage):
    """(source, destination) of what a stage copies out of the checkout."""
    for text in rest(stage, "COPY"):
        *sources, destination = text.split()
        if not sources[0].startswith("--from="):
            for source in sources:
                yield source, destination


def environment(target):
    return dict(pair.split("=", 1) for text in rest(target, "ENV") for pair in shlex.split(text))


def test_hadolint_finds_nothing():
    run(tool("hadolint"), str(DOCKERFILE))


def test_every_image_is_pinned_by_its_digest():
    images = [image for image, _ in STAGES.values()]
    images += [each["image"] for each in load(COMPOSE)["services"].values() if "build" not in each]
    assert images
    for image in images:
        assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image), image


def test_what_is_copied_is_there_and_in_the_context():
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    taken = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines
    sources = [source for stage in STAGES for source, _ in copied(stage)]
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in taken), source
    for pattern in taken:
        assert fnmatch.filter(sources, pattern), f"{pattern} is in the context for nothing"


def test_copies_between_stages_find_their_stage():
    for stage in STAGES:
        for text in rest(stage, "COPY"):
            if named := re.match(r"--from=(\S+) ", text):
                assert named[1] in list(STAGES)[: list(STAGES).index(stage)], text


def test_the_build_has_all_sources(tmp_path):
    for source, destination in copied("build"):
        path = ROOT / source
        if path.is_dir():
            shutil.copytree(path, tmp_path / destination)
        else:
            shutil.copy(path, tmp_path / destination / source)
    # Every member of the workspace.
    run(
        "cargo",
        "metadata",
        "--offline",
        "--locked",
        "--no-deps",
        "--format-version=1",
        cwd=tmp_path,
    )
    # What the binary includes by its path.
    for path in (ROOT / "src").rglob("*.rs"):
        for name in re.findall(r'"((?:\.\./)+[\w./-]+)"', path.read_text()):
            included = (path.parent / name).resolve()
            if included.is_file():
                assert (tmp_path / included.relative_to(ROOT)).is_file(), f"{path} includes {name}"


def test_the_build_runs_what_the_makefile_runs():
    [command] = rest("build", "RUN")
    assert "cargo build --release --locked --bin blockdrop" in command
    assert "--mount=type=cache" in command


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_serves_as_nobody_in_particular(target):
    assert rest(target, "USER") == ["65532:65532"]
    assert rest(target, "ENTRYPOINT") == ['["/usr/local/bin/blockdrop"]']
    assert rest(target, "CMD") == ['["serve"]']
    # Nothing runs in it while it is built, so it needs no shell.
    assert rest(target, "RUN") == []


@pytest.mark.parametrize("target", TARGETS)
def test_the_server_takes_what_the_image_sets(target, options):
    said = environment(target)
    assert said.pop("ORT_DYLIB_PATH") == "/opt/onnxruntime/libonnxruntime.so"
    assert said.pop("NVIDIA_TF32_OVERRIDE", None) == {"cpu": None, "cuda": "0"}[target]
    assert said.keys() <= {variable for variable, _ in options.values()}
    assert refused([], said) == []
    assert said.get("BLOCKDROP_PROVIDER", "cpu") == target
    [ports] = rest(target, "EXPOSE")
    defaults = [options[f"--{name}-addr"][1] for name in ("http", "grpc")]
    assert ports.split() == [default.rsplit(":")[-1] for default in defaults]
    assert said["BLOCKDROP_MODELS"] in [destination for _, destination in copied(target)]


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_says_what_it_is(target):
    labels = dict(
        pair.split("=", 1) for text in rest(target, "LABEL") for pair in shlex.split(text)
    )
    prefix = "org.opencontainers.image."
    names = {"title", "description", "licenses", "version", "revision"}
    assert labels.keys() == {prefix + name for name in names}
    manifest = (ROOT / "Cargo.toml").read_text()
    assert f'license = "{labels[prefix + "licenses"]}"' in manifest
    [version] = [text for text in rest(target, "ARG") if text.startswith("VERSION=")]
    assert f'version = "{version.removeprefix("VERSION=")}"' in manifest


def test_an_image_checks_its_health(server):
    of_compose = load(COMPOSE)["services"]["blockdrop"]["healthcheck"]["test"]
    for target in TARGETS:
        [check] = rest(target, "HEALTHCHECK")
        command = json.loads(check.split(" CMD ")[1])
        assert of_compose == ["CMD", *command]
        [entrypoint] = rest(target, "ENTRYPOINT")
        assert command[:1] == json.loads(entrypoint)
        # As in a container whose admin listener is open to others.
        port = server.admin.rsplit(":")[-1]
        done = call(*command[1:], environment={"BLOCKDROP_ADMIN_ADDR": f"0.0.0.0:{port}"})
        assert (done.returncode, done.stderr) == (0, "")
        done = call(*command[1:], environment={"BLOCKDROP_ADMIN_ADDR": server.http})
        assert done.returncode == 1


def test_the_gpu_library_is_pinned_by_hash():
    text = (DEPLOY / "onnxruntime-cuda.txt").read_text()
    assert re.search(
        r"^onnxruntime-gpu==\S+ \\\n    --hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE
    )


def test_the_compose_file_is_valid():
    run(tool("check-jsonschema"), "--builtin-schema=vendor.compose-spec", str(COMPOSE))


def test_the_compose_file_fits_the_image(options):
    services = load(COMPOSE)["services"]
    server = services["blockdrop"]
    assert server["build"]["target"] in TARGETS
    assert (COMPOSE.parent / server["build"]["context"]).resolve() == ROOT
    said = server["environment"]
    assert said.keys() <= {variable for variable, _ in options.values()}
    assert refused([], said) == []
    published = {port.rsplit(":")[-1] for port in server["ports"]}
    admin = said["BLOCKDROP_ADMIN_ADDR"].rsplit(":")[-1]
    [exposed] = rest(server["build"]["target"], "EXPOSE")
    assert published == set(exposed.split())
    # Whoever gets to the admin listener may load and unload models.
    assert admin not in published
    [job] = load(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"blockdrop:{admin}"]
    drain = int(options["--drain-timeout"][1].removesuffix("s"))
    assert int(server["stop_grace_period"].removesuffix("s")) > drain + ENDING
    assert server["read_only"] is True


def test_what_the_compose_file_mounts_is_there():
    for service in load(COMPOSE)["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (COMPOSE.parent / source).is_dir(), volume
