"""The two files of one task: signals as safetensors, texts as JSON lines, both mapped and read sample by sample.

Only the tasks read last have theirs open (``open_files``): a memory of any number of tasks takes few open files.

    place    int64  [N, 4]      where sample n's signals begin and end in ``samples``, and its line in the texts
    index    uint32 [N, 4 + D]  its kind, completion start, the line's CRC-32, its shapes, CRC-32 of all the former
    samples  uint8  [bytes]     the samples' bytes behind one another (``records``)

The header's metadata lists the kinds. Every byte is covered by something that is compared when a sample is read: a
row's last number is the CRC-32 of header, the sample's rows of both tables, and its bytes.

Shapes: N samples, D numbers that say the shapes of the widest kind.
"""

import json
import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np

from seekr_cl.errors import MemoryFormatError
from seekr_cl.memory import sample_codec as records
from seekr_cl.memory.open_files import POOL
from seekr_cl.memory.sample_codec import Field, Kind, Record
from seekr_cl.memory.samples import ReplaySample, Totals, check_sample, sample_id
from seekr_cl.os_errors import describe
from seekr_cl.system.files import write_stream
from seekr_cl.system.reading import open_plain, parse_json

_LARGEST_HEADER = 1 << 20
_FIXED = 4
"""Columns of ``index`` beside the shapes."""


def write_shard(stem: Path, samples: Sequence[ReplaySample]) -> list[dict[str, Any]]:
    """Writes a task's samples, one at a time.

    Args:
        stem: folder and name of both files, without their endings.
        samples: at least one. Each is read twice, once to learn what goes into the tables in front.

    Returns:
        The manifest's records of texts and signals.

    Raises:
        OutputError: if something cannot be written.
    """
    kinds: list[Kind] = []
    rows: list[list[int]] = []
    place_N4 = np.zeros((len(samples), 4), "<i8")
    crcs: list[int] = []
    end = text_end = 0
    for number, sample in enumerate(samples):
        record, line = records.encode(sample), text_line(sample)
        if record.kind not in kinds:
            kinds.append(record.kind)
        place_N4[number] = end, end + len(record.content), text_end, text_end + len(line)
        end, text_end = end + len(record.content), text_end + len(line)
        rows.append([kinds.index(record.kind), sample.completion_start, zlib.crc32(line), *record.dims])
        crcs.append(zlib.crc32(record.content))
    width = _FIXED + max(map(records.num_dims, kinds))
    index_NW = np.zeros((len(samples), width), "<u4")
    for number, row in enumerate(rows):
        index_NW[number, : len(row)] = row
    header = _header(len(samples), width, end, kinds)
    seed = zlib.crc32(header)
    for number, crc in enumerate(crcs):
        index_NW[number, -1] = _seal(seed, place_N4[number], index_NW[number, :-1], crc)
    texts = write_stream(stem.with_name(f"{stem.name}.jsonl"), map(text_line, samples), private=True)

    def content() -> Iterator[bytes]:
        yield from (header, place_N4.tobytes(), index_NW.tobytes())
        yield from (records.encode(sample).content for sample in samples)

    return [texts, write_stream(stem.with_name(f"{stem.name}.safetensors"), content(), private=True)]


