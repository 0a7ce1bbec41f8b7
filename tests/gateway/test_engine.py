"""The facade by the published stubs of vllm.grpc.engine."""
import hashlib
import io
import json
import unittest
import zipfile

import grpc
from smg_grpc_proto import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import common_pb2

from replica import Replica


def request(max_tokens=8, stream=True, **fields):
    sampling = pb.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    for name in list(fields):
        if name in pb.SamplingParams.DESCRIPTOR.fields_by_name:
            value = fields.pop(name)
            if isinstance(value, list):
                getattr(sampling, name).extend(value)
            else:
                setattr(sampling, name, value)
    return pb.GenerateRequest(
        tokenized=pb.TokenizedInput(input_ids=[5, 6, 7, 8]), sampling_params=sampling,
        stream=stream, **fields)


class EngineTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.replica = Replica()
        cls.stub = cls.replica.stub

    @classmethod
    def tearDownClass(cls):
        cls.replica.close()

    def refusal(self, wire):
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.stub.Generate(wire))
        return caught.exception.code()

    def test_streamed_chunks_are_the_whole_answer(self):
        whole = list(self.stub.Generate(request(16, stream=False, logprobs=2)))
        self.assertEqual(len(whole), 1)
        streamed = list(self.stub.Generate(request(16, logprobs=2)))
        chunks, complete = streamed[:-1], streamed[-1].complete
        ids = [token for message in chunks for token in message.chunk.token_ids]
        self.assertEqual(ids, list(whole[0].complete.output_ids))
        self.assertEqual(sum(message.chunk.completion_tokens for message in chunks), 16)
        self.assertEqual(complete.finish_reason, "length")
        self.assertEqual((complete.prompt_tokens, complete.completion_tokens), (4, 16))
        logprobs = whole[0].complete.output_logprobs
        self.assertEqual(list(logprobs.token_ids), ids)
        self.assertEqual(len(logprobs.top_logprobs[3].token_ids), 2)

    def test_prompt_logprobs_come_once(self):
        messages = list(self.stub.Generate(request(3, prompt_logprobs=1)))
        self.assertEqual(list(messages[0].chunk.input_logprobs.token_ids), [5, 6, 7, 8])
        self.assertFalse(messages[0].chunk.input_logprobs.token_logprobs[0].HasField("value"))
        self.assertFalse(messages[1].chunk.HasField("input_logprobs"))

    def test_stop_token_ends_a_sequence(self):
        ids = [i for m in self.stub.Generate(request(8)) for i in m.chunk.token_ids]
        *_, last = self.stub.Generate(request(8, stop_token_ids=[ids[2]]))
        self.assertEqual(last.complete.finish_reason, "stop")
        self.assertEqual(last.complete.matched_token_id, ids[2])

    def test_text_is_tokenized(self):
        wire = request(4)
        wire.text = "Once upon a time"
        *_, last = self.stub.Generate(wire)
        self.assertGreater(last.complete.prompt_tokens, 1)

    def test_what_it_cannot_do_is_refused(self):
        self.assertEqual(self.refusal(request(regex="a+")), grpc.StatusCode.UNIMPLEMENTED)
        self.assertEqual(self.refusal(request(mm_inputs=pb.MultimodalInputs())),
                         grpc.StatusCode.UNIMPLEMENTED)
        self.assertEqual(self.refusal(request(top_p=7.0)), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual(self.refusal(pb.GenerateRequest()), grpc.StatusCode.INVALID_ARGUMENT)
        with self.assertRaises(grpc.RpcError) as caught:
            self.stub.Embed(pb.EmbedRequest())
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_abort_ends_a_running_request(self):
        call = self.stub.Generate(request(4000, request_id="long"))
        next(call)
        self.stub.Abort(pb.AbortRequest(request_ids=["long"]))
        with self.assertRaises(grpc.RpcError):
            list(call)

    def test_model_server_and_load(self):
        model = self.stub.GetModelInfo(pb.GetModelInfoRequest())
        self.assertEqual(model.served_model_name, "demo")
        self.assertTrue(model.is_generation)
        self.assertEqual(list(model.eos_token_ids), [0])
        self.assertEqual(json.loads(model.default_sampling_params_json)["temperature"], 0.8)
        self.assertNotIn("/", model.model_path + model.tokenizer_path)
        self.assertEqual(self.stub.GetServerInfo(pb.GetServerInfoRequest()).data_parallel_size, 1)
        load, = self.stub.GetLoads(pb.GetLoadsRequest()).loads
        self.assertGreater(load.max_total_num_tokens, 0)

    def test_tokenizer_is_a_zip(self):
        chunks = list(self.stub.GetTokenizer(common_pb2.GetTokenizerRequest()))
        data = b"".join(chunk.data for chunk in chunks)
        self.assertEqual(chunks[-1].sha256, hashlib.sha256(data).hexdigest())
        self.assertFalse(any(chunk.sha256 for chunk in chunks[:-1]))
        archive = zipfile.ZipFile(io.BytesIO(data))
        self.assertIsNone(archive.testzip())
        json.loads(archive.read("tokenizer.json"))


if __name__ == "__main__":
    unittest.main()
