"""What `kustomize build` makes of a directory, for the few fields of a kustomization that deploy/ uses.

A field that is not known here is an error. Where kustomize itself is installed, test_kubernetes.py compares the two.
"""

import jsonpatch

from files import load, load_all

KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "images", "patches"}
KINDS_WITHOUT_NAMESPACE = {
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
}


def build(directory):
    """The objects of a kustomization or of a component."""
    made = load(directory / "kustomization.yaml")
    unknown = made.keys() - KNOWN
    assert not unknown, f"{directory}: fields that the tests do not render: {sorted(unknown)}"
    assert made["kind"] in ("Kustomization", "Component"), directory
    objects = []
    for name in made.get("resources", []) + made.get("components", []):
        path = directory / name
        objects += build(path) if path.is_dir() else load_all(path)
    for patch in made.get("patches", []):
        assert patch.keys() == {"path", "target"} and patch["target"].keys() == {"kind", "name"}, (
            patch
        )
        chosen = [found for found in objects if is_target(found, patch["target"])]
        assert chosen, f"{directory}: no object for the patch {patch['path']}"
        for found in chosen:
            found.update(jsonpatch.apply_patch(found, load(directory / patch["path"])))
    if "namespace" in made:
        for found in objects:
            assert found["kind"] not in KINDS_WITHOUT_NAMESPACE, found["kind"]
            found["metadata"]["namespace"] = made["namespace"]
    for image in made.get("images", []):
        assert image.keys() == {"name", "newName", "newTag"}, image
        for container in containers(objects):
            if container["image"].split(":")[0] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    return objects


def is_target(found, target):
    return found["kind"] == target["kind"] and found["metadata"]["name"] == target["name"]


def containers(objects):
    """Those of deployments; of other kinds kustomize knows no images here."""
    for found in objects:
        if found["kind"] == "Deployment":
            yield from found["spec"]["template"]["spec"]["containers"]
