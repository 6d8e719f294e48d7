"""Is an audio file all there? Read from its container's own structure, before any decoder sees it.

Decoders are lenient: libsndfile plays a WAV cut in half without a word, and so do MP3 and Ogg decoders. A clip cut by
a broken upload would get an emotion like any other, so what the container promises is compared with what is there.
Pure functions of bytes; formats that promise nothing (a streamed WAV with an open size, an unknown format) pass.
"""

import struct
from mmap import mmap

Data = bytes | mmap  # a file in memory, or mapped from a disk

OPEN_SIZES = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000)  # what writers put where they do not know the length yet
MP3_BITRATES_KBPS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
OGG_END_OF_STREAM = 0x04


def missing(data: Data) -> str | None:
    """What is missing from the end of `data`, in words; None when it is whole or its format does not tell."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return _missing_from_wav(data)
    if data[:4] == b"RIFF":
        return _missing_from_riff(data)
    if data[4:8] == b"ftyp":
        return _missing_from_mp4(data)
    if data[:4] == b"OggS":
        return _missing_from_ogg(data)
    if data[:3] == b"ID3" or _mp3_frame_bytes(data, 0):
        return _missing_from_mp3(data)
    return None


def _missing_from_wav(data: Data) -> str | None:
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        there = len(data) - at - 8
        if name == b"data":
            if size in OPEN_SIZES or size <= there:
                return None
            return f"its header promises {size} bytes of samples and {there} are there"
        at += 8 + size + size % 2
    return "its header ends before any samples"


def _missing_from_riff(data: Data) -> str | None:
    size = struct.unpack_from("<I", data[:8].ljust(8, b"\0"), 4)[0]
    if size in OPEN_SIZES or size + 8 <= len(data):
        return None
    return f"its header promises {size + 8} bytes and {len(data)} are there"


def _missing_from_mp4(data: Data) -> str | None:
    at = 0
    while at + 8 <= len(data):
        size = struct.unpack_from(">I", data, at)[0]
        if size == 1 and at + 16 <= len(data):
            size = struct.unpack_from(">Q", data, at + 8)[0]
        if size == 0:  # reaches to the end of the file, wherever that is
            return None
        if size < 8 or at + size > len(data):
            return "its last box is cut"
        at += size
    return None


def _missing_from_ogg(data: Data) -> str | None:
    at, flags = 0, 0
    while at + 27 <= len(data) and data[at : at + 4] == b"OggS":
        flags, segments = data[at + 5], data[at + 26]
        table = data[at + 27 : at + 27 + segments]
        at += 27 + segments + sum(table)
        if len(table) < segments or at > len(data):
            return "its last page is cut"
    if not flags & OGG_END_OF_STREAM:
        return "its last page does not end the stream"
    return None


def _missing_from_mp3(data: Data) -> str | None:
    at = _after_id3(data)
    if at >= len(data):
        return "it ends inside its ID3 tag"
    frames, promised = 0, None
    while size := _mp3_frame_bytes(data, at):
        if frames == 0:
            promised = _xing_frames(data[at : at + size])
        if at + size > len(data):
            return "its last frame is cut"
        at, frames = at + size, frames + 1
    # The frame that carries the count is not counted itself.
    if promised is not None and at > len(data) - 4 and frames - 1 < promised:
        return f"its header promises {promised} frames and {frames - 1} are there"
    return None


def _after_id3(data: Data) -> int:
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    a, b, c, d = (byte & 0x7F for byte in data[6:10])
    return 10 + (a << 21 | b << 14 | c << 7 | d)


def _mp3_frame_bytes(data: Data, at: int) -> int:
    """Length in bytes of the layer III frame that starts at `at`; 0 when none does."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0
    version, rate = head[1] >> 3 & 3, head[2] >> 2 & 3
    bitrate = head[2] >> 4
    if version == 1 or rate == 3 or bitrate in (0, 15):
        return 0
    kbps = MP3_BITRATES_KBPS[1 if version == 3 else 2][bitrate]
    samples_over_8 = 144 if version == 3 else 72
    return samples_over_8 * kbps * 1000 // MP3_RATES_HZ[version][rate] + (head[2] >> 1 & 1)


def _xing_frames(frame: bytes) -> int | None:
    """Frame count of a Xing or Info header (LAME's), when the first frame carries one."""
    for mark in (b"Xing", b"Info"):
        at = frame.find(mark, 4, 64)
        if at > 0 and len(frame) >= at + 12 and frame[at + 7] & 1:
            return int(struct.unpack_from(">I", frame, at + 8)[0])
    return None
