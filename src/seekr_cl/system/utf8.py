"""Text of files that some editors put a byte order mark in front of."""

BOM = b"\xef\xbb\xbf"


def decoded(raw: bytes) -> str:
    """A file's text without its mark.

    Not by the codec "utf-8-sig": Python looks for that one's file when it is first used, where a process that has given
    up its rights may not find it.

    Raises:
        UnicodeDecodeError: the bytes are not UTF-8; places count from behind the mark.
    """
    return raw.removeprefix(BOM).decode("utf-8")
