"""Checks custom resources against their operators' own definitions (CustomResourceDefinition files)."""
import os
import pathlib

import jsonschema
import yaml


def strict(schema):
    """An OpenAPI schema of Kubernetes as a JSON Schema that refuses what it does not name."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get(
            "x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    result.pop("format", None)
    return result


def definitions():
    """{(kind, version): schema} of the files at hand."""
    found = {}
    for path in pathlib.Path(os.environ["CRDS"]).glob("*.yaml"):
        for definition in yaml.safe_load_all(path.read_text()):
            if not definition or definition["kind"] != "CustomResourceDefinition":
                continue
            spec = definition["spec"]
            for version in spec["versions"]:
                name = f"{spec['group']}/{version['name']}"
                found[spec["names"]["kind"], name] = strict(version["schema"]["openAPIV3Schema"])
    return found


def validate(item, schema):
    """Raises jsonschema.ValidationError."""
    metadata = {"type": "object"}  # its schema is Kubernetes' own
    properties = {**schema["properties"], "metadata": metadata}
    jsonschema.Draft7Validator({**schema, "properties": properties}).validate(item)
