"""The README's grpcurl lines, through reflection alone; tests/gateway/run fetches grpcurl."""
import pathlib
import shutil
import subprocess
import unittest

from replica import Replica

BUILT = pathlib.Path(__file__).resolve().parents[2] / ".deps/deploy/bin/grpcurl"
GRPCURL = shutil.which("grpcurl") or (str(BUILT) if BUILT.exists() else None)


@unittest.skipUnless(GRPCURL, "no grpcurl here")
class GrpcurlTest(unittest.TestCase):
    def setUp(self):
        self.replica = Replica()
        self.addCleanup(self.replica.close)

    def grpcurl(self, *arguments):
        return subprocess.run([GRPCURL, "-plaintext", *arguments], check=True, capture_output=True,
                              text=True).stdout

    def test_lists_and_generates(self):
        services = self.grpcurl(self.replica.address, "list").split()
        for service in ("grpc.health.v1.Health", "moed.v1.Experts", "moed.v1.Inference",
                        "vllm.grpc.engine.VllmEngine"):
            self.assertIn(service, services)
        answer = self.grpcurl("-d", '{"text": "ROMEO:", "stopping": {"maxTokens": 32}}',
                              self.replica.address, "moed.v1.Inference/Generate")
        self.assertIn('"finished"', answer)
        health = self.grpcurl("-d", '{"service": "moed.v1.Inference"}', self.replica.address,
                              "grpc.health.v1.Health/Check")
        self.assertIn("SERVING", health)


if __name__ == "__main__":
    unittest.main()
