"""P12 and P19: over a long time, with bad requests and an index now and then, memory, files and threads do not grow.

NSFSE_SOAK gives the seconds, as `make soak` does; without it the test is skipped.
"""

import os
import random
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("starlette")

from nsfse_runtime import Gallery
from tests.galleries import save_images
from tests.serving import image, multipart, open_served
from tests.serving_process import Process

SECONDS = float(os.environ.get("NSFSE_SOAK", "0"))
pytestmark = [
    pytest.mark.skipif(not SECONDS, reason="a soak test is run by `make soak`"),
    pytest.mark.skipif(sys.platform != "linux", reason="files and threads are counted in /proc"),
    pytest.mark.timeout(SECONDS + 600),
]
CLIENTS, INDEX_EVERY, GROWTH_MB = 3, 10.0, 50


def requests(seed):
    """Yield bodies for ever: good queries, malformed images, odd texts and forms that are none."""
    chance = random.Random(seed)
    while True:
        data = image(chance.randrange(1000), (chance.randint(8, 200),) * 2, chance.choice(("PNG", "JPEG", "WEBP")))
        text = chance.choice(("make it red", "", "\0", "x" * 3000, "\u202ered", "in blue"))
        cut = data[: chance.randrange(len(data))] if chance.random() < 0.3 else data
        kind, body = multipart([("texts", text)], [("reference_images", cut)])
        yield kind, (body if chance.random() < 0.9 else body[:-9])


def test_nothing_grows(tmp_path):
    served = open_served(tmp_path)
    end = time.monotonic() + SECONDS
    statuses, samples = Counter(), []

    def ask(seed):
        bodies = requests(seed)
        while time.monotonic() < end:
            kind, body = next(bodies)
            statuses[process.post("/v1/query", body, kind)] += 1

    with Process(tmp_path / "shop.gallery") as process, ThreadPoolExecutor(CLIENTS) as pool:
        process.wait_until_ready()
        clients = [pool.submit(ask, seed) for seed in range(CLIENTS)]
        index_due, number = time.monotonic(), 100
        while time.monotonic() < end:
            time.sleep(1)
            samples.append(sample(process))
            if time.monotonic() > index_due:
                save_images(tmp_path / "shop", 1, first=(number := number + 1))
                with Gallery.open(tmp_path / "shop.gallery", served.model) as writer:
                    writer.sync(tmp_path / "shop")
                index_due = time.monotonic() + INDEX_EVERY
        for client in clients:
            client.result()
        assert process.get("/readyz") == 200
    print(dict(statuses), samples[len(samples) // 4], samples[-1])
    assert not [status for status in statuses if status >= 500]
    early, late = samples[len(samples) // 4 : len(samples) // 2], samples[-len(samples) // 4 :]
    memory, files, threads = (
        [statistics.median(one[kind] for one in part) for part in (early, late)] for kind in range(3)
    )
    assert memory[1] - memory[0] < GROWTH_MB
    assert files[1] <= files[0] + 4 and threads[1] <= threads[0] + 1


def sample(process):
    """Return the server's memory in MB, its open files and its threads."""
    folder = f"/proc/{process.child.pid}"
    return (
        process.metric("process_resident_memory_bytes") / 1e6,
        len(os.listdir(f"{folder}/fd")),
        len(os.listdir(f"{folder}/task")),
    )
