"""Workers that are replaced after a number of requests: nobody notices, and none is missing."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Faulty, OpenLoop

LONG = pytest.param(6000, marks=[pytest.mark.stress, pytest.mark.timeout(900)])


@pytest.mark.parametrize("number", [600, LONG])
def test_every_hundred_requests(faulty: "Faulty", open_loop: "type[OpenLoop]", number: int) -> None:
    server = faulty(workers=2, recycle={"max_requests": 100, "jitter": "10%", "min_lifetime": "0s"})
    fewest = 2
    with open_loop(server, rate=150) as client:
        while client.counts[0] < number:
            client.wait_more(10)
            fewest = min(fewest, len(server.pids()))
    client.assert_none_failed()
    assert fewest == 2  # the next one stands before the last one goes
    used = client.result["workers"]
    assert len(used) >= number // 200
    # A worker that leaves answers what comes on its kept connections; that is all.
    assert max(used.values()) < 300, used
