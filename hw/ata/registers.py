# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers and command codes of ATA, by the names of ATA/ATAPI-6 (T13/1410D).

The bus master's registers are those of the Intel 82371SB (PIIX3) datasheet, section 2.7.
"""

from enum import IntEnum

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


class REASON(Register):
    """Interrupt reason: the sector count register after a PACKET command."""

    offset = 2
    COD = Bit(0)  # command, not data
    IO = Bit(1)  # to the host


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


class Command(IntEnum):
    """ATA/ATAPI-6, section 8; the older codes from ATA-1 that drives kept."""

    NOP = 0x00
    DATA_SET_MANAGEMENT = 0x06
    DEVICE_RESET = 0x08
    READ_SECTORS = 0x20
    READ_SECTORS_NO_RETRY = 0x21
    READ_SECTORS_EXT = 0x24
    READ_DMA_EXT = 0x25
    READ_NATIVE_MAX_EXT = 0x27
    READ_MULTIPLE_EXT = 0x29
    WRITE_SECTORS = 0x30
    WRITE_SECTORS_NO_RETRY = 0x31
    WRITE_SECTORS_EXT = 0x34
    WRITE_DMA_EXT = 0x35
    WRITE_MULTIPLE_EXT = 0x39
    WRITE_DMA_FUA_EXT = 0x3D
    READ_VERIFY = 0x40
    READ_VERIFY_NO_RETRY = 0x41
    READ_VERIFY_EXT = 0x42
    EXECUTE_DEVICE_DIAGNOSTIC = 0x90
    INITIALIZE_DEVICE_PARAMETERS = 0x91
    PACKET = 0xA0
    IDENTIFY_PACKET_DEVICE = 0xA1
    READ_MULTIPLE = 0xC4
    WRITE_MULTIPLE = 0xC5
    SET_MULTIPLE_MODE = 0xC6
    READ_DMA = 0xC8
    READ_DMA_NO_RETRY = 0xC9
    WRITE_DMA = 0xCA
    WRITE_DMA_NO_RETRY = 0xCB
    WRITE_MULTIPLE_FUA_EXT = 0xCE
    STANDBY_IMMEDIATE = 0xE0
    IDLE_IMMEDIATE = 0xE1
    STANDBY = 0xE2
    IDLE = 0xE3
    CHECK_POWER_MODE = 0xE5
    SLEEP = 0xE6
    FLUSH_CACHE = 0xE7
    FLUSH_CACHE_EXT = 0xEA
    IDENTIFY_DEVICE = 0xEC
    SET_FEATURES = 0xEF
    READ_NATIVE_MAX = 0xF8
