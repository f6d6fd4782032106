"""The manifests: valid by schema, and true of the server: its options, ports, paths and metrics."""

import re
import shutil

import jsonschema
import kubernetes_validate
import pytest
import requests
import yaml

import kustomize
from binary import refused
from exported import series
from files import DEPLOY, ENDING, ROOT, load, run
from schemas import SCHEMAS
from server import PATIENCE

KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = {path.name: path for path in sorted((KUBERNETES / "overlays").iterdir())}
KSERVE = DEPLOY / "kserve"
DIRECTORIES = [*OVERLAYS.values(), KSERVE]
# The oldest that has all that is used (preStop's sleep, without a feature gate), and the newest there is a schema of.
VERSIONS = ("1.30", "1.37")


def the(kind, objects, name=None):
    """The one object of a kind, of a name where there are several."""
    [found] = [
        found
        for found in objects
        if found["kind"] == kind and name in (None, found["metadata"]["name"])
    ]
    return found


@pytest.fixture(params=OVERLAYS)
def objects(request):
    return kustomize.build(OVERLAYS[request.param])


@pytest.fixture
def pod(objects):
    return the("Deployment", objects)["spec"]["template"]["spec"]


@pytest.fixture
def container(pod):
    [container] = pod["containers"]
    return container


@pytest.fixture(scope="module")
def kserve():
    return kustomize.build(KSERVE)


@pytest.fixture
def runtime(kserve):
    [container] = the("ServingRuntime", kserve)["spec"]["containers"]
    return container


def environment(container):
    return {each["name"]: each["value"] for each in container.get("env", [])}


def validate(found):
    """Checks an object by its schema; unknown fields are errors."""
    if found["kind"] in SCHEMAS:
        jsonschema.validate(found, SCHEMAS[found["kind"]])
        for container in found["spec"].get("containers", []):
            metadata = {"name": "checked"}
            spec = {"containers": [container]}
            validate({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    else:
        for version in VERSIONS:
            kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: path.name)
def test_the_objects_are_valid(directory):
    objects = kustomize.build(directory)
    assert objects
    for found in objects:
        validate(found)
        assert found["metadata"]["namespace"] == "blockdrop"
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: path.name)
def test_a_misspelt_field_is_refused(directory):
    for found in kustomize.build(directory):
        inner = found.get("spec", found)
        inner["repliccas"] = 1
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            validate(found)


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: path.name)
def test_kustomize_makes_the_same(directory):
    command = next(
        (
            [tool, *words]
            for tool, words in (("kustomize", ["build"]), ("kubectl", ["kustomize"]))
            if shutil.which(tool)
        ),
        None,
    )
    if command is None:
        pytest.skip("neither kustomize nor kubectl is on the path")
    made = list(yaml.safe_load_all(run(*command, str(directory))))

    def key(found):
        return found["kind"], found["metadata"]["name"]

    assert sorted(made, key=key) == sorted(kustomize.build(directory), key=key)


def test_every_manifest_is_used():
    named = set()
    for path in DEPLOY.rglob("kustomization.yaml"):
        made = load(path)
        named |= {path}
        named |= {path.parent / name for name in made["resources"]}
        named |= {path.parent / patch["path"] for patch in made.get("patches", [])}
    apart = {KUBERNETES / "prometheus-adapter.yaml"}
    assert named >= {*KUBERNETES.rglob("*.yaml"), *KSERVE.rglob("*.yaml")} - apart


def test_the_server_takes_the_options(container, runtime, options):
    variables = {variable for variable, _ in options.values()}
    for each in (container, runtime):
        assert environment(each).keys() <= variables
        subcommand, *arguments = each["args"]
        assert subcommand == "serve"
        assert refused(arguments, environment(each)) == []


def test_the_server_listens_where_the_pod_says(container, options):
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    variables = environment(container)

    def port(flag):
        variable, default = options[flag]
        return int(variables.get(variable, default).rsplit(":")[-1])

    assert ports == {name: port(f"--{name}-addr") for name in ("http", "grpc", "admin")}
    assert variables["BLOCKDROP_ADMIN_ADDR"].startswith("0.0.0.0:")


def test_kserve_finds_the_listeners(runtime, kserve, options):
    [port] = runtime["ports"]
    assert port["containerPort"] == int(options["--http-addr"][1].rsplit(":")[-1])
    [admin] = re.findall(r"--admin-addr=0\.0\.0\.0:(\d+)", " ".join(runtime["args"]))
    annotations = the("ServingRuntime", kserve)["spec"]["annotations"]
    assert annotations["prometheus.kserve.io/port"] == admin


def test_what_is_probed_and_scraped_is_there(container, runtime, kserve, objects, server):
    listeners = {"http": server.http, "admin": server.admin, 8080: server.http, 8081: server.admin}
    asked = [
        (listeners[probe["httpGet"]["port"]], probe["httpGet"]["path"])
        for each in (container, runtime)
        for name, probe in each.items()
        if name.endswith("Probe")
    ]
    assert len(asked) == 5
    [endpoint] = the("ServiceMonitor", objects)["spec"]["endpoints"]
    asked.append((listeners[endpoint["port"]], endpoint["path"]))
    annotations = the("ServingRuntime", kserve)["spec"]["annotations"]
    asked.append((server.admin, annotations["prometheus.kserve.io/path"]))
    for address, path in asked:
        assert requests.get(f"http://{address}{path}", timeout=PATIENCE).status_code == 200, path


