"""Starts the built daemon on the demo model for the tests beside this file."""

import pathlib
import re
import signal
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SKIPPED = 77  # ctest's SKIP_RETURN_CODE

PROMPTS = {
    "german": "FAUST:\n  Wie wird mir nun, da ich dich seh,\n  ",
    "c": "static int pageInit(Page *p, int n){\n  int i;\n",
    "arithmetic": "12 + 30 = 42\n7 * 8 = 56\n91 - 45 = ",
}


class Daemon:
    def __init__(self, binaries, *arguments):
        self.binaries = pathlib.Path(binaries)
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [self.binaries / "moed", "--model", ROOT / "models/demo", "--port", "0",
             "--metrics-port", "0", "--kv-cache-memory", "64MiB", *arguments],
            stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        try:
            self.address, self.metrics = re.search(r"grpc=(\S+) metrics=(\S+)", line).groups()
            subprocess.run([*self.moedctl(), "health", "--wait", "60"], check=True,
                           stdout=subprocess.DEVNULL)
        except (AttributeError, subprocess.CalledProcessError):
            self.stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Ends the daemon, and shows its log unless it had lived until now and ended well."""
        ended = self.process.poll()
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait() != 0 or ended is not None:
            self.log.seek(0)
            print(f"moed ended with {self.process.returncode}:", self.log.read(), sep="\n")

    def moedctl(self):
        return [self.binaries / "moedctl", "--address", self.address]

    def generate(self, domain, tokens, seed=1):
        """A process that generates; wait() for it."""
        return subprocess.Popen(
            [*self.moedctl(), "generate", "--prompt", PROMPTS[domain], "--ignore-eos", "--seed",
             str(seed), "--max-tokens", str(tokens)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
