"""What a viewer holds, and the thread that keeps it up to date."""

from __future__ import annotations

import threading

from accerl.notebook import feed as module
from accerl.notebook.feed import Feed, Poller
from accerl.recent import Recent, Seen
from tests.roles.fakes import trajectory


def test_only_the_newest_episodes_are_kept_and_those_that_leave_are_named():
    changes = []
    feed = Feed(3, lambda new, gone: changes.append((list(new), list(gone))))
    feed.add([trajectory(1, seed=seed, terminal=True) for seed in range(5)])
    feed.add([trajectory(1, seed=9, terminal=True)])
    assert list(feed.episodes()) == [3, 4, 5]
    assert changes == [([2, 3, 4], [0, 1]), ([5], [2])]


def test_a_segment_goes_to_the_episode_that_it_continues():
    feed = Feed(8)
    feed.add([trajectory(2, episode=1), trajectory(2, seed=1, episode=2)])
    feed.add([trajectory(3, episode=1, first_step=2, terminal=True)])
    assert list(feed.episodes()) == [0, 1]
    assert feed.get(0).num_decisions == 5 and feed.get(0).terminal
    feed.add([trajectory(2, episode=1, first_step=5)])
    assert list(feed.episodes()) == [0, 1, 2], "an episode that has ended is not continued"


class FakeRun:
    """Shows one trajectory more each time it is asked; its cluster dies at the third."""

    def __init__(self):
        self.recent = Recent()
        self.calls = []
        self.asked = threading.Semaphore(0)

    def watch(self, cursor, num=8):
        self.calls.append(dict(cursor))
        self.asked.release()
        if len(self.calls) == 3:
            raise ConnectionError("the run's cluster is not there any more")
        self.recent.add(trajectory(1, seed=len(self.calls), terminal=True))
        count, new = self.recent.newest(num, cursor.get("replay-0", 0))
        return Seen({"replay-0": count}, list(new))

    def status(self):
        return {"state": "running"} if len(self.calls) < 3 else {"state": "dead", "reason": "its processes are gone"}


def test_the_thread_asks_only_for_what_is_new_and_outlives_the_cluster(monkeypatch):
    monkeypatch.setattr(module, "POLL_EVERY_S", 0.01)
    run, states, feed = FakeRun(), [], Feed(8)
    poller = Poller(run, feed, states.append)
    for _ in range(5):
        assert run.asked.acquire(timeout=10)
    poller.close()
    assert run.calls[:4] == [{}, {"replay-0": 1}, {"replay-0": 2}, {"replay-0": 2}]
    assert list(feed.episodes())[:3] == [0, 1, 2]
    assert states[:3] == ["running", "the run's cluster is not there any more", "dead: its processes are gone"]
