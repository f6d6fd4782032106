"""Schemas of objects that come from elsewhere than Kubernetes itself.

They hold the fields that deploy/ uses, as the custom resource definitions name and type them, and no others: a field that
is misspelt or misplaced is refused, one that is used for the first time has to be looked up and added. Containers are
checked by Kubernetes' own schema, see test_kubernetes.py.
"""

TEXT = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
NUMBER = {"type": "integer", "minimum": 0}
DURATION = {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$"}


def fields(required, **properties):
    assert set(required) <= properties.keys()
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def items(schema):
    return {"type": "array", "minItems": 1, "items": schema}


METADATA = fields(["name"], name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
# Taken out and checked as a pod's.
CONTAINER = {"type": "object"}


def of_kind(group, kind, **spec):
    required = spec.pop("required")
    return fields(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": group},
        kind={"const": kind},
        metadata=METADATA,
        spec=fields(required, **spec),
    )


FORMAT = fields(["name"], name=TEXT, version=TEXT, autoSelect={"type": "boolean"}, priority=NUMBER)
RECORDING_RULE = fields(["record", "expr"], record=TEXT, expr=TEXT)
ALERTING_RULE = fields(
    ["alert", "expr"],
    alert=TEXT,
    expr=TEXT,
    labels=TEXTS,
    annotations=TEXTS,
    **{"for": DURATION},
)

SCHEMAS = {
    # Prometheus Operator
    "ServiceMonitor": of_kind(
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        required=["selector", "endpoints"],
        jobLabel=TEXT,
        selector=fields(["matchLabels"], matchLabels=TEXTS),
        endpoints=items(fields(["port"], port=TEXT, path=TEXT, interval=DURATION)),
    ),
    "PrometheusRule": of_kind(
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        required=["groups"],
        groups=items(
            fields(
                ["name", "rules"],
                name=TEXT,
                rules=items({"oneOf": [RECORDING_RULE, ALERTING_RULE]}),
            )
        ),
    ),
    # KServe
    "ServingRuntime": of_kind(
        "serving.kserve.io/v1alpha1",
        "ServingRuntime",
        required=["supportedModelFormats", "containers"],
        annotations=TEXTS,
        supportedModelFormats=items(FORMAT),
        protocolVersions=items({"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}),
        containers=items(CONTAINER),
    ),
    "InferenceService": of_kind(
        "serving.kserve.io/v1beta1",
        "InferenceService",
        required=["predictor"],
        predictor=fields(
            ["model"],
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            model=fields(
                ["modelFormat", "storageUri"],
                runtime=TEXT,
                modelFormat=fields(["name"], name=TEXT, version=TEXT),
                protocolVersion={"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]},
                storageUri=TEXT,
            ),
        ),
    ),
}
