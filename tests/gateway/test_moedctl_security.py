"""moedctl against a daemon that asks for TLS, certificates and keys."""
import os
import pathlib
import subprocess
import tempfile
import unittest

from replica import free_port

MOEDCTL = pathlib.Path(os.environ["MOED_BINARY"]).with_name("moedctl")


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class MoedctlSecurityTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        os.chdir(cls.folder.name)
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca")
        openssl("req", *new_key, "-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=moed")
        pathlib.Path("names").write_text("subjectAltName=DNS:localhost,DNS:moed.internal\n")
        openssl("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
                "-CAcreateserial", "-out", "tls.crt", "-days", "2", "-extfile", "names")
        pathlib.Path("keys").write_text("# one client\n0123456789abcdefgh\n")
        cls.health_port = free_port()
        cls.log = open("log", "w")
        cls.daemon = subprocess.Popen(
            [os.environ["MOED_BINARY"], "--port=0", "--metrics-port=0", "--kv-cache-memory=64MiB",
             f"--health-port={cls.health_port}", "--tls-cert=tls.crt", "--tls-key=tls.key",
             "--tls-client-ca=ca.crt", "--api-key-file=keys"],
            stdout=subprocess.PIPE, stderr=cls.log, text=True)
        line = cls.daemon.stdout.readline()
        cls.port = line.split("grpc=")[1].split()[0].rsplit(":", 1)[1]

    @classmethod
    def tearDownClass(cls):
        cls.daemon.kill()
        cls.daemon.wait()
        cls.daemon.stdout.close()
        cls.log.close()
        os.chdir("/")
        cls.folder.cleanup()

    def moedctl(self, *arguments, address=None, patience=60):
        return subprocess.run(
            [MOEDCTL, f"--connect-timeout={patience}", "--address", address or f"localhost:{self.port}",
             *arguments], capture_output=True, text=True)

    def setUp(self):
        health = self.moedctl("health", "--wait=60", address=f"127.0.0.1:{self.health_port}")
        self.assertEqual(health.returncode, 0, health.stderr)

    CERTIFICATE = ("--tls-ca=ca.crt", "--tls-cert=tls.crt", "--tls-key=tls.key")

    def test_certificate_and_key_open_the_door(self):
        result = self.moedctl(*self.CERTIFICATE, "--api-key-file=keys", "info")
        self.assertEqual(result.returncode, 0, result.stderr)
        renamed = self.moedctl(*self.CERTIFICATE, "--tls-server-name=moed.internal",
                               "--api-key-file=keys", "info")
        self.assertEqual(renamed.returncode, 0, renamed.stderr)

    def test_without_a_key_it_says_what_is_missing(self):
        result = self.moedctl(*self.CERTIFICATE, "info")
        self.assertEqual(result.returncode, 1)
        self.assertIn("UNAUTHENTICATED", result.stderr)
        self.assertIn("authorization: Bearer", result.stderr)

    def test_without_a_certificate_nobody_answers(self):
        result = self.moedctl("--tls-ca=ca.crt", "--api-key-file=keys", "info", patience=3)
        self.assertIn("UNAVAILABLE", result.stderr)

    def test_a_key_never_travels_in_plain_text(self):
        result = self.moedctl("--api-key-file=keys", "info", address="192.0.2.1:8500")
        self.assertIn("plain text", result.stderr)
        self.assertNotIn("0123456789", result.stderr)


if __name__ == "__main__":
    unittest.main()
