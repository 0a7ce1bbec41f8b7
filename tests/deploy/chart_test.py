"""What the Helm chart makes of its values."""
import hashlib
import os
import re
import subprocess
import unittest

import jsonschema
import kubernetes_validate
import yaml

import custom_resources
from chart import CHART, EXAMPLES, PLAIN, PLAIN_EXAMPLES, helm, objects, plain_manifest

# Their schemas are not Kubernetes' own. That of the InferencePool is on no package registry.
CUSTOM = {"PodMonitor", "ServiceMonitor", "PrometheusRule", "Certificate", "ScaledObject",
          "InferencePool"}
CLOSED_METRICS = {"tls__enabled": "true", "tls__secretName": "t", "monitoring__tls": "true",
                  "monitoring__auth__username": "prometheus", "monitoring__auth__password": "abc",
                  "monitoring__podMonitor__enabled": "true",
                  "monitoring__serviceMonitor__enabled": "true"}


def find(items, kind, name=None):
    found = [item for item in items
             if item["kind"] == kind and (name is None or item["metadata"]["name"] == name)]
    assert found, f"no {kind} {name or ''}"
    return found[0]


def container(items):
    for item in items:
        if item["kind"] in ("Deployment", "StatefulSet") and "router" not in item["metadata"]["name"]:
            return item["spec"]["template"]["spec"]["containers"][0]
    raise AssertionError("no workload")


def pod(items):
    for item in items:
        if item["kind"] in ("Deployment", "StatefulSet") and "router" not in item["metadata"]["name"]:
            return item["spec"]["template"]["spec"]
    raise AssertionError("no workload")


