"""Read the lines of text files: unpacked, with LF line ends, decoded as UTF-8."""

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..utils.errors import InputError


# Bytes read at once.
BLOCK = 1 << 18
# The longest line that is read as a whole, in bytes: a row of JSON has to be parsed at once.
MAX_WHOLE_LINE = 1 << 28
# Bytes of a .zst file unpacked at once: four bytes can stand for 128 KiB, so these for 128 MiB.
_PACKED = 1 << 12
# Encodings of two or four bytes per character, recognised by a byte order mark. Without one: by the NULs in blanks,
# digits and line ends of any script, namely their positions modulo four and their least share.
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_ZEROS = {
    "UTF-16LE": ({1, 3}, 0.01),
    "UTF-16BE": ({0, 2}, 0.01),
    "UTF-32LE": ({1, 2, 3}, 0.5),
    "UTF-32BE": ({0, 1, 2}, 0.5),
}
# First bytes of files that are no text, each with the remedy; some of them would be read as text.
_OTHER_FORMATS = {
    b"PK\x03\x04": "a ZIP archive or a spreadsheet; unpack it, or save the sheet as .csv in UTF-8",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a document of an office program; save it as .csv or .txt in UTF-8",
    b"%PDF-": "a PDF; extract its text first",
    b"\x1f\x8b": "packed with gzip; add .gz to its name",
    b"(\xb5/\xfd": "packed with zstd; add .zst to its name",
    b"BZh91AY&SY": "packed with bzip2; unpack it first",
    b"\xfd7zXZ\0": "packed with xz; unpack it first",
    b"PAR1\x15": "a Parquet file; name it .parquet",
    b"ARROW1\0\0": "an Arrow file; write it as .parquet",
    b"version https://git-lfs.github.com/spec/": "a pointer of Git LFS, not the file itself; get it by git lfs pull",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# First bytes of packed files; zstd's may be those of a skippable frame.
_PACKED_HEADS = {"gzip": re.compile(rb"\x1f\x8b"), "zstd": re.compile(rb"\(\xb5/\xfd|[\x50-\x5f]\*M\x18")}
# Bytes inspected, and the fewest NULs that count as evidence.
_HEAD, _MIN_ZEROS = 4096, 16


class ZstdStream(io.RawIOBase):
    """Decompress a .zst file; unlike the library's reader, notice a missing end."""

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
    """View of a file from an old Mac, whose lines end with CR only, with LF instead."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read1(len(buffer))
        buffer[: len(data)] = data.replace(b"\r", b"\n")
        return len(data)


class _Range(io.RawIOBase):
    """View of the bytes of a file from `begin` up to `end`."""

    def __init__(self, file: io.BufferedReader, begin: int, end: int | None) -> None:
        file.seek(begin)
        self._file, self._left = file, None if end is None else max(end - begin, 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read1(len(buffer) if self._left is None else min(len(buffer), self._left))
        buffer[: len(data)] = data
        if self._left is not None:
            self._left -= len(data)
        return len(data)


def open_lines(path: Path | str, compression: str | None, begin: int = 0, end: int | None = None) -> io.BufferedReader:
    """Open a text file, unpacked, with LF as its line ends, also if it begins with lines that end with CR only.

    Args:
        path: the file.
        compression: "gzip", "zstd" or None.
        begin, end: the bytes to read, of a file that is not packed. Its first bytes decide about the line ends of all.

    Raises:
        InputError: if the file cannot be read, is UTF-16 or UTF-32 text, or another format.
    """
    stream = _open_unpacked(path, compression)
    head = stream.peek()
    _refuse_other_formats(head, str(path))
    if begin or end is not None:
        stream = io.BufferedReader(_Range(stream, begin, end), buffer_size=BLOCK)
    if b"\n" in head or b"\r" not in head[:-1]:
        return stream
    return io.BufferedReader(_OldLineEnds(stream), buffer_size=BLOCK)


def _refuse_other_formats(head: bytes, name: str) -> None:
    """Raise InputError if a file begins like UTF-16 or UTF-32 text, or like no text.

    Without a byte order mark, most of such text is valid UTF-8 with a NUL in every blank, and would be read as such.
    """
    for magic, remedy in _OTHER_FORMATS.items():
        if head.startswith(magic):
            raise InputError(f"{name} is {remedy}")
    head = head[:_HEAD]
    encoding = next((kind for mark, kind in _MARKS.items() if head.startswith(mark)), None)
    zeros = [offset for offset, byte in enumerate(head) if byte == 0]
    if encoding is None and len(zeros) >= _MIN_ZEROS:
        places, share = {offset % 4 for offset in zeros}, len(zeros) / len(head)
        fitting = (kind for kind, (allowed, least) in _ZEROS.items() if places <= allowed and share >= least)
        encoding = next(fitting, None)
    if encoding is not None:
        raise InputError(f"{name} is {encoding[:6]} text; convert it first: iconv -f {encoding} -t UTF-8 FILE")


def open_file(path: Path | str) -> io.BufferedReader:
    """Open a file for reading bytes; raise InputError if that fails."""
    try:
        return io.BufferedReader(io.FileIO(path), buffer_size=BLOCK)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _open_unpacked(path: Path | str, compression: str | None) -> io.BufferedReader:
    file = open_file(path)
    if compression is not None:
        head = file.peek(4)
        if head and not _PACKED_HEADS[compression].match(head):
            raise InputError(f"{path} is not packed with {compression}; take {Path(path).suffix} from its name")
    if compression == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=file), buffer_size=BLOCK)
    if compression == "zstd":
        return io.BufferedReader(ZstdStream(file), buffer_size=BLOCK)
    return file


def read_pieces(
    path: Path | str,
    compression: str | None,
    limit: int,
    *,
    whole_lines: bool = False,
    begin: int = 0,
    end: int | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a text file with their line ends, unpacked, in pieces.

    Only LF ends a line: U+2028, U+0085, form feeds and the like stay inside. The byte order mark is dropped. CR, where
    the file begins with lines that end so, becomes LF.

    Args:
        path: the file.
        compression: "gzip", "zstd" or None.
        limit: most bytes of a line. A longer one is cut after a blank, and its parts come separately.
        whole_lines: yield one line at a time, and refuse lines longer than `limit`. Otherwise as many lines at a time
            as have been read.
        begin, end: the bytes to read, from the beginning of a line on.

    Yields:
        Offset of the piece in the unpacked file, in bytes, and the piece.

    Raises:
        InputError: if the file cannot be read, is damaged, is UTF-16 or UTF-32 text, or another format.
    """
    import zstandard

    offset = begin
    rest = b""
    try:
        with open_lines(path, compression, begin, end) as stream:
            while True:
                whole = 0 if rest or whole_lines else stream.peek()[:limit].rfind(b"\n") + 1
                line = stream.read(whole) if whole else stream.readline(limit)
                if not line:
                    break
                if offset == 0 and not rest and line.startswith(b"\xef\xbb\xbf"):
                    offset, line = 3, line[3:]
                line = rest + line
                if whole_lines and len(line) >= limit and not line.endswith(b"\n"):
                    raise InputError(f"{path}: the line at byte {offset} is longer than {limit} bytes; cut the row")
                cut = len(line) if line.endswith(b"\n") or len(line) < limit else _last_break(line)
                rest = line[cut:]
                if cut:
                    yield offset, line[:cut]
                offset += cut
            if rest:
                yield offset, rest
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{path} is truncated or damaged after {offset} bytes of text ({error})") from None
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _last_break(line: bytes) -> int:
    """Choose where to cut a long line: after its last blank, or at least not inside a UTF-8 character."""
    cut = line.rfind(b" ") + 1
    if cut:
        return cut
    cut = len(line)
    while cut and len(line) - cut < 4 and line[cut - 1] & 0xC0 == 0x80:
        cut -= 1
    return max(cut - 1, 1)


def decode(data: bytes, place: Callable[[int], str], errors: str = "strict", remedy: str = "") -> str:
    """Decode UTF-8.

    Args:
        data: the bytes.
        place: names the position of a byte of `data` in the file, for the error.
        errors: "strict", or "replace" to put U+FFFD for undecodable bytes.
        remedy: an alternative to converting the file, for the error.

    Raises:
        InputError: if `data` is not UTF-8 and `errors` is "strict".
    """
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place(error.start)} is not valid UTF-8 (byte 0x{data[error.start]:02x}); if it is Latin-1 or "
            f"Windows-1252 text, convert it: iconv -f WINDOWS-1252 -t UTF-8 FILE{remedy}"
        ) from None


