"""The reward over HTTP: its answers, and what it says to requests that are wrong, huge, slow or hostile."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dal_learn import cli
from dal_learn.encoders import HashingEncoder, feature_fingerprint
from dal_learn.integrations import server as module
from dal_learn.integrations.openrlhf_reward import OpenRLHFReward
from dal_learn.integrations.scorer import RewardScorer
from dal_learn.integrations.server import RewardApp, serve
from dal_learn.pessimistic_reward import PessimisticReward

D = 16
WORDS = ["yes", "no", "perhaps", "a longer answer"]
JSON = {"Content-Type": "application/json"}
MOST = 20_000


class Fragile(HashingEncoder):
    def encode(self, texts, progress=None):
        if "broken" in "".join(texts):
            raise RuntimeError("the encoder is broken")
        return super().encode(texts, progress)


def made_reward(text="response"):
    rng = np.random.default_rng(7)
    seen = rng.standard_normal((2 * D, D))
    name = feature_fingerprint(HashingEncoder(D), text)
    return PessimisticReward(rng.standard_normal(D), np.eye(D) + seen.T @ seen, 1.0, encoder=name)


@contextlib.contextmanager
def running(app, **options):
    """The port of a server in a thread of its own."""
    pytest.importorskip("uvicorn", reason="extra 'serve' is not installed")
    started, found = threading.Event(), {}

    def ready(address, stop):
        found.update(address=address, stop=stop)
        started.set()

    thread = threading.Thread(target=serve, args=(app,), kwargs={"port": 0, "ready": ready, **options})
    thread.start()
    assert started.wait(30)
    try:
        yield int(found["address"].rsplit(":", 1)[1].split("/")[0])
    finally:
        found["stop"]()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def app():
    scorer = RewardScorer(made_reward(), Fragile(D), window=0.005)
    return RewardApp(OpenRLHFReward(scorer), max_body=MOST, body_seconds=0.5)


@pytest.fixture(scope="module")
def port(app):
    with running(app, head_seconds=1.0) as port:
        yield port


def ask(port, body, method="POST", path="/get_reward", headers=JSON):
    """Status and answer of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        body = json.dumps(body) if isinstance(body, dict | list) else body
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        assert answer.getheader("Content-Type") == "application/json"
        return answer.status, json.loads(answer.read())