class StoredSamples(Sequence[ReplaySample]):
    """The samples of one task on disk; each is read, checked and built when it is asked for.

    Nothing is kept between two reads, so that RAM does not grow with the memory. Works in forked data loader workers.

    Args:
        texts: the JSON lines; size already checked.
        signals: the safetensors file; size already checked.
        heads: the task's, for checking the samples' rows.
        totals: what the manifest says of the samples.

    Raises:
        MemoryFormatError: if header and sizes do not fit each other; samples are checked when they are read.
    """

    def __init__(self, texts: Path, signals: Path, heads: dict[int, list[int]], totals: Totals) -> None:
        self.texts, self.signals, self.heads, self.totals = texts, signals, heads, totals
        self._files: _Files | None = None
        self._known: list[tuple[int, ...]] | None = None
        self._opened()

    def let_go(self) -> None:
        """Closes the files; they are opened again at the next read."""
        self._files = None

    def __len__(self) -> int:
        return self.totals.samples

    @overload
    def __getitem__(self, index: int) -> ReplaySample: ...
    @overload
    def __getitem__(self, index: slice) -> list[ReplaySample]: ...
    def __getitem__(self, index: Any) -> Any:
        """One sample, or a list for a slice; MemoryFormatError names a file whose bytes are not those written."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        record, start = self._record(number)
        try:
            sample = records.decode(record, partial(self.text, number), start)
            check_sample(sample, self.heads)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
            raise MemoryFormatError(
                f"{self.signals}: sample {number} is not one ({type(error).__name__}: {error}); "
                "restore the folder from a copy"
            ) from error
        return sample

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]

    def text(self, number: int) -> tuple[str, str]:
        """Prompt and completion of one sample, without its signals.

        Raises:
            MemoryFormatError: naming the file, if they are not what was written.
        """
        files = self._opened().still_whole()
        begin, end = (int(place) for place in files.place_N4[number, 2:])
        if begin != (int(files.place_N4[number - 1, 3]) if number else 0) or not begin <= end <= len(files.text_map):
            raise MemoryFormatError(f"{self.signals}: places of sample {number} are wrong; restore it from a copy")
        line = files.text_map[begin:end]
        if zlib.crc32(line) != int(files.index_NW[number, 2]):
            raise MemoryFormatError(f"{self.texts}: sample {number} differs from its checksum; restore it from a copy")
        try:
            content = parse_json(line)
            prompt, completion = content["prompt"], content["completion"]
            if not isinstance(prompt, str) or not isinstance(completion, str):
                raise TypeError("prompt and completion must be text")
            if content["id"] != sample_id(prompt, completion):
                raise ValueError("its id is that of other texts")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise MemoryFormatError(
                f"{self.texts}: sample {number} is not one ({type(error).__name__}: {error}); restore it from a copy"
            ) from error
        return prompt, completion

    def sample_id(self, number: int) -> str:
        """The id of one sample; see ``ReplaySample.sample_id``."""
        return sample_id(*self.text(number))

    def num_tokens(self, number: int) -> int:
        """Length of one sample, without reading it."""
        kind, dims = self._shape(self._opened(), number)
        names = [field.name for field in kind]
        return dims[sum(field.axes for field in kind[: names.index("ids")])]

    def bytes_by_kind(self) -> dict[str, int]:
        """Bytes of the texts, the token ids, each kind of signal, and the tables, from the shapes alone."""
        files = self._opened().still_whole()
        found = {"texts": len(files.text_map)}
        for number in range(len(self)):
            kind, dims = self._shape(files, number)
            at = 0
            for name, dtype, axes in kind:
                size = records.record_bytes((Field(name, dtype, axes),), dims[at : at + axes])
                at += axes
                part = "token ids" if name in ("ids", "learnt") else name.partition("/")[0]
                found[part] = found.get(part, 0) + size
        found["tables"] = len(files.map) - files.num_bytes
        return found

    def _opened(self) -> "_Files":
        """The open files, opened anew if they were closed meanwhile."""
        files = self._files or self._open()
        if POOL.newest != id(self):
            POOL.used(self)
        return files

    def _open(self) -> "_Files":
        """Opens the files, which must be those that were open before.

        Raises:
            MemoryFormatError: if they are not.
        """
        files = _Files(self.texts, self.signals, self.totals.samples)
        if self._known not in (None, files.known):
            raise MemoryFormatError(f"{self.signals}: was changed while it was open; restore it from a copy")
        self._files, self._known = files, files.known
        POOL.used(self)
        return files

    def _shape(self, files: "_Files", number: int) -> tuple[Kind, list[int]]:
        row = files.index_NW[number]
        if int(row[0]) >= len(files.kinds):
            raise MemoryFormatError(f"{self.signals}: sample {number} is of no known kind; restore it from a copy")
        kind = files.kinds[int(row[0])]
        return kind, [int(size) for size in row[_FIXED - 1 : _FIXED - 1 + records.num_dims(kind)]]

    def _record(self, number: int) -> tuple[Record, int]:
        """The bytes of one sample with their kind and shapes, and its completion start; the checksum is compared."""
        files = self._opened().still_whole()
        place_4, row_W = files.place_N4[number], files.index_NW[number]
        begin, end = int(place_4[0]), int(place_4[1])
        former = int(files.place_N4[number - 1, 1]) if number else 0
        if begin != former or not begin <= end <= files.num_bytes:
            raise MemoryFormatError(f"{self.signals}: places of sample {number} are wrong; restore it from a copy")
        content = files.map[files.first + begin : files.first + end]
        if _seal(files.seed, place_4, row_W[:-1], zlib.crc32(content)) != int(row_W[-1]):
            raise MemoryFormatError(
                f"{self.signals}: sample {number} differs from its checksum; restore it from a copy"
            )
        kind, dims = self._shape(files, number)
        return Record(kind, dims, content), int(row_W[1])


class _Files:
    """Both files of a task, mapped, with the tables in front of the signals.

    Args:
        texts: the JSON lines.
        signals: the safetensors file.
        count: samples.

    Attributes:
        known: what tells these files from others of the same names: device, inode, size of each.

    Raises:
        MemoryFormatError: if they cannot be mapped, or header and sizes do not fit each other.
    """

    def __init__(self, texts: Path, signals: Path, count: int) -> None:
        self.paths = texts, signals
        (self.text_map, one), (self.map, other) = _mapped(texts), _mapped(signals)
        self.known = [one, other]
        try:
            self._read(count)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise MemoryFormatError(
                f"{signals}: does not hold the samples of {texts.name} ({type(error).__name__}: {error}); "
                "restore the folder from a copy"
            ) from error

    def still_whole(self) -> "_Files":
        """These files; MemoryFormatError if somebody has cut them short meanwhile."""
        # Looking at a page beyond a file's end kills the process, so it is found before.
        for path, mapped in zip(self.paths, (self.text_map, self.map)):
            if mapped.size() != len(mapped):
                raise MemoryFormatError(f"{path}: was changed while it was open; restore it from a copy")
        return self

    def _read(self, count: int) -> None:
        size = len(self.map)
        length = int.from_bytes(self.map[:8], "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = self.map[: 8 + length]
        content = parse_json(header[8:])
        self.kinds = records.kinds_from_text(content.pop("__metadata__")["kinds"])
        width = _FIXED + max(map(records.num_dims, self.kinds), default=0)
        self.num_bytes = size - len(header) - count * (4 * 8 + width * 4)
        if self.num_bytes < 0 or count < 1 or content != _entries(count, width, self.num_bytes):
            raise ValueError(f"the tables are not those of {count} samples in {size} bytes")
        # Arrays on the map: a row is read from the disk when it is looked at.
        self.place_N4 = np.frombuffer(self.map, "<i8", count * 4, len(header)).reshape(count, 4)
        first = len(header) + self.place_N4.nbytes
        self.index_NW = np.frombuffer(self.map, "<u4", count * width, first).reshape(count, width)
        self.first, self.seed = first + self.index_NW.nbytes, zlib.crc32(header)
        ends = (int(self.place_N4[-1, 1]), int(self.place_N4[-1, 3]))
        if ends != (self.num_bytes, len(self.text_map)):
            raise ValueError("the last sample does not end where the files do")


def table_bytes(kind: Kind) -> int:
    """Bytes of one sample's rows in the tables."""
    return 4 * 8 + 4 * (_FIXED + records.num_dims(kind))


