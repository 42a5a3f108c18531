"""The kinds that are more than one word: addresses, CPUs for workers, environment variables."""

from typing import Any, Final

from prefork.config.address import (
    BACKLOG,
    UNIX_MODE,
    AddressError,
    ListenAddress,
    parse_address,
)
from prefork.config.kinds import Boolean, Integer, Octal, refuse_leading_zero
from prefork.config.nodes import Entry, Mapping, Node, Report, Scalar, Sequence
from prefork.config.problems import problem_at, quoted
from prefork.config.reader import (
    Kind,
    Reader,
    RefusedError,
    Schema,
    did_you_mean,
    guess,
    quote,
    shown,
)

CPU_MAX: Final = 8191  # the kernel's CONFIG_NR_CPUS goes no further


class Addresses:
    """One address, or a list of addresses and of mappings with an `address` in each."""

    syntax = "an address or a list of addresses"
    one = "an address such as 127.0.0.1:8000, [::1]:8000, unix:path, fd:3 or systemd:name"
    extras: Final[dict[str, Kind]] = {
        "backlog": Integer(1, 65535),
        "mode": Octal(0o777),
        "v6only": Boolean(),
        "proxy_protocol": Boolean(),
    }

    def read(self, node: Node, reader: Reader) -> tuple[ListenAddress, ...]:
        items = node.items if isinstance(node, Sequence) else [node]
        if not items:
            raise reader.say(node, "is an empty list: the server needs an address")
        found: list[ListenAddress] = []
        failed = False
        for item in items:
            try:
                address = self._one(item, reader)
                for earlier in found:
                    if address.text == earlier.text and (address.port or not address.host):
                        raise reader.say(item, f"has {address.text} twice")
                found.append(address)
            except RefusedError:
                failed = True
        if failed:
            raise RefusedError
        return tuple(found)

    def _one(self, node: Node, reader: Reader) -> ListenAddress:
        if isinstance(node, Mapping):
            return self._mapping(node, reader)
        scalar = reader.scalar(node, self.one)
        if scalar.is_null:
            raise reader.refuse(scalar, self.one)
        try:
            return parse_address(scalar.text, reader.base)
        except AddressError as error:
            if scalar.secret:
                raise reader.refuse(scalar, self.one) from None
            hint = did_you_mean(error.suggestion)
            what = f"has {shown(scalar)}: {error}{hint}"
            raise reader.say(scalar, what, error.suggestion) from None

    def _mapping(self, node: Mapping, reader: Reader) -> ListenAddress:
        values: dict[str, Any] = {}
        failed = False
        known = ("address", *self.extras)
        for key, entry in node.entries.items():
            if key in known:
                continue
            failed = True
            meant = "address" if key in ("bind", "host", "port", "path") else guess(key, known)
            report_unknown(entry, f'in "{reader.path}"', meant, reader.report)
        if "address" not in node.entries and not failed:
            raise reader.say(node, 'has a mapping without "address"')
        for name, kind in self.extras.items():
            if name in node.entries:
                inner = reader.at(f"{reader.path}.{name}")
                try:
                    values[name] = kind.read(node.entries[name].value, inner)
                except RefusedError:
                    failed = True
        address = None
        if "address" in node.entries:
            value = node.entries["address"].value
            if isinstance(value, Mapping):
                raise reader.at(f"{reader.path}.address").refuse(value, self.one)
            address = self._one(value, reader)
        if failed or address is None:
            raise RefusedError
        self._fitting(node, address, reader)
        return ListenAddress(
            kind=address.kind,
            host=address.host,
            port=address.port,
            path=address.path,
            fd=address.fd,
            name=address.name,
            **values,
        )

    def _fitting(self, node: Mapping, address: ListenAddress, reader: Reader) -> None:
        """`mode` of a TCP port would be believed and do nothing."""
        for name, kinds in (("mode", ("unix",)), ("v6only", ("inet6",))):
            if name in node.entries and address.kind not in kinds:
                what = "a Unix socket" if name == "mode" else "an IPv6 address"
                inner = reader.at(f"{reader.path}.{name}")
                raise inner.say(node.entries[name].key, f"belongs to {what}, not to {address.text}")

    def write(self, value: Any) -> str:
        return "[" + ", ".join(self._write_one(address) for address in value) + "]"

    def _write_one(self, address: ListenAddress) -> str:
        text = quote(address.text)
        extras = ""
        if address.backlog != BACKLOG:
            extras += f", backlog: {address.backlog}"
        if address.mode != UNIX_MODE:
            extras += f", mode: {self.extras['mode'].write(address.mode)}"
        if not address.v6only:
            extras += ", v6only: false"
        if address.proxy_protocol:
            extras += ", proxy_protocol: true"
        return f"{{address: {text}{extras}}}" if extras else text

    def json_schema(self) -> Schema:
        one: Schema = {"type": ["string", "integer"]}
        mapping = {
            "type": "object",
            "additionalProperties": False,
            "required": ["address"],
            "properties": {
                "address": one,
                **{name: kind.json_schema() for name, kind in self.extras.items()},
            },
        }
        return {"anyOf": [one, {"type": "array", "items": {"anyOf": [one, mapping]}}, mapping]}


