"""Renders the Helm chart for its tests and for deploy/kubernetes."""
import os
import pathlib
import subprocess

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/moed"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
PLAIN = ROOT / "deploy/kubernetes"
# Examples whose rendered manifests stand in deploy/kubernetes, for those who do not use Helm.
PLAIN_EXAMPLES = ["cpu-demo", "one-gpu"]


def helm(*arguments):
    """What `helm ARGUMENTS` prints; raises CalledProcessError with its stderr."""
    return subprocess.run([os.environ["HELM"], *map(str, arguments)], check=True,
                          capture_output=True, text=True).stdout


def template(*values_files, **values):
    """The manifests as text, with `values` as --set, dots written as two underscores."""
    arguments = ["template", "moed", CHART, "--namespace", "models", "--kube-version", "1.37.0"]
    for file in values_files:
        arguments += ["--values", file]
    for name, value in values.items():
        arguments += ["--set", f"{name.replace('__', '.')}={value}"]
    return helm(*arguments)


def objects(*values_files, **values):
    return [item for item in yaml.safe_load_all(template(*values_files, **values)) if item]


def plain_manifest(example):
    header = ("# Rendered from the Helm chart (tests/deploy/run --render); change the chart instead.\n"
              f"# Values: deploy/helm/moed/examples/{example}.yaml, namespace models, without rules and\n"
              "# dashboards, which stand in deploy/prometheus and deploy/grafana.\n")
    return header + template(CHART / "examples" / f"{example}.yaml",
                             monitoring__rules__enabled="false",
                             monitoring__dashboards__enabled="false")


def main():
    PLAIN.mkdir(parents=True, exist_ok=True)
    for example in PLAIN_EXAMPLES:
        (PLAIN / f"{example}.yaml").write_text(plain_manifest(example))


if __name__ == "__main__":
    main()
