# SPDX-License-Identifier: GPL-2.0-or-later
"""ATA: drives, the channel that they are on, and the PIIX3's bus master."""