def read_lines(
    path: Path | str,
    compression: str | None,
    errors: str = "strict",
    remedy: str = "",
    begin: int = 0,
    end: int | None = None,
) -> Iterator[tuple[str, str]]:
    """Yield the lines of a UTF-8 file, each with its place for errors.

    Args:
        path: the file.
        compression: "gzip", "zstd" or None.
        errors: "strict", or "replace" to put U+FFFD for undecodable bytes.
        remedy: an alternative to converting the file, for the error.
        begin: the byte to begin at, the first of a line, in a file that is not packed.
        end: the byte to stop before. None: the end of the file.

    Yields:
        The place, and the line with its line end. The place is "FILE: line N", or "FILE: the line at byte N" with a
        `begin`, for the lines before it have not been counted.

    Raises:
        InputError: if the file cannot be read, or a line is not UTF-8 or longer than `MAX_WHOLE_LINE` bytes.
    """
    pieces = read_pieces(path, compression, MAX_WHOLE_LINE, whole_lines=True, begin=begin, end=end)
    for number, (offset, data) in enumerate(pieces, start=1):
        place = f"{path}: the line at byte {offset}" if begin else f"{path}: line {number}"

        def byte(start: int, offset: int = offset, place: str = place) -> str:
            return f"{place}, byte {offset + start},"

        yield place, decode(data, byte, errors, remedy)


def read_whole(path: Path | str, limit: int) -> str:
    """Read a UTF-8 file at once: unpacked if it ends in .gz or .zst, without byte order marks, with LF for CR alone.

    Args:
        path: the file.
        limit: most bytes, unpacked.

    Raises:
        InputError: if the file cannot be read, is damaged, longer than `limit`, not UTF-8, or another format.
    """
    pieces, size = [], 0
    for _, piece in read_pieces(path, COMPRESSIONS.get(Path(path).suffix.lower()), limit):
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise InputError(f"{path} unpacks to more than {limit} bytes; unpack it, or split it")
    data = b"".join(pieces)

    def line(start: int) -> str:
        return f"{path}: line {data[:start].count(10) + 1}"

    return decode(data, line).lstrip("\ufeff")