def report_unknown(entry: Entry, where: str, meant: str | None, report: Report) -> None:
    """`unknown key "wrokers" in "timeouts" (did you mean …?)`"""
    text = f"unknown key {quoted(entry.key.text)}"
    message = f"{text} {where}" if where else text
    report(problem_at(entry.key.place, message + did_you_mean(meant), meant))


class Trusted:
    """Who is trusted: a list of IP addresses and networks, `unix` and `*`.

    The value has them in their one canonical way: "10.0.0.0/8", "::1", "unix", "*".
    """

    syntax = "a list of addresses and networks such as [127.0.0.1, 10.0.0.0/8, unix]"

    def read(self, node: Node, reader: Reader) -> tuple[str, ...]:
        found: dict[str, None] = {}
        failed = False
        for item in node.items if isinstance(node, Sequence) else [node]:
            try:
                found[self._one(item, reader)] = None
            except RefusedError:
                failed = True
        if failed:
            raise RefusedError
        return tuple(found)

    def _one(self, node: Node, reader: Reader) -> str:
        scalar = reader.scalar(node, self.syntax)
        text = scalar.text.strip()
        if text in ("unix", "*"):
            return text
        if scalar.is_null or not text:
            raise reader.refuse(scalar, self.syntax)
        if text.startswith("unix:") or text == "unix/":
            raise reader.refuse(scalar, self.syntax, "unix")
        import ipaddress  # only here: most configurations trust nobody

        if "/" not in text:
            text = text.removeprefix("[").removesuffix("]")
        try:
            network = ipaddress.ip_network(text)
        except ValueError:
            try:
                meant = str(ipaddress.ip_network(text, strict=False))
            except ValueError:
                raise reader.refuse(scalar, self.syntax) from None
            what = f"has {shown(scalar)}, an address inside a network{did_you_mean(meant)}"
            raise reader.say(scalar, what, meant) from None
        alone = network.prefixlen == network.max_prefixlen
        return str(network.network_address if alone else network)

    def write(self, value: Any) -> str:
        return "[" + ", ".join(map(quote, value)) + "]"

    def json_schema(self) -> Schema:
        one: Schema = {"type": "string"}
        return {"anyOf": [one, {"type": "array", "items": one}]}


