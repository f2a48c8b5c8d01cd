"""The pessimistic reward over HTTP, in the form that OpenRLHF asks for; extra ``serve``.

    POST /get_reward   {"query": [...], "prompts": [...], "labels": [...]}
                    -> {"rewards": [...], "scores": [...], "extra_logs": {...}}
    GET /health     -> {"status": "ok", ...}

`RewardApp` is an ASGI application of its own, for any server; `serve` runs it with uvicorn. Requests of one
moment are answered in one batch. Nobody is asked who they are: the default address is this machine's own.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, NoReturn

from dal_native import _validate

from .openrlhf_reward import LOGGED, OpenRLHFReward

__all__ = ["RewardApp", "serve"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Bodies that are held at once at most, in bytes; who comes beyond is asked to come again.
MOST_HELD = 512 * 2**20
#: Longer bodies are read into texts beside the event loop.
_LONG_BODY = 2**16
#: Seconds and bytes that an unwanted body is read before its refusal is sent: a client that is still
#: sending would not see it.
_PATIENCE, _PATIENCE_BYTES = 2.0, 64 * 2**20

_log = logging.getLogger("dal_learn.serve")


class _Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, problem: str, **headers: str) -> None:
        super().__init__(problem)
        self.status, self.problem, self.headers = status, problem, headers


class _Gone(Exception):
    """The client hung up."""


class RewardApp:
    """An ASGI application around a reward function.

    Parameters
    ----------
    function : OpenRLHFReward
    max_body : int, default 16 MiB
        The largest request, in bytes.
    body_seconds : float, default 30
        Within which a request must have arrived.

    Notes
    -----
    What is wrong with a request is answered as {"error": "..."} with 400 (not such JSON), 404, 405, 408 (too
    slow), 411 (no length), 413 (too large), 415 (not JSON), 422 (a completion that cannot be scored), 500
    (the encoder failed) or 503 (no time or no room); never with a reward.

    Examples
    --------
    >>> import numpy as np
    >>> from dal_learn.encoders import HashingEncoder
    >>> from dal_learn.integrations.scorer import RewardScorer
    >>> from dal_learn.pessimistic_reward import PessimisticReward
    >>> encoder = HashingEncoder(8)
    >>> reward = PessimisticReward(np.ones(8), np.eye(8), 0.5, encoder=encoder.fingerprint)
    >>> RewardApp(OpenRLHFReward(RewardScorer(reward, encoder))).health()["status"]
    'ok'
    """

    def __init__(
        self, function: OpenRLHFReward, *, max_body: int = 16 * 2**20, body_seconds: float = 30.0
    ) -> None:
        if not isinstance(function, OpenRLHFReward):
            raise ValueError(f"function is a {type(function).__name__}; expected an OpenRLHFReward")
        self.function = function
        self.max_body = _validate.whole(max_body, "max_body", 1)
        self.body_seconds = _validate.number(body_seconds, "body_seconds", 0.0)
        self._held = 0  # bytes of bodies, changed on the event loop only

    def health(self) -> dict[str, Any]:
        """What GET /health answers.

        Returns
        -------
        dict
        """
        scorer = self.function.scorer
        return {
            "status": "ok",
            "kind": scorer.kind,
            "encoder": scorer.encoder.name,
            "text": scorer.text,
            "features": scorer.reward_model.d,
            "radius": scorer.reward_model.radius,
            "statistics": scorer.statistics(),
        }

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise ValueError(f"scope is of type {scope['type']!r}; expected 'http'")
        try:
            await _reply(send, 200, await self._answer(scope, receive))
        except _Refused as refused:
            await _reply(send, refused.status, {"error": refused.problem}, refused.headers)
        except _Gone:
            return
        except Exception as error:
            _log.exception("a request failed")
            await _reply(send, 500, {"error": f"failed ({type(error).__name__}: {error})"})

    async def _answer(self, scope: Mapping[str, Any], receive: Receive) -> dict[str, Any]:
        path, method = scope["path"], scope["method"]
        allowed = {"/get_reward": "POST", "/health": "GET"}.get(path)
        if allowed is None:
            await self._refuse(scope, receive, 404, "no such page; expected /get_reward or /health")
        if method != allowed:
            await self._refuse(scope, receive, 405, f"{path} takes {allowed} only", allow=allowed)
        if path == "/health":
            return self.health()
        headers = _headers(scope)
        media, _, rest = headers.get("content-type", "").partition(";")
        charset = rest.strip().lower().removeprefix("charset=").strip('"') or "utf-8"
        encoded = headers.get("content-encoding", "identity").lower()
        if media.strip().lower() != "application/json" or charset != "utf-8" or encoded != "identity":
            await self._refuse(
                scope, receive, 415, "expected Content-Type: application/json, in UTF-8, plain"
            )
        length = headers.get("content-length")
        if length is None and "transfer-encoding" not in headers:
            raise _Refused(411, "expected a Content-Length", connection="close")
        if length is not None and not length.isdigit():
            raise _Refused(400, "Content-Length is not a number", connection="close")
        if length is not None and int(length[:20]) > self.max_body:
            await self._refuse(scope, receive, 413, f"the body is larger than {self.max_body} bytes")
        body = await self._body(receive)
        try:
            if len(body) > _LONG_BODY:
                pairs = await asyncio.to_thread(self._pairs, body)
            else:
                pairs = self._pairs(body)
            return await self._rewards(pairs)
        finally:
            self._held -= len(body)

    async def _body(self, receive: Receive) -> bytes:
        """The whole body, in time and within bounds; counted as held until it is answered."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.body_seconds):
                more = True
                while more:
                    part, more = await _part(receive)
                    parts.append(part)
                    size += len(part)
                    self._held += len(part)
                    if size > self.max_body:
                        await _discard(receive, more)
                        problem = f"the body is larger than {self.max_body} bytes"
                        raise _Refused(413, problem, connection="close")
                    if self._held > MOST_HELD:
                        await _discard(receive, more)
                        problem = "too many requests at once; come again"
                        raise _Refused(503, problem, connection="close", **{"retry-after": "1"})
        except BaseException as error:
            self._held -= size
            if isinstance(error, TimeoutError):
                problem = f"the body did not arrive within {self.body_seconds:g} seconds"
                raise _Refused(408, problem, connection="close") from None
            raise
        return b"".join(parts)

    async def _refuse(
        self, scope: Mapping[str, Any], receive: Receive, status: int, problem: str, **headers: str
    ) -> NoReturn:
        """Refuse a request whose body nobody wants."""
        if "expect" not in _headers(scope):  # else the client waits to be asked for the body
            await _discard(receive, True)
        raise _Refused(status, problem, connection="close", **headers)

    def _pairs(self, body: bytes) -> list[tuple[str, str] | None]:
        """Prompts and completions of a body, or a refusal."""
        try:
            asked = json.loads(body.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_each_once)
        except RecursionError:
            raise _Refused(400, "the body is nested too deeply") from None
        except ValueError as error:  # not UTF-8 either
            raise _Refused(400, f"the body is not JSON ({error})") from None
        if not isinstance(asked, dict):
            raise _Refused(400, 'expected an object {"query": [...], "prompts": [...], "labels": [...]}')
        for name in ("query", "prompts"):
            texts = asked.get(name)
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise _Refused(400, f"{name} is {'missing' if texts is None else 'not a list of texts'}")
            try:
                "".join(texts).encode("utf-8")
            except UnicodeEncodeError:
                raise _Refused(400, f"{name} holds half of a surrogate pair, which is no text") from None
        queries, labels = asked["query"], asked.get("labels")
        for name, given in (("prompts", asked["prompts"]), ("labels", labels)):
            if isinstance(given, list) and len(given) != len(queries):
                raise _Refused(400, f"{name} has length {len(given)}; expected {len(queries)}, as query")
        if labels is not None and not isinstance(labels, list):
            raise _Refused(400, "labels is not a list")
        try:
            return self.function.pairs(queries, asked["prompts"])
        except ValueError as error:
            raise _Refused(422, str(error)) from None

    async def _rewards(self, pairs: list[tuple[str, str] | None]) -> dict[str, Any]:
        try:
            found = await self.function.rewards_async(pairs)
        except ValueError as error:
            raise _Refused(422, str(error)) from None
        except TimeoutError as error:
            raise _Refused(503, str(error)) from None
        logs = {f"dal_{name}": getattr(found, name) for name in LOGGED}
        return {"rewards": found.rewards, "scores": found.preference, "extra_logs": logs}


