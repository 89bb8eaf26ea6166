"""The trajectory viewer: real and imagined episodes, live or kept, to play, to scrub and to compare.

run.watch ─► Poller ─► Feed ─► strips and curves ─► static/viewer.js
                         ▲                               │ save, download, dream audit
                         └───────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import traitlets

from accerl.config import ConfigError
from accerl.notebook.dream_audit import Film, audited
from accerl.notebook.export import FORMATS, export
from accerl.notebook.feed import Episodes, Feed, Poller, Watched
from accerl.notebook.picture import episodes_picture
from accerl.notebook.strip import curves_of, facts_of, make_strip
from accerl.notebook.view import View, assets
from accerl.types import Trajectory


class TrajectoryViewer(View):
    """Shows trajectories of a run while it goes on, or those that it is given.

        TrajectoryViewer(run)
        TrajectoryViewer(run.trajectories(16))

    Args:
        source: a run, going on or ended, or trajectories.
        keep: episodes that can be looked at, the newest.
        world_model: of the dream audit; None: the one that the run imagines with.
    """

    name: ClassVar[str] = "viewer"
    _esm = assets("viewer")["_esm"]
    _css = assets("viewer")["_css"]

    state = traitlets.Unicode("").tag(sync=True)
    """Of the run."""
    shown = traitlets.List(traitlets.Int()).tag(sync=True)
    """Numbers of the episodes that are looked at, one or two; empty: the newest, as it comes."""
    title = traitlets.Unicode("").tag(sync=True)
    _poller: Poller | None = None

    def __init__(self, source: Watched | Sequence[Trajectory], keep: int = 48, world_model: Any = None):
        super().__init__()
        self._source = source
        self._world_model = world_model
        self._films: dict[tuple[str, int], Film] = {}
        self._work = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trajectory viewer")
        self._feed = Feed(keep, self._changed)
        self.on_msg(self._answer)
        if isinstance(source, Sequence):
            self._feed.add(source)
        else:
            self.title = str(getattr(source, "name", ""))
            self._poller = Poller(source, self._feed, self._set_state)

    def add(self, trajectories: Sequence[Trajectory]) -> None:
        """Show these too."""
        self._feed.add(trajectories)

    def close(self) -> None:
        """Look at the run no more, and take the widget away."""
        if self._poller is not None:
            self._poller.close()
        super().close()

    @property
    def numbers(self) -> list[int]:
        """Of the episodes that are there, oldest first."""
        return list(self._feed.episodes())

    def trajectory(self, number: int) -> Trajectory:
        """Raises KeyError if it has left."""
        return self._feed.get(number)

    def png(self) -> bytes:
        """Film strip and curves of what is looked at."""
        episodes = self._feed.episodes()
        numbers = [number for number in self.shown if number in episodes] or list(episodes)[-1:]
        chosen = [(number, episodes[number]) for number in numbers]
        return episodes_picture([(self._facts(*each), each[1].images, self._curves(each[1])) for each in chosen])

    def audit(self, number: int) -> int:
        """Play an episode's actions in simulator and world model; returns the number of the film of both.

        Raises:
            ConfigError: what is missing for that, and how to get it.
        """
        film = audited(self._feed.get(number), getattr(self._source, "config", None), self._world_model)
        self._films[_key(film.trajectory)] = film
        (new,) = self._feed.add([film.trajectory])
        return new

    def _synchronized(self) -> dict[str, Any]:
        return {**super()._synchronized(), "episodes": self._sent(self._feed.episodes())}

    def _sent(self, episodes: Episodes) -> list[dict[str, Any]]:
        return [self._episode(number, trajectory) for number, trajectory in episodes.items()]

    def _episode(self, number: int, trajectory: Trajectory) -> dict[str, Any]:
        strip = make_strip(trajectory.images)
        return {
            **self._facts(number, trajectory),
            "curves": self._curves(trajectory),
            "strip": strip.layout(),
            "jpeg": strip.jpeg,
        }

    def _facts(self, number: int, trajectory: Trajectory) -> dict[str, Any]:
        film = self._films.get(_key(trajectory))
        return {**facts_of(trajectory, number), **(film.facts if film else {})}

    def _curves(self, trajectory: Trajectory) -> Mapping[str, list[float | None]]:
        film = self._films.get(_key(trajectory))
        return film.curves if film else curves_of(trajectory)

    def _changed(self, new: Episodes, gone: Episodes) -> None:
        self._tell("episodes", self._sent(new), gone=list(gone))
        for trajectory in gone.values():
            self._films.pop(_key(trajectory), None)

    def _tell(self, kind: str, episodes: Sequence[dict[str, Any]], **more: Any) -> None:
        """Pictures travel as buffers, in the order of their episodes."""
        buffers = [episode.pop("jpeg") for episode in episodes]
        self.send({"kind": kind, "episodes": list(episodes), **more}, buffers)

    def _set_state(self, state: str) -> None:
        self.state = state

    def _answer(self, _: Any, message: Mapping[str, Any], buffers: Any) -> None:
        """To the browser, which asks; what takes long goes to a thread."""
        match message:
            case {"kind": "hello"}:
                self._tell("all", self._sent(self._feed.episodes()))
            case {"kind": "export", "number": int(number), "format": str(suffix)} if suffix in FORMATS:
                self._work.submit(self._export, number, suffix)
            case {"kind": "audit", "number": int(number)}:
                self._work.submit(self._audit, number)

    def _export(self, number: int, suffix: str) -> None:
        try:
            trajectory = self._feed.get(number)
        except KeyError:
            self.send({"kind": "said", "number": number, "text": "it has left the list"})
            return
        name = f"{trajectory.task}-{number}.{suffix}"
        self.send({"kind": "file", "name": name, "type": FORMATS[suffix]}, [export(trajectory, suffix)])

    def _audit(self, number: int) -> None:
        try:
            new = self.audit(number)
        except (ConfigError, KeyError, ImportError) as error:
            self.send({"kind": "said", "number": number, "text": str(error)})
        else:
            self.send({"kind": "audited", "number": number, "film": new})


def _key(trajectory: Trajectory) -> tuple[str, int]:
    return trajectory.origin, trajectory.episode
