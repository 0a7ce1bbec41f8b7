"""The metrics port as Prometheus reads it over TLS with a user, while certificate and users change."""
import base64
import gzip
import hashlib
import os
import pathlib
import signal
import ssl
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

PASSWORD = "a-password-of-length"


def new_certificate(folder, name):
    """A self-signed pair for localhost, put in place by rename as rotation does."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", "new.key", "-out", "new.crt", "-subj", f"/CN={name}", "-addext",
         "subjectAltName=DNS:localhost", "-days", "2"], check=True, capture_output=True, cwd=folder)
    os.rename(folder / "new.key", folder / "tls.key")
    os.rename(folder / "new.crt", folder / "tls.crt")
    return (folder / "tls.crt").read_text()


def eventually(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(condition)
        time.sleep(0.1)


class MetricsSecurityTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.certificate = new_certificate(self.folder, "first")
        self.write_users(PASSWORD)
        self.log = open(self.folder / "log", "w+")
        self.addCleanup(self.log.close)
        self.daemon = subprocess.Popen(
            [os.environ["MOED_BINARY"], "--port=0", "--metrics-port=0", "--kv-cache-memory=64MiB",
             "--metrics-tls-cert=tls.crt", "--metrics-tls-key=tls.key", "--tls-reload-seconds=1",
             "--metrics-auth-file=users"],
            stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=self.folder)
        self.addCleanup(self.daemon.stdout.close)
        self.addCleanup(self.daemon.wait)
        self.addCleanup(self.daemon.kill)
        line = self.daemon.stdout.readline()
        self.url = "https://localhost:" + line.split("metrics=")[1].split()[0].rsplit(":", 1)[1]

    def write_users(self, password):
        digest = hashlib.sha256(password.encode()).hexdigest()
        (self.folder / "users").write_text(f"prometheus:{digest}\n")

    def get(self, path, certificate, password=PASSWORD, **headers):
        """The answer to someone who trusts `certificate`."""
        if password is not None:
            user = base64.b64encode(f"prometheus:{password}".encode()).decode()
            headers["Authorization"] = f"Basic {user}"
        request = urllib.request.Request(self.url + path, headers=headers)
        context = ssl.create_default_context(cadata=certificate)
        return urllib.request.urlopen(request, context=context, timeout=60)

    def code(self, path, password):
        try:
            with self.get(path, self.certificate, password) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    def trusted(self, certificate):
        try:
            self.get("/metrics", certificate).close()
            return True
        except (urllib.error.URLError, ConnectionError):
            return False

    def test_a_user_reads_over_tls_and_nobody_else(self):
        for path in ("/", "/metrics", "/metrics/experts", "/status.json"):
            self.assertEqual(self.code(path, PASSWORD), 200, path)
            self.assertEqual(self.code(path, "another"), 401, path)
            self.assertEqual(self.code(path, None), 401, path)
        with self.get("/", self.certificate, **{"Accept-Encoding": "gzip"}) as answer:
            self.assertEqual(answer.headers["Content-Encoding"], "gzip")
            self.assertIn(b"<title>moed</title>", gzip.decompress(answer.read()))
        with self.assertRaises((urllib.error.URLError, ConnectionError)):
            urllib.request.urlopen(self.url.replace("https", "http") + "/metrics", timeout=60)

    def test_the_certificate_is_rotated_while_it_is_scraped(self):
        first = self.certificate
        self.assertTrue(self.trusted(first))
        second = new_certificate(self.folder, "second")
        # At every moment it is one of the two.
        def rotated():
            if self.trusted(second):
                return True
            self.assertTrue(self.trusted(first) or self.trusted(second))
            return False
        eventually(rotated)
        self.assertFalse(self.trusted(first))
        (self.folder / "tls.crt").write_text("damaged")
        time.sleep(1.5)
        self.assertTrue(self.trusted(second))

    def test_users_are_read_anew(self):
        self.assertEqual(self.code("/metrics", PASSWORD), 200)
        self.write_users("another-password")
        self.daemon.send_signal(signal.SIGHUP)
        eventually(lambda: self.code("/metrics", "another-password") == 200)
        self.assertEqual(self.code("/metrics", PASSWORD), 401)


if __name__ == "__main__":
    unittest.main()