class CpuSets:
    """Which CPUs each worker may use: a list with an entry per worker.

    An entry is a CPU's number, a list as `taskset -c` takes it (`0-3,8`), or a mask: `0x0f`,
    `0b0101`, or nginx's `0101`, which is recognised by a leading zero in any entry of the list.
    """

    syntax = 'a list of CPU sets such as [0, 1], ["0-3", "4-7"] or [0b0011, 0b1100]'

    def read(self, node: Node, reader: Reader) -> tuple[tuple[int, ...], ...]:
        if not isinstance(node, Sequence) or not node.items:
            if isinstance(node, Scalar):
                reader.scalar(node, self.syntax)
            raise reader.refuse(node, self.syntax)
        scalars: list[Scalar] = []
        failed = False
        for item in node.items:
            try:
                scalars.append(reader.scalar(item, self.syntax))
            except RefusedError:
                failed = True
        masks = all(set(s.text) <= {"0", "1"} for s in scalars) and any(
            len(s.text) > 1 and s.text[0] == "0" for s in scalars
        )
        sets: list[tuple[int, ...]] = []
        for scalar in scalars:
            try:
                sets.append(self._cpus(scalar, reader, masks))
            except RefusedError:
                failed = True
        if failed:
            raise RefusedError
        return tuple(sets)

    def _cpus(self, scalar: Scalar, reader: Reader, masks: bool) -> tuple[int, ...]:
        text = scalar.text.strip().lower()
        digits = {"0x": "0123456789abcdef", "0b": "01"}.get(text[:2])
        mask = None
        if masks:
            mask = int(text, 2) if text and len(text) <= CPU_MAX else 0
        elif digits is not None:
            good = text[2:] and not set(text[2:]) - set(digits) and len(text) <= CPU_MAX // 4
            mask = int(text, 0) if good else 0
        if mask is not None:
            cpus = tuple(n for n in range(mask.bit_length()) if mask >> n & 1)
        else:
            cpus = tuple(sorted(self._listed(text, scalar, reader)))
        if not cpus:
            raise reader.say(scalar, f"has {shown(scalar)}, which names no CPU")
        return cpus

    def _listed(self, text: str, scalar: Scalar, reader: Reader) -> set[int]:
        if text[:1] == "0" and len(text) > 1 and text.isdigit():
            refuse_leading_zero(scalar, reader)
        cpus: set[int] = set()
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            last = last if dash else first
            numbers = all(t.isascii() and t.isdigit() and len(t) < 6 for t in (first, last))
            if not numbers or not int(first) <= int(last) <= CPU_MAX:
                raise reader.refuse(scalar, self.syntax)
            cpus.update(range(int(first), int(last) + 1))
        return cpus

    def write(self, value: Any) -> str:
        return "[" + ", ".join(self._write_one(cpus) for cpus in value) + "]"

    def _write_one(self, cpus: tuple[int, ...]) -> str:
        if len(cpus) == 1:
            return str(cpus[0])
        ranges: list[list[int]] = []
        for cpu in cpus:
            if ranges and ranges[-1][1] == cpu - 1:
                ranges[-1][1] = cpu
            else:
                ranges.append([cpu, cpu])
        text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
        return f'"{text}"'

    def json_schema(self) -> Schema:
        return {"type": "array", "minItems": 1, "items": {"type": ["string", "integer"]}}


class Counts:
    """A list of whole numbers, each larger than the one before."""

    def __init__(self, least: int, most: int) -> None:
        self.number = Integer(least, most)
        self.syntax = "a list of growing numbers such as [500, 2000]"

    def read(self, node: Node, reader: Reader) -> tuple[int, ...]:
        if not isinstance(node, Sequence):
            hint = None
            if isinstance(node, Scalar) and reader.scalar(node, self.syntax).text.isdigit():
                hint = f"[{node.text}]"
            raise reader.refuse(node, self.syntax, hint)
        numbers: list[int] = []
        failed = False
        for item in node.items:
            try:
                number = self.number.read(item, reader)
                if numbers and number <= numbers[-1]:
                    raise reader.say(item, f"has {number} behind {numbers[-1]}: let them grow")
                numbers.append(number)
            except RefusedError:
                failed = True
        if failed:
            raise RefusedError
        return tuple(numbers)

    def write(self, value: Any) -> str:
        return "[" + ", ".join(map(str, value)) + "]"

    def json_schema(self) -> Schema:
        return {"type": "array", "items": self.number.json_schema()}


class Variable:
    """The value of an environment variable: the text as it stands, numbers and all."""

    syntax = "text"

    def read(self, node: Node, reader: Reader) -> str:
        scalar = reader.scalar(node, self.syntax)
        if scalar.is_null and not scalar.derived:
            raise reader.say(scalar, 'is empty: write "" if it should be', '""')
        if "\0" in scalar.text:
            raise reader.say(scalar, "contains a NUL character")
        return scalar.text

    def write(self, value: Any) -> str:
        return quote(value)

    def json_schema(self) -> Schema:
        return {"type": ["string", "number", "boolean"]}

    @staticmethod
    def check_name(entry: Entry, report: Report) -> None:
        """Raises RefusedError for a name that no environment can hold."""
        name = entry.key.text
        if not name or "=" in name or "\0" in name:
            report(problem_at(entry.key.place, "a variable's name is not empty and has no ="))
            raise RefusedError