def told(port, raw):
    """Status and answer to bytes as they are."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(raw)
        head, _, body = b"".join(iter(lambda: line.recv(65536), b"")).partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    return int(head.split()[1]), json.loads(body)


def good(words=WORDS):
    return {"query": [f"p{w}" for w in words], "prompts": ["p"] * len(words), "labels": [None] * len(words)}


@pytest.fixture(autouse=True)
def still_answering(request, app):
    """After every test the server answers, and holds nothing that it has answered."""
    yield
    if "port" in request.fixturenames:
        status, answer = ask(request.getfixturevalue("port"), good())
        assert status == 200 and len(answer["rewards"]) == len(WORDS)
        assert app._held == 0


# ------------------------------------------------------------------------------------------------ answers


def test_rewards_in_the_documented_form(port, app):
    status, answer = ask(port, good())
    expected = app.function.scorer.estimates(["?"] * len(WORDS), WORDS)
    assert status == 200
    assert set(answer) == {"rewards", "scores", "extra_logs"}
    assert answer["rewards"] == [x.reward for x in expected]
    assert answer["scores"] == pytest.approx([1 / (1 + np.exp(-x.reward)) for x in expected])
    assert answer["extra_logs"]["dal_mean"] == [x.mean for x in expected]
    assert {len(values) for values in answer["extra_logs"].values()} == {len(WORDS)}
    without_labels = {name: texts for name, texts in good().items() if name != "labels"}
    assert ask(port, without_labels) == (200, answer)
    assert ask(port, {"query": [], "prompts": []})[1]["rewards"] == []
    assert ask(port, good(), headers={"Content-Type": 'Application/JSON; charset="UTF-8"'}) == (200, answer)
    long = good(["x" * 5000] * 3)
    assert ask(port, long)[0] == 200


def test_long_bodies_are_read_beside_the_event_loop(monkeypatch, port):
    expected = ask(port, good())
    monkeypatch.setattr(module, "_LONG_BODY", 0)
    assert ask(port, good()) == expected
    assert ask(port, "[")[0] == 400


def test_chunked_and_kept_alive(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        for _ in range(3):
            body = json.dumps(good()).encode()
            connection.request("POST", "/get_reward", iter([body[:9], body[9:]]), JSON, encode_chunked=True)
            answer = connection.getresponse()
            assert answer.status == 200 and len(json.loads(answer.read())["rewards"]) == 4


def test_health(port, app):
    status, answer = ask(port, None, "GET", "/health", {})
    assert status == 200
    assert (answer["status"], answer["kind"], answer["features"]) == ("ok", "lower_bound", D)
    assert set(answer["statistics"]) == set(app.function.scorer.statistics())


def test_concurrent_requests_are_answered_together(port, app):
    before = app.function.scorer.statistics()
    words = [f"{w} {k}" for k in range(16) for w in WORDS]
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(lambda w: ask(port, good([w]))[1]["rewards"], words))
    fresh = RewardScorer(made_reward(), HashingEncoder(D))
    assert [x for (x,) in found] == fresh.rewards(["?"] * 64, words)
    after = app.function.scorer.statistics()
    assert after["batches"] - before["batches"] < 64


def test_two_servers_and_an_application_without_one(app):
    """Any ASGI server may run it; nothing is shared between two."""

    async def direct():
        sent, body = [], json.dumps(good()).encode()
        parts = [
            {"type": "http.request", "body": body[:5], "more_body": True},
            {"body": body[5:], "type": ""},
        ]
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        scope = {"type": "http", "path": "/get_reward", "method": "POST", "headers": headers}

        async def receive():
            return parts.pop(0)

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        parts.append({"type": "http.disconnect"})
        gone = len(sent)
        await app(scope, receive, send)
        assert len(sent) == gone  # nobody is there to be told
        with pytest.raises(ValueError, match="scope is of type 'websocket'"):
            await app({"type": "websocket"}, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])

    expected = asyncio.run(direct())
    with running(app) as one, running(app) as two:
        assert ask(one, good()) == ask(two, good()) == expected


def test_ipv6(app):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with running(app, host="::1") as port:
        connection = http.client.HTTPConnection("::1", port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("", 400, "not JSON"),
        ("nonsense", 400, "not JSON"),
        ("[]", 400, "expected an object"),
        ("{}", 400, "query is missing"),
        (b"\xff\xfe{}", 400, "not JSON"),
        (b'{"query": ["\xc3"], "prompts": ["p"]}', 400, "not JSON"),
        ('{"query": ["\\ud800"], "prompts": ["p"]}', 400, "surrogate"),
        ('{"query": ["py"], "prompts": ["p"], "labels": [NaN]}', 400, "NaN is not a JSON number"),
        ('{"query": ["py"], "prompts": ["p"], "labels": [-Infinity]}', 400, "-Infinity is not a JSON number"),
        ('{"query": ["py"], "query": ["py"], "prompts": ["p"]}', 400, "holds a name twice"),
        ('{"query": ["py"], "prompts": ["p"], "labels": ' + "[" * 9000 + "]" * 9000 + "}", 400, "too deeply"),
        ({"prompts": ["p"]}, 400, "query is missing"),
        ({"query": ["py"]}, 400, "prompts is missing"),
        ({"query": "py", "prompts": ["p"]}, 400, "query is not a list of texts"),
        ({"query": ["py"], "prompts": [7]}, 400, "prompts is not a list of texts"),
        ({"query": ["py"], "prompts": [None]}, 400, "prompts is not a list of texts"),
        ({"query": ["py"], "prompts": ["p", "p"]}, 400, "prompts has length 2; expected 1, as query"),
        ({"query": ["py"], "prompts": ["p"], "labels": []}, 400, "labels has length 0; expected 1"),
        ({"query": ["py"], "prompts": ["p"], "labels": "l"}, 400, "labels is not a list"),
        ({"query": ["py"], "prompts": ["q"]}, 422, "does not begin with its prompt"),
        ({"query": ["p</s>"], "prompts": ["p"]}, 422, "expected text that is not empty"),
        ({"query": ["pbroken"], "prompts": ["p"]}, 500, "RuntimeError: the encoder is broken"),
    ],
)
def test_wrong_bodies(port, body, status, words):
    got, answer = ask(port, body)
    assert got == status and words in answer["error"] and set(answer) == {"error"}


def test_wrong_pages_methods_and_kinds(port):
    assert ask(port, good(), path="/")[0] == 404
    assert ask(port, good(), path="/get_reward/../../etc/passwd")[0] == 404
    assert ask(port, None, "GET")[0] == 405
    assert ask(port, good(), path="/health")[0] == 405
    assert ask(port, good(), "DELETE")[0] == 405
    for kind in ("text/plain", "application/json; charset=latin-1", "multipart/form-data"):
        status, answer = ask(port, good(), headers={"Content-Type": kind})
        assert status == 415 and "expected Content-Type: application/json" in answer["error"]
    assert ask(port, json.dumps(good()), headers={})[0] == 415
    assert ask(port, good(), headers={**JSON, "Content-Encoding": "gzip"})[0] == 415


def test_huge_bodies(monkeypatch, port):
    for size in (MOST + 1, 4 * MOST, 200 * MOST):
        status, answer = ask(port, b" " * size)
        assert status == 413 and f"larger than {MOST} bytes" in answer["error"]
    head = "POST /get_reward HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    waits = f"{head}Content-Length: {10**18}\r\nExpect: 100-continue\r\n\r\n".encode()
    assert told(port, waits)[0] == 413
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    assert told(port, f"{head}Content-Length: {10**18}\r\n\r\n".encode())[0] == 413
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        parts = (b" " * 1000 for _ in range(2 * MOST // 1000))
        connection.request("POST", "/get_reward", parts, JSON, encode_chunked=True)
        assert connection.getresponse().status == 413


def test_too_many_bytes_at_once(monkeypatch, port):
    monkeypatch.setattr(module, "MOST_HELD", 10)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/get_reward", json.dumps(good()), JSON)
        answer = connection.getresponse()
        assert answer.status == 503 and answer.getheader("Retry-After") == "1"
    monkeypatch.undo()


HEAD = b"POST /get_reward HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (HEAD + b"Connection: close\r\n\r\n", 411),
        (HEAD + b"Content-Length: -5\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: many\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400),
        (HEAD + b"Content-Length: 9\r\n\r\n{}", 408),  # shorter than it says
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", 408),  # no end
        (
            HEAD + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}   ",
            400,
        ),  # longer: the rest is no request
        (b"GET / HTTP/1.1\r\nno header\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
        (b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET /heal", 408),
        (b"", 408),
    ],
    ids=repr,
)
def test_requests_that_are_not_http(port, raw, status):
    got, answer = told(port, raw)
    assert got == status and set(answer) == {"error"}


def test_a_body_that_trickles_in_does_not_hold_up_others(port):
    stop = threading.Event()

    def trickle():
        with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
            line.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
            with contextlib.suppress(OSError):
                while not stop.wait(0.01):
                    line.sendall(b" ")
            return line.recv(100)

    with ThreadPoolExecutor(32) as pool:
        slow = [pool.submit(trickle) for _ in range(32)]
        for _ in range(20):
            assert ask(port, good())[0] == 200
        time.sleep(0.6)
        stop.set()
        for call in slow:
            with contextlib.suppress(ConnectionResetError):
                assert b" 408 " in call.result()


def test_clients_that_hang_up_leave_nothing_behind(port):
    for raw in (HEAD + b"Content-Length: 1000\r\n\r\n{", HEAD + b"Content-Length: 2\r\n\r\n{}", b"GET"):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
                line.sendall(raw)


def test_a_deadline_and_a_bug_of_ours_are_errors_too(monkeypatch, caplog):
    scorer = RewardScorer(made_reward(), HashingEncoder(D), window=0.2, deadline=0.001)
    app = RewardApp(OpenRLHFReward(scorer))
    with running(app) as port:
        status, answer = ask(port, good())
        assert status == 503 and "no reward within 0.001 seconds" in answer["error"]
        monkeypatch.setattr(app, "health", lambda: {}[0])
        status, answer = ask(port, None, "GET", "/health", {})
        assert status == 500 and "KeyError" in answer["error"]
    assert "a request failed" in caplog.text


def test_what_is_being_answered_at_the_end_is_answered():
    inside = threading.Event()

    class Slow(HashingEncoder):
        def encode(self, texts, progress=None):
            inside.set()
            time.sleep(0.5)
            return super().encode(texts, progress)

    scorer = RewardScorer(made_reward(), Slow(D))
    with ThreadPoolExecutor(1) as pool:
        with running(RewardApp(OpenRLHFReward(scorer))) as port:
            call = pool.submit(ask, port, good())
            assert inside.wait(30)
        status, answer = call.result(30)
    assert status == 200 and len(answer["rewards"]) == len(WORDS)
    with pytest.raises(ConnectionRefusedError):
        ask(port, good())


def test_arguments_are_checked(app):
    with pytest.raises(ValueError, match="expected an OpenRLHFReward"):
        RewardApp(None)
    with pytest.raises(ValueError, match="max_body"):
        RewardApp(app.function, max_body=0)
    pytest.importorskip("uvicorn", reason="extra 'serve' is not installed")
    with pytest.raises(ValueError, match="port is 65536"):
        serve(app, port=65536)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        serve(app, port=taken.getsockname()[1])
    for host in ("no such host", "a..b", ""):
        with pytest.raises(OSError, match=f"host is '{host}', which is no address"):
            serve(app, host=host)


def test_without_the_extra_the_reason_is_given(monkeypatch, app):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ImportError, match=r"dal-native\[serve\]"):
        serve(app)


# -------------------------------------------------------------------------------------------- command line


def run(*words):
    """Exit code of the command line."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return ended.value.code or 0


