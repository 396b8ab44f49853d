# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers of ATA as a person is shown them, by the names of ATA/ATAPI-6 (T13/1410D).

The bus master's registers are those of the Intel 82371SB (PIIX3) datasheet, section 2.7. What they do is
native: ``hw/native/ata``.
"""

from coremesh.hw.registers import Bit, Bits, Register

SECTOR = 512
"""Bytes of a disk's sector."""


class STATUS(Register):
    """Status: reading it takes the interrupt back. The alternate status does not."""

    offset = 7
    writable = 0
    ERR = Bit(0)  # CHK of a packet device
    DRQ = Bit(3)  # the drive wants data, or has some
    DSC = Bit(4)  # seek complete; SERV of a packet device
    DF = Bit(5)  # device fault
    DRDY = Bit(6)
    BSY = Bit(7)


class ERROR(Register):
    """Error: why STATUS.ERR is set. A packet device has its sense key in the upper half."""

    offset = 1
    writable = 0
    ABRT = Bit(2)  # the command is not known, or was given up
    IDNF = Bit(4)  # no sector of this address
    UNC = Bit(6)  # data that cannot be read
    SENSE = Bits(7, 4)


class DEVICE(Register):
    """Device and head."""

    offset = 6
    HEAD = Bits(3, 0)  # or the address's bits 27 to 24
    DEV = Bit(4)
    LBA = Bit(6)
    OBSOLETE = 0xA0  # ones on old drives, and software that compares


class CONTROL(Register):
    """Device control."""

    offset = 8
    writable = 0x86
    NIEN = Bit(1)  # holds the interrupt back
    SRST = Bit(2)  # software reset, as long as it is set
    HOB = Bit(7)  # the command block reads as what was written before last


class BMICOM(Register):
    """Bus master IDE command."""

    offset = 16
    writable = 0x09
    SSBM = Bit(0)  # start
    RWCON = Bit(3)  # the bus master writes to memory


class BMISTA(Register):
    """Bus master IDE status. The drives' bits are for software alone."""

    offset = 18
    writable = 0x60
    BMIDEA = Bit(0)  # active
    ERROR = Bit(1)  # written with one to clear, as IDEINTS is
    IDEINTS = Bit(2)  # the drive's interrupt has risen
    DMA0CAP = Bit(5)
    DMA1CAP = Bit(6)
    CLEARED = ERROR | IDEINTS


class BMIDTP(Register):
    """Descriptor table pointer: 32 bits at offset 20."""

    offset = 20
    writable = 0xFFFF_FFFC
