#!/usr/bin/env python3
"""Every panel of the dashboards and every rule, run by a real Prometheus that scrapes the daemon.

    tests/observability/prometheus_test.py build/cpu-release/bin

Fails if a panel's query is refused or finds nothing, or if a rule does not evaluate.
"""

import itertools
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

from daemon import ROOT, SKIPPED, Daemon

# Nothing of the kind happens in this test.
MAY_BE_EMPTY = ()
SETTLE_SECONDS = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def configuration(target, rules):
    scrape = [{"job_name": name, "metrics_path": path, "scrape_interval": "1s",
               "static_configs": [{"targets": [target]}]}
              for name, path in (("moed", "/metrics"), ("moed-experts", "/metrics/experts"))]
    return json.dumps({"global": {"evaluation_interval": "1s"}, "scrape_configs": scrape,
                       "rule_files": [str(rules)]})  # JSON is YAML


class Prometheus:
    def __init__(self, target, directory):
        config = pathlib.Path(directory) / "prometheus.yml"
        config.write_text(configuration(target, ROOT / "deploy/prometheus/moed.rules.yaml"))
        self.url = f"http://127.0.0.1:{free_port()}"
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory}/data",
             f"--web.listen-address={self.url.removeprefix('http://')}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def get(self, path, **parameters):
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def wait_until_scraped(self):
        for _ in range(300):
            try:
                if all(t["health"] == "up" for t in self.get("targets")["activeTargets"] or [{"health": ""}]):
                    return
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.2)
        raise RuntimeError("Prometheus does not scrape the daemon")


def panels():
    for file in sorted((ROOT / "deploy/grafana").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"]
                for name, value in (("$__rate_interval", "10s"), ("$instance", ".*"),
                                    ("$model", ".*"), ("[5m]", "[10s]")):
                    expression = expression.replace(name, value)
                yield file.stem, panel["title"], expression


def check_panels(prometheus):
    failures, count = [], 0
    for dashboard, title, expression in panels():
        count += 1
        try:
            result = prometheus.get("query", query=expression)["result"]
            values = [sample["value"][1] for sample in result]
            if (not values or all(v == "NaN" for v in values)) and title not in MAY_BE_EMPTY:
                failures.append(f"{dashboard} / {title}: no data: {expression}")
        except urllib.error.HTTPError as error:
            failures.append(f"{dashboard} / {title}: {error.read().decode()}")
    return failures, count


def check_rules(prometheus):
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    return [f"rule {rule['name']}: {rule['health']} {rule.get('lastError', '')}"
            for rule in rules if rule["health"] != "ok"], len(rules)


def main():
    if shutil.which("prometheus") is None:
        print("no prometheus here: skipped")
        return SKIPPED
    with tempfile.TemporaryDirectory() as directory, \
            Daemon(sys.argv[1], "--expert-budget", "30%") as daemon, \
            Prometheus(daemon.metrics, directory) as prometheus:
        prometheus.wait_until_scraped()
        give_up = time.monotonic() + SETTLE_SECONDS
        for attempt in itertools.count():  # until every rate has two samples of something that moved
            load = [daemon.generate(domain, 400, attempt) for domain in ("german", "c")]
            for process in load:
                process.wait()
            failures, queries = check_panels(prometheus)
            if not failures or time.monotonic() > give_up:
                break
        broken, rules = check_rules(prometheus)
    for failure in failures + broken:
        print(failure)
    print(f"{queries} queries, {rules} rules, {len(failures + broken)} failures")
    return 1 if failures or broken else 0


if __name__ == "__main__":
    sys.exit(main())