def test_what_points_at_the_pods_finds_them(objects):
    template = the("Deployment", objects)["spec"]["template"]
    labels = template["metadata"]["labels"]
    services = [found for found in objects if found["kind"] == "Service"]
    selectors = [
        the("Deployment", objects)["spec"]["selector"]["matchLabels"],
        the("PodDisruptionBudget", objects)["spec"]["selector"]["matchLabels"],
        the("NetworkPolicy", objects)["spec"]["podSelector"]["matchLabels"],
        template["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
        *(service["spec"]["selector"] for service in services),
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    assert (
        template["spec"]["serviceAccountName"] == the("ServiceAccount", objects)["metadata"]["name"]
    )
    scaled = the("HorizontalPodAutoscaler", objects)["spec"]["scaleTargetRef"]
    assert scaled == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "blockdrop"}


def test_ports_are_those_of_the_container(objects, container):
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for found in objects:
        for port in found["spec"]["ports"] if found["kind"] == "Service" else []:
            assert (port["name"], port["port"]) == (port["targetPort"], ports[port["targetPort"]])
    public, operators = the("NetworkPolicy", objects)["spec"]["ingress"]
    assert {port["port"] for port in public["ports"]} == {"http", "grpc"}
    # Whoever gets there may load and unload models.
    assert [port["port"] for port in operators["ports"]] == ["admin"] and operators["from"]
    assert {port["name"] for port in the("Service", objects, "blockdrop")["spec"]["ports"]} == {
        "http",
        "grpc",
    }


def test_prometheus_finds_the_admin_listener_by_the_job_of_the_rules(objects):
    monitor = the("ServiceMonitor", objects)["spec"]
    chosen = [
        found
        for found in objects
        if found["kind"] == "Service"
        and monitor["selector"]["matchLabels"].items() <= found["metadata"]["labels"].items()
    ]
    [service] = chosen
    assert [port["name"] for port in service["spec"]["ports"]] == [monitor["endpoints"][0]["port"]]
    [job] = load(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert service["metadata"]["labels"][monitor["jobLabel"]] == job["job_name"]


def test_the_autoscaler_follows_a_metric_that_is_exported(objects, exported, limits):
    [metric] = the("HorizontalPodAutoscaler", objects)["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in series(exported)
    [rule] = load(KUBERNETES / "prometheus-adapter.yaml")
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    assert int(metric["pods"]["target"]["averageValue"]) == limits["--max-queue"] / 8


def test_accepted_requests_are_answered_before_the_pod_is_killed(pod, container, options):
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = int(options["--drain-timeout"][1].removesuffix("s"))
    assert pod["terminationGracePeriodSeconds"] > sleep + drain + ENDING


def test_kserve_probes_what_clients_cannot_fill(runtime):
    said = dict(arg.removeprefix("--").split("=", 1) for arg in runtime["args"] if "=" in arg)
    probe = runtime["livenessProbe"]["httpGet"]
    assert (probe["path"], str(probe["port"])) == ("/livez", said["admin-addr"].rsplit(":")[-1])
    # KServe leaves pods the default of Kubernetes.
    assert int(said["drain-timeout"].removesuffix("s")) + ENDING < 30


def fixed(name):
    """A limit that no flag changes, as SECURITY.md has it."""
    return int(re.search(rf"\| (\d+) \| `{name}` in ", (ROOT / "SECURITY.md").read_text())[1])


def test_memory_holds_what_the_limits_allow(container, runtime, limits):
    for each in (container, runtime):
        flags = re.findall(r"--(max-pixels|max-connections)=(\d+)", " ".join(each["args"]))
        said = environment(each) | dict(flags)
        pixels = int(said.get("BLOCKDROP_MAX_PIXELS") or said["max-pixels"])
        connections = int(said.get("BLOCKDROP_MAX_CONNECTIONS") or said["max-connections"])
        bound = each["resources"]["limits"]
        memory = int(bound["memory"].removesuffix("Gi")) << 30
        decoding = int(bound["cpu"]) * 11 * pixels
        # To HTTP and to gRPC, either of which takes HTTP/2.
        http2 = fixed("HTTP2_UNREAD_BYTES") + fixed("HTTP2_STREAMS") * fixed("HTTP2_HEAD_BYTES")
        buffered = 2 * connections * max(fixed("HTTP1_BYTES"), http2)
        # A body that grows is copied.
        bodies = 2 * limits["--max-bodies-bytes"]
        assert decoding + bodies + buffered + memory / 4 + (96 << 20) <= memory


def test_the_container_may_do_little(container, runtime, pod):
    for each in (container, runtime):
        security = pod["securityContext"] | each["securityContext"]
        assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security["runAsUser"] == 65532
    assert pod["automountServiceAccountToken"] is False


def test_the_gpu_overlay_runs_on_a_gpu():
    [cpu, cuda] = (
        the("Deployment", kustomize.build(OVERLAYS[name]))["spec"]["template"]["spec"]
        for name in ("cpu", "cuda")
    )
    assert "nvidia.com/gpu" not in str(cpu)
    [container] = cuda["containers"]
    assert environment(container)["BLOCKDROP_PROVIDER"] == "cuda"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"].endswith("-cuda") and cpu["containers"][0]["image"].endswith("-cpu")


def test_the_inference_service_asks_for_what_the_runtime_has(kserve, runtime):
    offered = the("ServingRuntime", kserve)
    service = the("InferenceService", kserve)
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == offered["metadata"]["name"]
    formats = [
        {key: each[key] for key in ("name", "version")}
        for each in offered["spec"]["supportedModelFormats"]
    ]
    assert model["modelFormat"] in formats
    assert model["protocolVersion"] in offered["spec"]["protocolVersions"]
    # The server refuses to start without a model of the service's name.
    assert "--default-model={{.Name}}" in runtime["args"]
    assert (ROOT / "models" / service["metadata"]["name"]).is_dir()
