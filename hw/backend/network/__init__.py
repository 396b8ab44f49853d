# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands behind a network device: the host's network by user NAT, a socket, a switch; and captures."""