class ExamplesTest(unittest.TestCase):
    def test_lint_finds_nothing(self):
        for example in EXAMPLES:
            with self.subTest(example.stem):
                helm("lint", CHART, "--strict", "--values", example)

    def test_objects_match_the_schemas_of_kubernetes(self):
        for example in EXAMPLES:
            for item in objects(example):
                with self.subTest(f"{example.stem} {item['kind']} {item['metadata']['name']}"):
                    if item["kind"] not in CUSTOM:
                        kubernetes_validate.validate(item, "1.37", strict=True)

    def test_custom_resources_match_the_schemas_of_their_operators(self):
        schemas = custom_resources.definitions()
        if len(schemas) == 0:
            self.skipTest("the operators' schemas cannot be had")
        monitored = objects(**CLOSED_METRICS)
        checked = set()
        for item in [item for example in EXAMPLES for item in objects(example)] + monitored:
            schema = schemas.get((item["kind"], item["apiVersion"]))
            if schema is not None:
                with self.subTest(f"{item['kind']} {item['metadata']['name']}"):
                    custom_resources.validate(item, schema)
                checked.add(item["kind"])
        self.assertEqual(checked, CUSTOM - {"InferencePool"})
        monitor = find(monitored, "PodMonitor")
        monitor["spec"]["podMetricsEndpoints"][0]["tlsConfg"] = {}
        with self.assertRaises(jsonschema.ValidationError):
            custom_resources.validate(monitor, schemas["PodMonitor", monitor["apiVersion"]])

    def test_plain_manifests_are_what_the_chart_renders(self):
        for example in PLAIN_EXAMPLES:
            self.assertEqual((PLAIN / f"{example}.yaml").read_text(), plain_manifest(example),
                             "run tests/deploy/run --render")

    def test_selectors_meet_pods_and_not_the_router(self):
        items = objects(CHART / "examples/smg-router.yaml")
        server = find(items, "StatefulSet")["spec"]
        labels = server["template"]["metadata"]["labels"]
        router = find(items, "Deployment", "moed-router")["spec"]["template"]["metadata"]["labels"]
        for service in ("moed", "moed-headless"):
            selector = find(items, "Service", service)["spec"]["selector"]
            self.assertLessEqual(selector.items(), labels.items())
            self.assertFalse(selector.items() <= router.items())
        budget = find(items, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
        self.assertLessEqual(budget.items(), labels.items())

    def test_every_mounted_volume_exists(self):
        for example in EXAMPLES:
            items = objects(example)
            claims = [claim["metadata"]["name"] for item in items if item["kind"] == "StatefulSet"
                      for claim in item["spec"].get("volumeClaimTemplates", [])]
            volumes = {volume["name"] for volume in pod(items)["volumes"]} | set(claims)
            mounts = {mount["name"] for mount in container(items)["volumeMounts"]}
            self.assertEqual(mounts, volumes, example.stem)


    def test_every_flag_is_one_of_the_daemon(self):
        help_text = subprocess.run([os.environ["MOED_BINARY"], "--help"], check=True,
                                   capture_output=True, text=True).stdout
        known = set(re.findall(r"--[a-z-]+", help_text))
        for example in EXAMPLES:
            flags = {argument.split("=")[0] for argument in container(objects(example))["args"]}
            self.assertLessEqual(flags, known, example.stem)


class ValuesTest(unittest.TestCase):
    def test_memory_is_requested_and_limited_by_the_size_of_the_model(self):
        resources = container(objects(model__sizeGiB=60))["resources"]
        self.assertEqual(resources["requests"]["memory"], "74Gi")
        self.assertEqual(resources["requests"], resources["limits"])
        self.assertEqual(container(objects(resources__memory="9Gi"))["resources"]["limits"]["memory"],
                         "9Gi")

    def test_a_gpu_is_asked_for_only_with_cuda(self):
        self.assertNotIn("nvidia.com/gpu", container(objects())["resources"]["limits"])
        gpu = container(objects(device="cuda", gpus=2))
        self.assertEqual(gpu["resources"]["limits"]["nvidia.com/gpu"], "2")
        self.assertTrue(gpu["image"].endswith("-cuda"))

    def test_experts_are_the_daemons_to_choose_unless_told(self):
        chosen = ("--expert-format=", "--cold-path=")
        self.assertFalse([a for a in container(objects())["args"] if a.startswith(chosen)])
        told = container(objects(expert__format="bf12", expert__coldPath="link"))["args"]
        self.assertIn("--expert-format=bf12", told)
        self.assertIn("--cold-path=link", told)

    def test_grace_covers_pre_stop_and_drain(self):
        items = objects(preStopSeconds=7, drainSeconds=90)
        self.assertEqual(pod(items)["terminationGracePeriodSeconds"], 107)
        self.assertEqual(container(items)["lifecycle"]["preStop"]["sleep"]["seconds"], 7)
        self.assertIn("--drain-seconds=90", container(items)["args"])

    def test_probes(self):
        plain = container(objects())
        self.assertEqual(plain["livenessProbe"]["grpc"], {"port": 8500, "service": ""})
        self.assertEqual(plain["readinessProbe"]["grpc"]["service"], "moed.v1.Inference")
        startup = container(objects(model__sizeGiB=100))["startupProbe"]
        self.assertGreaterEqual(startup["failureThreshold"] * startup["periodSeconds"], 1200)
        tls = container(objects(tls__enabled="true", tls__secretName="t"))
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            self.assertEqual(tls[probe]["grpc"]["port"], 8502)
        self.assertIn("--health-port=8502", tls["args"])

    def test_pods_are_locked_down(self):
        items = objects()
        self.assertTrue(pod(items)["securityContext"]["runAsNonRoot"])
        self.assertEqual(pod(items)["securityContext"]["seccompProfile"]["type"], "RuntimeDefault")
        self.assertFalse(pod(items)["automountServiceAccountToken"])
        context = container(items)["securityContext"]
        self.assertEqual(context["capabilities"]["drop"], ["ALL"])
        self.assertTrue(context["readOnlyRootFilesystem"])
        self.assertFalse(context["allowPrivilegeEscalation"])

    def test_h2c_is_said_only_in_plain_text(self):
        def protocol(items):
            return find(items, "Service", "moed")["spec"]["ports"][0].get("appProtocol")
        self.assertEqual(protocol(objects()), "kubernetes.io/h2c")
        self.assertIsNone(protocol(objects(tls__enabled="true", tls__secretName="t")))

    def test_model_sources(self):
        for source, key in (("pvc", "persistentVolumeClaim"), ("hostPath", "hostPath"),
                            ("image", "image")):
            items = objects(**{f"model__source__{source}": "/models/x", "model__path": "sub"})
            volume = next(v for v in pod(items)["volumes"] if v["name"] == "model")
            self.assertIn(key, volume)
            self.assertIn("--model=/model/sub", container(items)["args"])
        self.assertFalse([a for a in container(objects())["args"] if a.startswith("--model=")])

    def test_both_metric_paths_are_scraped(self):
        monitor = find(objects(monitoring__podMonitor__enabled="true"), "PodMonitor")
        endpoints = {e["path"]: e["interval"] for e in monitor["spec"]["podMetricsEndpoints"]}
        self.assertEqual(endpoints, {"/metrics": "15s", "/metrics/experts": "60s"})

    def test_monitors_come_in_where_the_metrics_port_is_closed(self):
        items = objects(**CLOSED_METRICS)
        users = find(items, "Secret", "moed-metrics")["stringData"]["users"]
        self.assertEqual(users, "prometheus:" + hashlib.sha256(b"abc").hexdigest())
        endpoints = (find(items, "PodMonitor")["spec"]["podMetricsEndpoints"] +
                     find(items, "ServiceMonitor")["spec"]["endpoints"])
        self.assertEqual(len(endpoints), 4)
        for endpoint in endpoints:
            self.assertEqual(endpoint["scheme"], "https")
            self.assertEqual(endpoint["tlsConfig"]["ca"]["secret"], {"name": "t", "key": "ca.crt"})
            self.assertEqual(endpoint["basicAuth"]["password"],
                             {"name": "moed-metrics", "key": "password"})
        arguments = container(items)["args"]
        self.assertIn("--metrics-tls-cert=/tls/tls.crt", arguments)
        self.assertIn("--metrics-auth-file=/metrics-users/users", arguments)

    def test_the_admin_port_is_on_loopback_unless_exposed_with_keys(self):
        self.assertFalse([a for a in container(objects())["args"] if a.startswith("--admin")])
        local = container(objects(admin__enabled="true"))
        self.assertEqual([a for a in local["args"] if a.startswith("--admin")],
                         ["--admin-port=8504"])
        self.assertNotIn("admin", [port["name"] for port in local["ports"]])
        items = objects(admin__enabled="true", admin__expose="true", admin__existingSecret="a",
                        tls__enabled="true", tls__secretName="t", networkPolicy__enabled="true")
        self.assertIn("--admin-host=0.0.0.0", container(items)["args"])
        self.assertIn("--admin-key-file=/admin-keys/keys", container(items)["args"])
        ports = [rule["ports"][0]["port"] for rule in find(items, "NetworkPolicy")["spec"]["ingress"]]
        self.assertNotIn("admin", ports)

    def test_an_inference_pool_speaks_http2(self):
        pool = find(objects(CHART / "examples/inference-gateway.yaml"), "InferencePool")
        self.assertEqual(pool["spec"]["appProtocol"], "kubernetes.io/h2c")

    def test_rules_and_dashboards_are_those_of_deploy(self):
        items = objects(monitoring__rules__enabled="true", monitoring__dashboards__enabled="true")
        files = sorted((CHART / "files/prometheus").glob("*.rules.yaml"))
        rules = [item for item in items if item["kind"] == "PrometheusRule"]
        self.assertEqual([r["spec"] for r in rules], [yaml.safe_load(f.read_text()) for f in files])
        dashboards = [item for item in items if item["kind"] == "ConfigMap"]
        self.assertEqual(len(dashboards), len(list((CHART / "files/grafana").glob("*.json"))))

    def test_autoscaling_owns_the_number_of_replicas(self):
        self.assertEqual(find(objects(replicas=3), "Deployment")["spec"]["replicas"], 3)
        for kind, scaler in (("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")):
            items = objects(autoscaling__type=kind)
            self.assertNotIn("replicas", find(items, "Deployment")["spec"])
            find(items, scaler)

    def test_the_gateway_port_is_for_the_router_alone(self):
        items = objects(CHART / "examples/smg-router.yaml")
        self.assertIn("--gateway-port=8503", container(items)["args"])
        rules = find(items, "NetworkPolicy")["spec"]["ingress"]
        gateway = next(r for r in rules if r["ports"][0]["port"] == "gateway")
        self.assertEqual(
            gateway["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"],
            "router")
        self.assertNotIn("--gateway-port=8503", container(objects())["args"])

    def test_contradictions_are_refused_with_a_remedy(self):
        for values, says in (
                ({"apiKeys__existingSecret": "k"}, "apiKeys need tls.enabled"),
                ({"tls__enabled": "true"}, "tls.secretName or tls.certManager"),
                ({"hotSet__enabled": "true", "hotSet__persistent": "true"}, "StatefulSet"),
                ({"router__enabled": "true"}, "router.image"),
                ({"admin__expose": "true"}, "admin.existingSecret"),
                ({"monitoring__tls": "true"}, "tls.enabled"),
                ({"monitoring__auth__existingSecret": "m"}, "monitoring.tls"),
                ({"replicsa": "3"}, "replicsa"),
                ({"device": "gpu"}, "device"),
                ({"expert__budget": "lots"}, "budget"),
                ({"expert__format": "fp8"}, "format"),
                ({"expert__coldPath": "both"}, "coldPath")):
            with self.assertRaises(subprocess.CalledProcessError) as caught:
                objects(**values)
            self.assertIn(says, caught.exception.stderr)


if __name__ == "__main__":
    unittest.main()
