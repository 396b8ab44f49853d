# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine itself: description, memory map, boot state, native engine. Knows no Ray and no device."""