@pytest.fixture
def reward_file(tmp_path):
    path = tmp_path / "pessimistic.safetensors"
    made_reward().save(path)
    return path


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_dal_serve_until_it_is_stopped(reward_file, stop):
    pytest.importorskip("uvicorn", reason="extra 'serve' is not installed")
    command = ["serve", "--reward", reward_file, "--encoder", f"hashing:{D}", "--port", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dal_learn.cli", *map(str, command), "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with process:
        told = json.loads(process.stdout.readline())
        assert process.stderr.readline().startswith(f"dal: serving lower_bound at {told['address']}")
        assert told["address"].startswith("http://127.0.0.1:") and told["features"] == D
        port = int(told["address"].rsplit(":", 1)[1].split("/")[0])
        status, answer = ask(port, good())
        assert status == 200
        assert answer["rewards"] == RewardScorer(made_reward(), HashingEncoder(D)).rewards(["?"] * 4, WORDS)
        process.send_signal(stop)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == (0 if stop == signal.SIGINT else -signal.SIGTERM)
    if stop == signal.SIGINT:
        assert errors == "dal: stopped after 4 completions\n"


def test_dal_serve_writes_a_file_for_openrlhf(reward_file, tmp_path, capsys):
    path = tmp_path / "reward.py"
    command = ["serve", "--reward", reward_file, "--encoder", f"hashing:{D}", "--write-openrlhf", path]
    assert run(*command, "--unscorable", "-1", "--radius", "0", "--batch-encoder") == 0
    assert "--reward.remote_url" in capsys.readouterr().out
    names = {}
    exec(compile(path.read_text(), "reward.py", "exec"), names)
    found = names["reward_func"](["pyes", "p"], ["p", "p"], [None, None])
    mean = RewardScorer(made_reward(), HashingEncoder(D), kind="mean").rewards(["?"], ["yes"])
    assert np.allclose(found["rewards"], [*mean, -1.0], rtol=1e-6)
    assert run(*command) == 2
    assert "exists; use --force" in capsys.readouterr().err
    assert run(*command, "--force", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(path)}


def test_dal_serve_refuses_in_one_line(reward_file, tmp_path, capsys):
    (tmp_path / "bad").write_bytes(b"garbage")
    for reward, more, words in [
        (tmp_path / "bad", [], "not a safetensors file"),
        (reward_file, ["--encoder", "hashing:8"], "the features would not mean the same"),
        (reward_file, ["--text", "prompt+response"], "expected 'response'"),
        (reward_file, ["--kind", "least_favourable"], "holds no least favourable reward"),
        (reward_file, ["--write-openrlhf", tmp_path / "x"], "ends in .py"),
        (reward_file, ["--radius", "-1"], "radius"),
    ]:
        assert run("serve", "--reward", reward, "--encoder", f"hashing:{D}", *more) == 2
        error = capsys.readouterr().err
        assert words in error and error.startswith("dal: error: ") and error.count("\n") == 1
