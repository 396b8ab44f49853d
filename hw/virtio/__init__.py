# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio devices: what a guest's drivers expect of a computer that is not one."""
