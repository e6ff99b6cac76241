"""The bytes of text files: unpacked, with LF line ends, and refused where they are no UTF-8 by the look of them."""

import io
from typing import Any, BinaryIO

from ..utils.errors import InputError


# Bytes of a .zst file unpacked at once: four can stand for 128 KiB, so this for 128 MiB.
_PACKED = 1 << 12
# Encodings of two and four bytes a character. A byte order mark tells; else the NULs do that text of any script has in
# its blanks, digits and line ends: their places in four bytes, and their least share.
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_ZEROS = {
    "UTF-16LE": ({1, 3}, 0.01),
    "UTF-16BE": ({0, 2}, 0.01),
    "UTF-32LE": ({1, 2, 3}, 0.5),
    "UTF-32BE": ({0, 1, 2}, 0.5),
}
# Bytes looked at, and the NULs below which nothing is concluded.
_HEAD, _MIN_ZEROS = 4096, 16


class ZstdStream(io.RawIOBase):
    """Decompressed view of a .zst file that, unlike the library's reader, notices a missing end."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._file, self._ready = file, memoryview(b"")
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame = self._decompressor.decompressobj()
        self._inside_frame = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if self._frame.eof:
                data = self._frame.unused_data
                self._frame, self._inside_frame = self._decompressor.decompressobj(), False
                data = data or self._file.read(_PACKED)
            else:
                data = self._file.read(_PACKED)
            if not data:
                if self._inside_frame:
                    raise EOFError("end of file inside a zstd frame")
                return 0
            self._inside_frame = True
            self._ready = memoryview(self._frame.decompress(data))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


class _OldLineEnds(io.RawIOBase):
    """View of a file with lines that end with CR alone, as old Macs wrote them: with LF instead."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read1(len(buffer))
        buffer[: len(data)] = data.replace(b"\r", b"\n")
        return len(data)


def with_lf(stream: io.BufferedReader, name: str, buffer_size: int = 1 << 18) -> io.BufferedReader:
    """Return `stream`, from whose beginning nothing was read yet, with LF where its lines end with CR alone.

    Raises InputError if it is UTF-16 or UTF-32 text.
    """
    head = stream.peek()
    _refuse_wide_encodings(head, name)
    if b"\n" in head or b"\r" not in head[:-1]:
        return stream
    return io.BufferedReader(_OldLineEnds(stream), buffer_size=buffer_size)  # type: ignore[type-var]


def _refuse_wide_encodings(head: bytes, name: str) -> None:
    """Raise InputError if a file begins as UTF-16 or UTF-32 does, with or without byte order mark.

    Without one, most of it is valid UTF-8 with a NUL in every blank, and would be read as such.
    """
    head = head[:_HEAD]
    encoding = next((kind for mark, kind in _MARKS.items() if head.startswith(mark)), None)
    zeros = [offset for offset, byte in enumerate(head) if byte == 0]
    if encoding is None and len(zeros) >= _MIN_ZEROS:
        places, share = {offset % 4 for offset in zeros}, len(zeros) / len(head)
        fitting = (kind for kind, (allowed, least) in _ZEROS.items() if places <= allowed and share >= least)
        encoding = next(fitting, None)
    if encoding is not None:
        raise InputError(f"{name} is {encoding[:6]} text; convert it first: iconv -f {encoding} -t UTF-8 FILE")