def header_bytes(kinds: set[Kind]) -> int:
    """Bytes of a file's header at the most, for samples of these kinds."""
    width = _FIXED + max(map(records.num_dims, kinds))
    return len(_header(1 << 40, width, 1 << 50, list(kinds)))


def text_line(sample: ReplaySample) -> bytes:
    """A sample's line in the file of texts."""
    content = {"id": sample.sample_id, "prompt": sample.prompt, "completion": sample.completion}
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()


def _entries(count: int, width: int, num_bytes: int) -> dict[str, Any]:
    """The header of a file of that many samples, rows that wide and signals of that many bytes."""
    entries, at = {}, 0
    for name, dtype, shape, itemsize in (
        ("place", "I64", [count, 4], 8),
        ("index", "U32", [count, width], 4),
        ("samples", "U8", [num_bytes], 1),
    ):
        size = itemsize * shape[0] * (shape[1] if len(shape) > 1 else 1)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return entries


def _header(count: int, width: int, num_bytes: int, kinds: list[Kind]) -> bytes:
    content = {"__metadata__": {"kinds": records.kinds_to_text(kinds)}, **_entries(count, width, num_bytes)}
    text = json.dumps(content, separators=(",", ":")).encode()
    # Tables begin at a multiple of eight, where they can be looked at without a copy.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _seal(seed: int, place_4: Any, row: Any, crc: int) -> int:
    """CRC-32 of one sample: what stands in the header, in both tables, and the CRC-32 of its bytes."""
    return zlib.crc32(crc.to_bytes(4, "little"), zlib.crc32(row.tobytes(), zlib.crc32(place_4.tobytes(), seed)))


def _mapped(path: Path) -> tuple[mmap.mmap, tuple[int, ...]]:
    try:
        with open_plain(path) as file:
            found = os.fstat(file.fileno())
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):
            # Replay draws samples at random: what lies around one on the disk is not wanted next.
            mapped.madvise(mmap.MADV_RANDOM)
        return mapped, (found.st_dev, found.st_ino, found.st_size)
    except OSError as error:
        # Nothing is known to be wrong with a file that could not be looked at.
        raise MemoryFormatError(describe(error)) from error
    except ValueError as error:
        raise MemoryFormatError(f"{path}: not readable ({error}); restore it from a copy") from error
