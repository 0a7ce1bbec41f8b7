"""The compose file and the systemd unit."""
import os
import re
import shutil
import subprocess
import tempfile
import unittest

import yaml

from chart import ROOT


class ComposeTest(unittest.TestCase):
    def test_every_mounted_file_is_there(self):
        folder = ROOT / "deploy/compose"
        compose = yaml.safe_load((folder / "compose.yaml").read_text())
        for name, service in compose["services"].items():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("."):
                    self.assertTrue((folder / source).exists(), f"{name}: {source}")

    def test_prometheus_scrapes_both_paths_of_the_service(self):
        config = yaml.safe_load((ROOT / "deploy/compose/prometheus.yaml").read_text())
        jobs = {job.get("metrics_path", "/metrics"): job["static_configs"][0]["targets"]
                for job in config["scrape_configs"]}
        self.assertEqual(jobs, {"/metrics": ["moed:8501"], "/metrics/experts": ["moed:8501"]})


class SystemdTest(unittest.TestCase):
    UNIT = ROOT / "deploy/systemd/moed.service"

    @unittest.skipUnless(shutil.which("systemd-analyze"), "no systemd here")
    def test_the_unit_is_understood(self):
        with tempfile.TemporaryDirectory() as folder:
            unit = f"{folder}/moed.service"
            text = self.UNIT.read_text().replace("/usr/local/bin/moed", os.environ["MOED_BINARY"])
            with open(unit, "w") as file:
                file.write(text)
            result = subprocess.run(["systemd-analyze", "verify", "--man=no", unit],
                                    capture_output=True, text=True)
            self.assertNotIn("moed.service", result.stderr)

    def test_its_configuration_is_understood(self):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
            text = (ROOT / "deploy/systemd/moed.toml").read_text()
            # Those that are commented out too; and a model that is here.
            text = re.sub(r"^# (?=[a-z-]+ =)", "", text, flags=re.MULTILINE)
            config.write(text.replace("/var/lib/moed/model", str(ROOT / "models/demo")))
            config.flush()
            result = subprocess.run(
                [os.environ["MOED_BINARY"], "--config", config.name, "--check-config"],
                capture_output=True, text=True)
            self.assertIn("checkpoint: ok", result.stdout + result.stderr)
            self.assertIn("/etc/moed/tls.crt", result.stdout)


if __name__ == "__main__":
    unittest.main()
