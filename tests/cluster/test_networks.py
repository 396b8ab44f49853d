# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person writes of a machine's network cards."""

from contextlib import ExitStack

import pytest
from coremesh.cluster.machine.describe import describe
from coremesh.cluster.machine.networks import (
    Network,
    check_networks,
    network_of,
    open_networks,
    parse_network,
)
from coremesh.core.errors import ConfigurationError, NetworkError
from coremesh.hw.backend.network.slirp import Forward


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("none", None),
        ("user", Network()),
        ("user,forward=tcp:2222:22,forward=udp:53:53", Network(forwards=(
            Forward("tcp", 2222, 22), Forward("udp", 53, 53)
        ))),
        ("user,restrict", Network(restrict=True)),
        ("socket=10.0.0.1:4000", Network("socket", address="10.0.0.1:4000")),
        ("switch=/run/s,mac=52:54:00:00:00:01", Network("switch", address="/run/s", mac="52:54:00:00:00:01")),
    ],
)  # fmt: skip
def test_given_a_network_as_text_when_it_is_parsed_then_its_options_are_there(
    text: str, network: Network | None
) -> None:
    assert parse_network(text) == network


@pytest.mark.parametrize(
    "value",
    [
        "", "bridge", "user=1", "socket", "none,mac=1", "user,colour=red", "user,forward=22", "user,mac=1",
        "switch=nowhere", "socket=a:1,forward=tcp:1:1",
        "socket=a:1,restrict", "user,restrict=on", "user,mac=01:00:00:00:00:01", 7, ["user"] * 9,
    ],
)  # fmt: skip
def test_given_what_is_no_network_when_it_is_checked_then_it_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError):
        check_networks(value)


def test_given_cards_without_addresses_when_they_are_checked_then_each_gets_one_of_its_own() -> None:
    cards = check_networks(["user", "user", "none"])
    assert len(cards) == 2 and cards[0].mac != cards[1].mac
    assert all(card.mac is not None and card.mac.startswith("52:54:00:") for card in cards)
    assert network_of(cards) == "dhcp" and network_of(()) == ""
    assert network_of(check_networks("switch=/run/s")) == "manual"


def test_given_a_machine_with_a_card_when_it_is_described_then_the_card_is_there() -> None:
    kernel = bytes(1)
    with pytest.raises(ConfigurationError, match="no network"):
        describe(kernel=kernel, net="bridge")


def test_given_a_switch_that_is_not_there_when_it_is_opened_then_the_error_says_so() -> None:
    with ExitStack() as stack, pytest.raises(NetworkError, match="start what listens"):
        open_networks(check_networks("switch=/nowhere/s"), stack)
