"""A client made from nothing but the .proto files, as docs/OPERATIONS.md says."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

import grpc

from replica import Replica

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"


class PlainProtosTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        subprocess.run(
            [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}",
             f"--python_out={cls.folder.name}", f"--grpc_python_out={cls.folder.name}",
             "moed/v1/inference.proto", "moed/v1/experts.proto"], check=True)
        sys.path.insert(0, cls.folder.name)
        cls.replica = Replica()

    @classmethod
    def tearDownClass(cls):
        cls.replica.close()
        sys.path.remove(cls.folder.name)
        cls.folder.cleanup()

    def test_streams_text(self):
        from moed.v1 import inference_pb2 as pb
        from moed.v1 import inference_pb2_grpc as pb_grpc
        with grpc.insecure_channel(self.replica.address) as channel:
            stub = pb_grpc.InferenceStub(channel)
            request = pb.GenerateRequest(
                text="ROMEO:", sampling=pb.SamplingParams(temperature=0),
                stopping=pb.StopConditions(max_tokens=16, ignore_eos=True))
            *deltas, last = stub.Generate(request)
            text = "".join(message.delta.text for message in deltas)
            self.assertEqual(text, stub.GenerateOnce(request).completions[0].text)
            self.assertEqual(last.finished.usage.completion_tokens, 16)
            with self.assertRaises(grpc.RpcError) as caught:
                list(stub.Generate(pb.GenerateRequest(model="another", text="x")))
            self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)


if __name__ == "__main__":
    unittest.main()
