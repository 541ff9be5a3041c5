"""Personal data in what commands show: masked, unless a person asks for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from engine.model.domains import Domain
from engine.operate.conflict_view import ClientView, ConflictView, Difference, RecordView, RetryView
from engine.wire.messages import Item, ServerSide

#: Stands for a value, whatever it is: its length or type may tell it.
MASK: Final = "***"

_decode_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_MASKED: Final = msgspec.Raw(b'"***"')
#: Members of an item that have no personal values: these alone are shown as they are.
_ENVELOPE: Final = frozenset(Item.__struct_fields__) - {"data"}
_check_names: Final = msgspec.json.Decoder(list[str] | None).decode


class Mask:
    """Masks the personal fields of one domain.

    Args:
        domains: The configured domains.
        domain: The domain. If it is none of them, every field may be personal: another domain's name may have
            been misspelt.
    """

    def __init__(self, domains: Mapping[str, Domain], domain: str | None) -> None:
        found = None if domain is None else domains.get(domain)
        self._names: Collection[str] | None = () if found is None else found.pii
        #: The fields of a rejected item that are shown: the name of any other may have been misspelt.
        self._shown: Collection[str] = ()
        if found is not None:
            named = {*found.required, *found.server_owned, *(("status",) if found.status else ())}
            self._shown = named.difference(found.pii)
        if found is None and any(one.pii for one in domains.values()):
            self._names = None

    def conflict(self, view: ConflictView) -> ConflictView:
        """Return a conflict without personal values."""
        return replace(
            view,
            record=None if view.record is None else self._record(view.record),
            server=ServerSide(view.server.version, self._data(view.server.data)),
            client=self._client(view.client),
            differences=self._differences(view.differences),
        )

    def retry(self, view: RetryView) -> RetryView:
        """Return a rejected item beside its record, without personal values."""
        if self._names is not None and not self._names:
            return view
        client = self._client(view.client)
        return RetryView(
            self._record(view.record),
            replace(
                client,
                sent=self._sent(client.sent),
                data=self._sent(client.data),
                held=[replace(change, data=self._sent(change.data)) for change in client.held],
            ),
            [
                one if one.field in self._shown else replace(one, client=_hidden(one.client))
                for one in self._differences(view.differences)
            ],
        )

    def item(self, item: msgspec.Raw | str) -> msgspec.Raw | str:
        """Return a rejected item without personal values.

        Anything that is not known to be none may be one: a member or a field whose name is not configured,
        and all of an item that is no object.
        """
        if self._names is not None and not self._names:
            return item
        if isinstance(item, str):
            return MASK
        try:
            members = _decode_fields(item)
        except msgspec.DecodeError:  # no object
            return MASK
        return msgspec.Raw(
            msgspec.json.encode({name: self._member(name, value) for name, value in members.items()})
        )

    def _member(self, name: str, value: msgspec.Raw) -> msgspec.Raw:
        try:
            if name == "data":
                return self._sent_data(value)
            if name == "changed":
                _check_names(value)
                return value
        except msgspec.DecodeError:
            return _MASKED
        return value if name in _ENVELOPE and bytes(value)[:1] not in (b"{", b"[") else _MASKED

    def _sent(self, data: msgspec.Raw | None) -> msgspec.Raw | None:
        return None if data is None else self._sent_data(data)

    def _sent_data(self, data: msgspec.Raw) -> msgspec.Raw:
        """Return the data of a rejected item. Raises msgspec.DecodeError if they are no object."""
        if bytes(data) == b"null":
            return data
        fields = _decode_fields(data)
        shown = {name: value if name in self._shown else _MASKED for name, value in fields.items()}
        return msgspec.Raw(msgspec.json.encode(shown))

    def _is_personal(self, name: str) -> bool:
        return self._names is None or name in self._names

    def _data(self, data: msgspec.Raw | None) -> msgspec.Raw | None:
        if data is None or bytes(data) == b"null":
            return data
        fields = _decode_fields(data)
        masked = {name: _MASKED if self._is_personal(name) else value for name, value in fields.items()}
        return msgspec.Raw(msgspec.json.encode(masked))

    def _record(self, record: RecordView) -> RecordView:
        return replace(record, data=self._data(record.data))

    def _client(self, client: ClientView) -> ClientView:
        return replace(
            client,
            sent=self._data(client.sent),
            data=self._data(client.data),
            held=[replace(change, data=self._data(change.data)) for change in client.held],
        )

    def _differences(self, differences: list[Difference]) -> list[Difference]:
        return [
            Difference(one.field, _hidden(one.server), _hidden(one.client))
            if self._is_personal(one.field)
            else one
            for one in differences
        ]


def _hidden(value: Any) -> Any:
    return value if value is msgspec.UNSET else MASK
