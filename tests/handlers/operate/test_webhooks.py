"""Webhooks against a real receiver: one that fails, hangs, redirects, answers nonsense, and Slack's."""

from __future__ import annotations

import asyncio
import base64
import hmac
import socket
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

import msgspec
import pytest
from aiohttp import ClientSession, web

import handlers.operate.webhooks as module
from engine.operate.alert_delivery import AlertNotSentError
from engine.operate.monitor.alerts import Alert, AlertKind
from handlers.operate.webhooks import SlackWebhook, Webhook, is_public, url_fault
from tests.harness.alert_receiver import Receiver, receiver
from tests.security.catalogue import against

__all__ = ["receiver"]

FIRED: Final = Alert(
    id="a1",
    kind="fired",
    metric="success_rate",
    tenant="acme <!channel> & co",
    severity="critical",
    current_value=0.5,
    threshold=0.95,
    message="success rate 50 % (10 of 20 syncs failed): critical below 95 %",
    timestamp=datetime(2026, 1, 1, tzinfo=UTC),
)
SECRET: Final = "a secret text"  # of this test


def _webhook(url: str, secret: str = "") -> Webhook:
    return Webhook(url, "warning", secret, private_addresses=True)


def _answers(status: int, **headers: str) -> Callable[[], Awaitable[web.StreamResponse]]:
    async def answer() -> web.StreamResponse:
        return web.Response(status=status, headers=headers)

    return answer


async def test_webhook_sends_json_with_id_time_and_signature(receiver: Receiver) -> None:
    key = b"\x00binary\xff" * 4
    await _webhook(receiver.url, "whsec_" + base64.b64encode(key).decode()).send(FIRED)
    ((request, body),) = receiver.requests
    assert msgspec.json.decode(body) == {
        "id": "a1",
        "kind": "fired",
        "metric": "success_rate",
        "tenant": "acme <!channel> & co",
        "severity": "critical",
        "current_value": 0.5,
        "threshold": 0.95,
        "message": FIRED.message,
        "timestamp": "2026-01-01T00:00:00Z",
    }
    assert request.headers["webhook-id"] == "a1"
    signed = f"a1.{request.headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, sha256).digest()).decode()
    assert request.headers["webhook-signature"] == f"v1,{expected}"


async def test_webhook_without_a_secret_is_not_signed(receiver: Receiver) -> None:
    await _webhook(receiver.url).send(FIRED)
    assert "webhook-signature" not in receiver.requests[0][0].headers


@pytest.mark.parametrize(
    ("kind", "color"), [("fired", "danger"), ("worsened", "danger"), ("cleared", "good")]
)
async def test_slack_webhook_sends_one_attachment_as_slack_wants_it(
    receiver: Receiver, kind: AlertKind, color: str
) -> None:
    alert = msgspec.structs.replace(FIRED, kind=kind)
    await SlackWebhook(receiver.url, "warning", private_addresses=True).send(alert)
    ((_, body),) = receiver.requests
    message = msgspec.json.decode(body)
    assert list(message) == ["attachments"]
    (attachment,) = message["attachments"]
    assert attachment["color"] == color
    assert attachment["fallback"]
    assert attachment["ts"] == 1767225600
    assert attachment["footer"] == "Tidemark a1", "by which a person knows a repetition"
    assert {"title": "Tenant", "value": "acme &lt;!channel&gt; &amp; co", "short": True} in attachment[
        "fields"
    ]
    assert all(set(field) == {"title", "value", "short"} for field in attachment["fields"])
    assert "<" not in body.decode()


@pytest.mark.parametrize("status", [400, 404, 410, 500, 503])
async def test_webhook_receiver_that_fails_is_an_error_without_its_url(
    receiver: Receiver, status: int
) -> None:
    receiver.answer = _answers(status)
    with pytest.raises(AlertNotSentError, match=f"status {status}") as raised:
        await _webhook(receiver.url).send(FIRED)
    assert "hidden" not in str(raised.value)


async def test_webhook_receiver_that_asks_for_a_pause_gets_it(receiver: Receiver) -> None:
    receiver.answer = _answers(429, **{"Retry-After": "77"})
    with pytest.raises(AlertNotSentError) as raised:
        await _webhook(receiver.url).send(FIRED)
    assert raised.value.retry_after_s == 77


@against("API7:2023", "V13.2")
async def test_webhook_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.answer = _answers(307, Location=receiver.url)
    with pytest.raises(AlertNotSentError, match="redirects are not followed"):
        await _webhook(receiver.url).send(FIRED)
    assert len(receiver.requests) == 1


async def test_webhook_receiver_that_hangs_is_given_up(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()

    async def never() -> web.StreamResponse:
        await ended.wait()
        return web.Response()

    receiver.answer = never
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)
    with pytest.raises(AlertNotSentError, match="no answer within"):
        await _webhook(receiver.url).send(FIRED)
    ended.set()


