"""The admission: one decision for messages, requests, uploads and handshakes. Its time is an argument."""

from __future__ import annotations

import pytest

from engine.cache.device_health import Device, DeviceKey
from engine.commit import admission
from engine.commit.admission import ACCEPT, Admission, Kind, Overloaded, RateLimited
from engine.runtime.rate_limit import TenantRates, TokenBucket
from engine.wire.errors import SyncError

RATE = 3
RETRY_MS, LATER_MS = 700, 60_000
RATED: tuple[Kind, ...] = ("message", "control", "push", "request", "upload")


class _Load:
    """A committer that is as full as a test says."""

    shed = pressed = False

    def should_shed(self, _: int) -> bool:
        return self.shed

    def over_target(self, _: int) -> bool:
        return self.pressed

    def retry_after_ms(self) -> int:
        return RETRY_MS


class _Sockets(set[tuple[int, str]]):
    def count_of(self, tenant_id: int) -> int:
        return sum(key[0] == tenant_id for key in self)


class _World:
    """An admission and what it looks at."""

    def __init__(self, *, device: int = RATE, tenant: int = 1_000_000) -> None:
        self.load = _Load()
        self.sockets = _Sockets()
        self.rate = device
        self.admission = Admission(
            self.load,
            TenantRates(tenant),
            self.sockets,
            messages_per_minute=device,
            tenant_connections=2,
            now_s=0.0,
            later_ms=lambda: LATER_MS,
        )

    def device(self, name: str = "phone") -> Device:
        return Device(key=DeviceKey(1, name), bucket=TokenBucket(float(self.rate), 0.0), changed=[])

    def admit(self, kind: Kind, device: Device, now_s: float = 0.0) -> object:
        return self.admission.admit(kind, 1, device, now_s)


@pytest.mark.parametrize("kind", RATED)
def test_admission_rate_of_a_device_limits_each_kind_until_a_token_is_back(kind: Kind) -> None:
    world = _World()
    phone = world.device()
    assert [world.admit(kind, phone) for _ in range(RATE)] == [ACCEPT] * RATE
    assert world.admit(kind, phone) == RateLimited(20_000)
    assert world.admit(kind, world.device("tablet")) == ACCEPT
    assert world.admit(kind, phone, 20.1) == ACCEPT


@pytest.mark.parametrize("kind", RATED)
def test_admission_rate_of_a_tenant_limits_a_device_beyond_its_part(kind: Kind) -> None:
    world = _World(device=100, tenant=RATE)
    phone = world.device()
    assert [world.admit(kind, phone) for _ in range(RATE)] == [ACCEPT] * RATE
    assert isinstance(world.admit(kind, phone), RateLimited)
    assert world.admit(kind, world.device("tablet")) == ACCEPT


def test_admission_under_overload_refuses_pushes_and_nothing_else() -> None:
    world = _World(device=100)
    world.load.shed = True
    phone = world.device()
    found = {
        kind: world.admit(kind, phone) for kind in ("message", "push", "body", "control", "request", "upload")
    }
    refused = {kind for kind, verdict in found.items() if verdict == Overloaded(RETRY_MS)}
    assert refused == {"message", "push", "body"}
    assert {found[kind] for kind in ("control", "request", "upload")} == {ACCEPT}


def test_admission_past_the_rate_under_overload_is_rate_limited() -> None:
    world = _World(device=1)
    world.load.shed = True
    phone = world.device()
    world.admit("message", phone)
    assert world.admit("message", phone) == RateLimited(60_000)


def test_admission_of_a_body_takes_no_second_token() -> None:
    world = _World(device=1)
    phone = world.device()
    assert world.admit("push", phone) == ACCEPT
    assert world.admit("body", phone) == ACCEPT


def test_admission_handshakes_of_a_device_are_limited_by_the_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "HANDSHAKES_PER_MINUTE", 2)
    world = _World()
    phone = world.device()
    assert [world.admit("handshake", phone) for _ in range(2)] == [ACCEPT] * 2
    assert world.admit("handshake", phone) == RateLimited(30_000, "too many handshakes")
    assert world.admit("handshake", phone, 30.1) == ACCEPT
    assert phone.bucket.tokens == RATE, "a handshake is no message"


def test_admission_handshake_of_a_full_tenant_is_refused_unless_the_device_comes_back() -> None:
    world = _World()
    world.sockets |= {(1, "phone"), (1, "tablet"), (2, "other")}
    assert world.admit("handshake", world.device("new")) == RateLimited(
        LATER_MS, "too many connections of this tenant"
    )
    assert world.admit("handshake", world.device("phone")) == ACCEPT


def test_admission_handshakes_while_writes_wait_come_at_the_newcomers_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "NEWCOMERS_PER_MINUTE", 60)
    world = _World()
    assert world.admit("handshake", world.device(), 10.0) == ACCEPT
    world.load.pressed = True
    assert world.admit("handshake", world.device(), 10.0) == ACCEPT
    assert world.admit("handshake", world.device(), 10.0) == Overloaded(RETRY_MS)
    assert world.admit("handshake", world.device(), 11.1) == ACCEPT


@pytest.mark.parametrize(
    ("verdict", "code"), [(RateLimited(5), "rate_limited"), (Overloaded(5), "overloaded")]
)
def test_admission_verdict_as_error_says_when_to_come_again(
    verdict: RateLimited | Overloaded, code: str
) -> None:
    error = verdict.error()
    assert (error.code, error.details["retry_after_ms"], error.kind.retryable) == (code, 5, True)


def test_admission_check_raises_what_admit_returns() -> None:
    world = _World(device=1)
    phone = world.device()
    world.admission.check("request", 1, phone, 0.0)
    with pytest.raises(SyncError) as refused:
        world.admission.check("request", 1, phone, 0.0)
    assert refused.value.code == "rate_limited"
