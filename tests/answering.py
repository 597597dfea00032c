"""The keeper's end of links, for tests of those who call: a thread that answers."""

from __future__ import annotations

import queue
import socket
import threading
from typing import Any

from poolkeeper.arena import ArenaPool
from poolkeeper.link import Handshake, Link
from poolkeeper.messages import Code, unpack
from poolkeeper.payload import loads_view, map_large
from poolkeeper.session import Session
from poolkeeper.versions import Verdict
from tests.helpers import PATIENCE

__all__ = ["KEY", "Answering"]

KEY = b"k" * 32


class Answering:
    """The keeper's end: a thread that welcomes whoever calls, and resends at once what is not acknowledged."""

    def __init__(self, path: str) -> None:
        self.session = Session()
        self.refuses = False
        self.links: queue.SimpleQueue[Link] = queue.SimpleQueue()
        self.arenas = ArenaPool()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.thread = threading.Thread(target=self.answer)
        self.thread.start()

    def answer(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            link, handshake = Link(sock), Handshake(KEY)
            link.send(handshake.challenge())
            frames: list[Any] = []
            while not frames:
                frames, _ = link.receive()
            hello = handshake.verify(frames[0])
            link.reader.authenticated = True
            if self.refuses:
                link.send(handshake.refusal(hello, Verdict.DRAIN, "has protocol 0"))
                self.links.put(link)
                continue
            resend = self.session.resume(hello["received"])
            # In one piece with the welcome, so that it comes early.
            frame = handshake.welcome(hello, self.session.received)
            for data, fds in resend:
                assert not fds
                frame += data
            link.send(frame)
            self.links.put(link)

    def link(self) -> Link:
        return self.links.get(timeout=PATIENCE)

    def results(self, link: Link) -> list[tuple[Any, ...]]:
        """What comes next: (first index, codes, values), arenas loaded."""
        heard: list[tuple[Any, ...]] = []
        while not heard:
            frames, alive = link.receive()
            assert alive
            for frame in frames:
                fds = link.take_fds(frame)
                if self.session.receive(frame):
                    for _, first, codes, values, _ in unpack(frame.body):
                        loaded = [
                            bytes(loads_view(map_large(value, fds.pop(0), int))) if code == Code.ARENA else value
                            for code, value in zip(codes or [0] * len(values), values, strict=True)
                        ]
                        heard.append((first, loaded))
        return heard

    def end(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(PATIENCE)
        while not self.links.empty():
            self.links.get().close()
        self.arenas.close()