@pytest.mark.parametrize(
    "said",
    [b"nonsense\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"],
)
async def test_webhook_answer_that_is_no_http_is_an_error(said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(AlertNotSentError, match="no answer that is HTTP") as raised:
            await _webhook(f"http://127.0.0.1:{port}/hidden").send(FIRED)
        assert "hidden" not in str(raised.value)


async def test_webhook_receiver_that_answers_100_for_ever_leaves_the_loop_to_others() -> None:
    said, most = b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0
    sent = [0]

    def flood(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(said))
            while sent[0] < 1 << 20:
                connection.sendall(said)
                sent[0] += len(said)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        flooding = asyncio.get_running_loop().run_in_executor(None, flood, listener)
        sending = asyncio.create_task(_webhook(f"http://127.0.0.1:{listener.getsockname()[1]}/").send(FIRED))
        while not sending.done():
            before = sent[0]
            await asyncio.sleep(0)
            most = max(most, sent[0] - before)
        with pytest.raises(AlertNotSentError):
            await sending
        await flooding
    assert most < 64 << 10, "bytes that came in one turn of the loop"


async def test_webhook_fault_of_the_library_is_an_error_without_its_text(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError(receiver.url)

    monkeypatch.setattr(ClientSession, "post", fails)
    with pytest.raises(AlertNotSentError, match="RuntimeError") as raised:
        await _webhook(receiver.url).send(FIRED)
    assert "hidden" not in str(raised.value)


async def test_webhook_cookies_of_a_receiver_come_into_no_log(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = _answers(200, **{"Set-Cookie": "a (text) " * 100 + "=1"})
    named = receiver.url.replace("127.0.0.1", "localhost")  # an address has no cookies
    with caplog.at_level("WARNING"):
        await _webhook(named).send(FIRED)
    assert caplog.messages == []


async def test_webhook_name_server_that_does_not_answer_is_asked_once_beside_the_loops_own_threads(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, answers, asked = socket.getaddrinfo, threading.Event(), list[str]()

    def late(host: str, *rest: Any) -> Any:
        asked.append(host)
        answers.wait(30)
        return real("127.0.0.1", *rest)

    webhook = _webhook(receiver.url.replace("127.0.0.1", "hooks.example"))
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", late)
        patch.setattr(module, "TIMEOUT_S", 0.05)
        for _ in range(3):
            with pytest.raises(AlertNotSentError, match="no answer within"):
                await webhook.send(FIRED)
        patch.setattr(module, "TIMEOUT_S", 20)
        answers.set()
        await webhook.send(FIRED)
    assert len(asked) <= 2
    assert len(receiver.requests) == 1


async def test_webhook_host_that_nobody_knows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(AlertNotSentError, match="cannot connect: Name or service not known"):
        await _webhook("https://hooks.example/hidden").send(FIRED)


async def test_webhook_port_that_nobody_listens_on_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(AlertNotSentError, match="cannot connect"):
        await _webhook(f"http://127.0.0.1:{port}/").send(FIRED)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"])  # noqa: S104
async def test_webhook_private_address_is_refused_when_the_socket_is_made(
    receiver: Receiver, host: str
) -> None:
    url = receiver.url.replace("127.0.0.1", host)
    with pytest.raises(AlertNotSentError, match=r"cannot connect: .* is not a public address"):
        await Webhook(url, "warning").send(FIRED)
    assert receiver.requests == []


async def test_webhook_proxy_of_the_environment_is_not_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    await _webhook(receiver.url).send(FIRED)
    assert len(receiver.requests) == 1


@against("API7:2023", "V13.2")
@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "::169.254.169.254",
        "::ffff:0:a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "fec0::1",
        "3fff::1",
        "192.0.0.192",
        "192.88.99.1",
        "168.63.129.16",
        "no address",
    ],
)
def test_is_public_address_that_is_not_on_the_internet_is_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_is_public_address_on_the_internet_is_taken(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://a.example/",
        "https://",
        "http://a:0/",
        "http://a:99999/",
        "a.example",
        "http://a..example/",
        f"http://{'a' * 64}.example/",
        "http://a.example/\udcff",
    ],
)
def test_url_fault_url_that_cannot_be_sent_to_is_told(url: str) -> None:
    assert url_fault(url)


@pytest.mark.parametrize(
    "url", ["https://a.example/x", "http://10.0.0.1:8080/", "http://é.example/", "http://[fe80::1%eth0]/"]
)
def test_url_fault_url_that_can_be_sent_to_is_none(url: str) -> None:
    assert url_fault(url) is None


def test_webhook_target_names_the_receiver_without_its_url() -> None:
    first, second = _webhook("https://a.example/hidden"), _webhook("https://a.example/other")
    assert first.target != second.target
    assert "hidden" not in first.target
