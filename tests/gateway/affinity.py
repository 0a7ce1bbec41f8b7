"""What a replica's hot set means for routing: two replicas, two domains of text, requests sent by domain
or in turn; prints the hit rates of the expert caches.

usage: MOED_BINARY=build/cpu-release/bin/moed .deps/gateway/bin/python tests/gateway/affinity.py
"""
import random
import re
import threading
import urllib.request

from smg_grpc_proto import vllm_engine_pb2 as pb

from replica import Replica

DOMAINS = [
    ["ROMEO: But soft, what light", "JULIET: O Romeo, wherefore", "HAMLET: To be or not"],
    ["static int sqlite3_open(", "int main(int argc, char **argv) {", "#include <stdio.h>\nvoid f("],
]
REQUESTS = 80
WARM_UP = 8  # of each replica, not counted


def counts(replica):
    with urllib.request.urlopen(f"http://{replica.metrics}/metrics") as response:
        text = response.read().decode()

    def total(name):
        return sum(float(value) for value in re.findall(name + r"\{[^}]*\} (\S+)", text))
    return total("moed_expert_hits_total"), total("moed_expert_misses_total")


def generate(replica, requests):
    for prompt, seed in requests:
        sampling = pb.SamplingParams(temperature=0.8, top_p=0.95, max_tokens=120, ignore_eos=True,
                                     seed=seed)
        list(replica.stub.Generate(pb.GenerateRequest(text=prompt, sampling_params=sampling,
                                                      stream=True)))


def together(replicas, requests):
    threads = [threading.Thread(target=generate, args=pair) for pair in zip(replicas, requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def hit_rate(budget, by_domain):
    replicas = [Replica(f"--expert-budget={budget}") for _ in range(2)]
    rnd = random.Random(3)
    jobs = [(i % 2, rnd.choice(DOMAINS[i % 2]), i) for i in range(REQUESTS)]
    rnd.shuffle(jobs)
    queues = [[], []]
    for turn, (domain, prompt, seed) in enumerate(jobs):
        queues[domain if by_domain else turn % 2].append((prompt, seed))
    together(replicas, [queue[:WARM_UP] for queue in queues])
    before = [counts(replica) for replica in replicas]
    together(replicas, [queue[WARM_UP:] for queue in queues])
    after = [counts(replica) for replica in replicas]
    for replica in replicas:
        replica.close()
    hits, misses = (sum(new[i] - old[i] for new, old in zip(after, before)) for i in (0, 1))
    return 100 * hits / (hits + misses)


def main():
    for budget in ("15%", "25%", "40%"):
        print(f"{budget}: by domain {hit_rate(budget, True):.1f} %, "
              f"in turn {hit_rate(budget, False):.1f} %", flush=True)


if __name__ == "__main__":
    main()