def _headers(scope: Mapping[str, Any]) -> dict[str, str]:
    return {name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]}


async def _part(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise _Gone
    return message.get("body", b""), message.get("more_body", False)


async def _discard(receive: Receive, more: bool) -> None:
    """Read what the client is sending, for a while, and forget it."""
    most = _PATIENCE_BYTES
    try:
        async with asyncio.timeout(_PATIENCE):
            while more and most > 0:
                part, more = await _part(receive)
                most -= len(part)
    except TimeoutError:
        return


async def _reply(
    send: Send, status: int, answer: dict[str, Any], headers: Mapping[str, str] | None = None
) -> None:
    body = json.dumps(answer, allow_nan=False).encode()
    given = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    lines = [(name.encode(), text.encode()) for name, text in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object holds a name twice")
    return found


# ------------------------------------------------------------------------------------------------- serving


def serve(
    app: RewardApp,
    *,
    host: str = "127.0.0.1",
    port: int = 5000,
    ready: Callable[[str, Callable[[], None]], object] | None = None,
    head_seconds: float = 30.0,
    shutdown_seconds: int = 10,
) -> None:
    """Serve until Ctrl-C, SIGTERM or `stop`; what is being answered then is answered.

    Parameters
    ----------
    app : RewardApp
    host : str, default "127.0.0.1"
    port : int, default 5000
        0 takes a free one.
    ready : callable, optional
        Called once with the address and with `stop`, a function for any thread, when requests are taken.
    head_seconds : float, default 30
        Within which the first lines of a request must have arrived.
    shutdown_seconds : int, default 10
        For requests that are being answered at the end.

    Raises
    ------
    ImportError
        The extra is not installed.
    OSError
        The address cannot be used.

    Notes
    -----
    A signal is passed on once everything is answered: Ctrl-C as KeyboardInterrupt, SIGTERM as the end of the
    process. Outside the main thread no signal is listened to; `stop` then ends it.
    """
    uvicorn = _validate.require("uvicorn", "serve", "the reward server")
    _validate.whole(port, "port", 0)
    if port > 65535:
        raise ValueError(f"port is {port}; expected at most 65535")
    options = {
        "http": _protocol(_validate.number(head_seconds, "head_seconds", 0.0)),
        "loop": "asyncio",
        "ws": "none",
        "lifespan": "off",
        "interface": "asgi3",
        "log_config": None,
        "log_level": "error",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "timeout_graceful_shutdown": _validate.whole(shutdown_seconds, "shutdown_seconds", 0),
    }
    with _listening(host, port) as listener:
        server = uvicorn.Server(uvicorn.Config(app, **options))
        address = listener.getsockname()
        name = f"[{address[0]}]" if ":" in address[0] else address[0]
        begin = server.startup

        async def begin_and_tell(sockets: Any = None) -> None:
            await begin(sockets)
            if ready is not None:
                ready(f"http://{name}:{address[1]}/get_reward", lambda: setattr(server, "should_exit", True))

        server.startup = begin_and_tell
        server.run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """A listening socket; an address that cannot be used is an OSError here and now."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # names that are no names are a matter of IDNA
        raise OSError(f"host is {host!r}, which is no address here ({error})") from None
    family, *_, address = found[0]
    return socket.create_server(address[:2], family=family, backlog=2048)


def _protocol(head_seconds: float) -> type:
    """uvicorn's HTTP/1.1, with refusals in JSON and an end to waiting for the first lines of a request."""
    import h11

    base: Any = importlib.import_module("uvicorn.protocols.http.h11_impl").H11Protocol

    class Protocol(base):  # type: ignore[misc]
        _clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_watching()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._watch()
            else:
                self._stop_watching()

        def _watch(self) -> None:
            if self._clock is None:
                self._clock = self.loop.call_later(head_seconds, self._too_slow)

        def _stop_watching(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

        def _too_slow(self) -> None:
            idle = self.cycle is None or self.cycle.response_complete
            if idle and not self.transport.is_closing():
                self._refuse(408, f"no request arrived within {head_seconds:g} seconds")

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, msg)

        def _refuse(self, status: int, problem: str) -> None:
            body = json.dumps({"error": problem}).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
            self.transport.close()

    return Protocol
