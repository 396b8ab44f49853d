# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine's network cards: what a person writes of them, and what is opened where the devices are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from coremesh.core.errors import ConfigurationError, shown

if TYPE_CHECKING:
    from coremesh.hw.backend.network.capture import Tap
    from coremesh.hw.backend.network.slirp import Forward
    from coremesh.hw.virtio.model import VirtioModel

KINDS: Final = ("user", "tap", "socket", "switch", "none")
MOST_CARDS: Final = 8
MOST_QUEUES: Final = 8  # pairs of them
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Network:
    """One network card of a machine and what it is connected to.

    `kind` is 'user' (the host's network by NAT, with `forwards` of the host's ports), 'tap' (the host's
    interface `address`, which needs permission), 'socket' (a stream socket at `address` in QEMU's framing) or
    'switch' (the same, a :class:`Switch`). `mac` is its Ethernet address; None lets one be chosen. With
    `restrict` the guest reaches nothing by NAT, and is reached by `forwards` alone. `queues` is the number of
    pairs of queues, 1 to 8: as many cores send and receive at once.
    """

    kind: str = "user"
    forwards: tuple[Forward, ...] = ()
    address: str = ""
    mac: str | None = None
    restrict: bool = False
    queues: int = 1

    def checked(self) -> Network:
        """Return it with an Ethernet address. Raises :class:`ConfigurationError`."""
        from coremesh.hw.backend.network.stream import parse_address
        from coremesh.hw.backend.network.tap import check_name

        if self.kind not in KINDS or self.kind == "none":
            raise ConfigurationError(f"no network {shown(self.kind)}; there are {', '.join(KINDS)}.")
        if self.kind == "tap":
            check_name(self.address)
        elif self.kind != "user":
            parse_address(self.address)
        if self.kind != "user" and (self.forwards or self.restrict):
            raise ConfigurationError("only a 'user' network forwards ports and can be restricted.")
        queues = self.queues
        if isinstance(queues, bool) or not isinstance(queues, int) or not 1 <= queues <= MOST_QUEUES:
            raise ConfigurationError(f"a network card has 1 to {MOST_QUEUES} queues, not {shown(queues)}.")
        mac = self.mac
        if mac is None:
            # The locally administered addresses that other emulators use too; random, so that machines on one
            # switch differ.
            mac = "52:54:00:" + os.urandom(3).hex(":")
        if not isinstance(mac, str) or not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
            raise ConfigurationError(
                f"{shown(mac)} is no Ethernet address of a card; write it like 52:54:00:12:34:56."
            )
        return replace(self, mac=mac.lower())


def parse_network(text: str) -> Network | None:
    """Return what a person wrote: ``user``, ``tap=NAME``, ``socket=ADDRESS`` or ``switch=ADDRESS``.

    ``user`` may be followed by ``,forward=tcp:2222:22``, also several times, and ``,restrict``; each by
    ``,mac=52:54:00:12:34:56``, and by ``,queues=N`` for as many pairs of queues: as many cores send at once.
    ``none`` is no card. Raises :class:`ConfigurationError`.
    """
    from coremesh.hw.backend.network.slirp import parse_forward

    first, *options = text.split(",")
    kind, equals, address = first.partition("=")
    if kind == "none" and not equals and not options:
        return None
    if kind not in KINDS or bool(equals) is not (kind in ("tap", "socket", "switch")):
        raise ConfigurationError(
            f"{shown(text)} is no network; write user, user,forward=tcp:2222:22, tap=NAME, socket=ADDRESS, "
            "switch=ADDRESS or none."
        )
    network = Network(kind, address=address)
    for option in options:
        name, equals, value = option.partition("=")
        if name == "forward" and equals:
            network = replace(network, forwards=(*network.forwards, parse_forward(value)))
        elif name == "mac" and equals and network.mac is None:
            network = replace(network, mac=value)
        elif name == "queues" and value.isdecimal() and len(value) < 4:
            network = replace(network, queues=int(value))
        elif option == "restrict":
            network = replace(network, restrict=True)
        else:
            raise ConfigurationError(
                f"{shown(option)} is no option of a network; there are forward=PORT:PORT, "
                "restrict, queues=N and mac=ADDRESS."
            )
    return network


def check_networks(value: Any) -> tuple[Network, ...]:
    """Return cards as the machine takes them, from a text, a :class:`Network` or a list of these.

    Raises :class:`ConfigurationError`.
    """
    given = value if isinstance(value, list | tuple) else [value]
    cards = []
    for each in given:
        if isinstance(each, Network):
            cards.append(each.checked())
        elif isinstance(each, str):
            network = parse_network(each)
            if network is not None:
                cards.append(network.checked())
        elif each is not None:
            raise ConfigurationError(f"a network is text like 'user', or a Network, not {shown(each)}.")
    if len(cards) > MOST_CARDS:
        raise ConfigurationError(f"a machine has at most {MOST_CARDS} network cards, not {len(cards)}.")
    return tuple(cards)


def network_of(networks: Iterable[Network]) -> str:
    """Return what an initramfs is to do for its cards: 'dhcp' where a NAT answers, else 'manual', or ''."""
    kinds = {network.kind for network in networks}
    return "dhcp" if "user" in kinds else "manual" if kinds else ""


def virtio_cards(opened: Iterable[tuple[Network, Tap]]) -> list[VirtioModel]:
    """Return the virtio devices of a machine's network cards, in their order."""
    from coremesh.hw.virtio.net import VirtioNet

    return [
        VirtioNet(
            tap,
            name=f"virtio-net{number}",
            mac=bytes.fromhex((network.mac or "").replace(":", "")),
            pairs=network.queues,
        )
        for number, (network, tap) in enumerate(opened)
    ]


def open_networks(networks: Iterable[Network], stack: ExitStack) -> list[tuple[Network, Tap]]:
    """Open what the cards are connected to; `stack` closes it.

    Raises :class:`~coremesh.core.errors.NetworkError`.
    """
    from coremesh.hw.backend.network.capture import Tap
    from coremesh.hw.backend.network.slirp import SlirpPort
    from coremesh.hw.backend.network.stream import StreamPort
    from coremesh.hw.backend.network.tap import TapPort

    opened = []
    for network in networks:
        if network.kind == "user":
            tap = Tap(SlirpPort(network.forwards, restricted=network.restrict))
        elif network.kind == "tap":
            tap = Tap(TapPort(network.address))
        else:
            tap = Tap(StreamPort(network.address))
        stack.callback(tap.close)
        opened.append((network, tap))
    return opened
