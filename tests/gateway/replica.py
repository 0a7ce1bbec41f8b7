"""The moed daemon on the demo model, and free ports, for tests."""
import os
import signal
import socket
import subprocess
import tempfile

import grpc
from smg_grpc_proto import vllm_engine_pb2 as pb
from smg_grpc_proto import vllm_engine_pb2_grpc as pb_grpc


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Replica:
    """A daemon that is ready once constructed; killed by close()."""

    def __init__(self, *arguments):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [os.environ["MOED_BINARY"], "--port=0", "--metrics-port=0", "--cpu-threads=1",
             "--kv-cache-memory=64MiB", *arguments],
            stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        listening = dict(word.split("=") for word in line.split() if "=" in word)
        self.address, self.metrics = listening["grpc"], listening["metrics"]
        self.channel = grpc.insecure_channel(self.address)
        self.stub = pb_grpc.VllmEngineStub(self.channel)
        while not self.stub.HealthCheck(pb.HealthCheckRequest(), wait_for_ready=True).healthy:
            pass

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self):
        self.channel.close()
        self.kill()
        self.process.stdout.close()
        self.log.close()
