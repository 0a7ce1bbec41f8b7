"""OpenAI clients talk to moed over HTTP, through the SMG router before two replicas."""
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request

import openai
from smg_grpc_proto import vllm_engine_pb2 as pb

from replica import Replica, free_port

MESSAGES = [{"role": "user", "content": "Once upon a time"}]


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(condition)
        time.sleep(0.1)


class Router:
    """The SMG router before `replicas`, over loopback."""

    def __init__(self, replicas):
        self.log = tempfile.TemporaryFile("w+")
        self.url = f"http://127.0.0.1:{free_port()}"
        self.process = subprocess.Popen(
            ["smg", "launch", "--host=127.0.0.1", "--port=" + self.url.rsplit(":", 1)[1],
             f"--prometheus-port={free_port()}", "--policy=round_robin", "--worker-urls",
             *[f"grpc://{replica.address}" for replica in replicas]],
            stdout=self.log, stderr=subprocess.STDOUT)
        try:
            wait_until(self.ready)
        except TimeoutError:
            self.log.seek(0)
            print(self.log.read())
            self.close()
            raise

    def ready(self):
        try:
            with urllib.request.urlopen(self.url + "/v1/models", timeout=5) as response:
                return b"demo" in response.read()
        except OSError:
            return False

    def client(self):
        return openai.OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=120)

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()


class RouterTest(unittest.TestCase):
    def setUp(self):
        self.replicas = [Replica(), Replica()]
        self.addCleanup(lambda: [replica.close() for replica in self.replicas])
        self.router = Router(self.replicas)
        self.addCleanup(self.router.close)
        self.client = self.router.client()
        # The router serves as soon as it knows one of the two.
        wait_until(self.both_have_answered)

    def both_have_answered(self):
        self.chat(max_tokens=1)
        return all(self.generated_tokens(replica) > 0 for replica in self.replicas)

    def chat(self, **options):
        return self.client.chat.completions.create(
            model="demo", messages=MESSAGES, temperature=0, **options)

    def running(self, replica):
        return replica.stub.GetLoads(pb.GetLoadsRequest()).loads[0].num_total_reqs

    def generated_tokens(self, replica):
        with urllib.request.urlopen(f"http://{replica.metrics}/metrics", timeout=10) as response:
            metrics = response.read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines()
                   if line.startswith("moed_generation_tokens_total"))

    def test_chat_whole_and_streamed(self):
        whole = self.chat(max_tokens=24)
        text = whole.choices[0].message.content
        self.assertTrue(text)
        self.assertEqual(whole.usage.completion_tokens, 24)
        parts, usage = [], None
        for event in self.chat(max_tokens=24, stream=True, stream_options={"include_usage": True}):
            usage = event.usage or usage
            parts += [choice.delta.content or "" for choice in event.choices]
        self.assertGreater(len(parts), 2)
        self.assertEqual("".join(parts), text)
        self.assertEqual(usage.completion_tokens, 24)
        self.assertEqual(usage.prompt_tokens, whole.usage.prompt_tokens)

    def test_both_replicas_serve(self):
        before = [self.generated_tokens(replica) for replica in self.replicas]
        for _ in range(4):
            self.assertEqual(self.chat(max_tokens=8).usage.completion_tokens, 8)
        after = [self.generated_tokens(replica) for replica in self.replicas]
        self.assertEqual([end - begin for begin, end in zip(before, after)], [16, 16])

    def test_a_killed_replica_costs_no_other_request(self):
        victim, survivor = self.replicas
        completed, failed = [], []

        def stream():
            try:
                text = "".join(choice.delta.content or ""
                               for event in self.chat(max_tokens=1200, stream=True)
                               for choice in event.choices)
                completed.append(text)
            except (openai.OpenAIError, OSError) as error:
                failed.append(error)

        threads = [threading.Thread(target=stream) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: self.running(victim) > 0)
        victim.kill()
        for thread in threads:
            thread.join()
        # Round robin had sent it half of them.
        self.assertGreaterEqual(len(completed), len(threads) // 2)
        self.assertEqual(len(completed) + len(failed), len(threads))
        self.assertGreater(self.generated_tokens(survivor), 0)
        # From now on nothing goes to the dead one.
        for _ in range(6):
            self.assertTrue(self.chat(max_tokens=4).choices[0].message.content is not None)


if __name__ == "__main__":
    unittest.main()
