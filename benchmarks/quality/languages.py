"""Text of other languages that machines carry: what translators of programs wrote, out of gettext's catalogues.

    FOLDER/de/LC_MESSAGES/bash.mo, coreutils.mo, git.mo, ...       long messages only, one paragraph each

It is real text by people, of a technical kind, and differs between versions of the programs: compare bits per byte on
it within one file of results. For anything else give --text de=FILE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

PROGRAMS = (
    "bash", "coreutils", "git", "gnupg2", "libc", "wget", "tar", "sed", "grep", "apt", "dpkg", "gettext-tools", "make",
    "diffutils", "findutils", "systemd", "django", "sphinx",
)  # fmt: skip
FOLDERS = (Path("/usr/share/locale"), Path("/usr/local/share/locale"))
_MAGIC = 0x950412DE
_SHORTEST, _LETTERS = 80, 0.75  # characters; share of letters and blanks: below it is a format, a table, an option list


def messages(path: Path) -> Iterator[tuple[str, str]]:
    """(message, translation) of a .mo file: two tables of (length, offset), uint32, in the file's byte order.

    The header (the translation of "") and plural forms are left out.

    Raises:
        ValueError: a file that is no catalogue, or whose tables point outside of it.
    """
    data = Path(path).read_bytes()
    order = next((mark for mark in "<>" if len(data) >= 28 and struct.unpack_from(mark + "I", data)[0] == _MAGIC), None)
    if order is None:
        raise ValueError(f"{path} is no message catalogue; give a .mo file")
    count, ours, theirs = struct.unpack_from(order + "3I", data, 8)
    if max(ours, theirs) + 8 * count > len(data):
        raise ValueError(f"{path} is damaged: {count} messages do not fit into its {len(data)} bytes")

    def text(table: int, place: int) -> bytes:
        length, offset = struct.unpack_from(order + "2I", data, table + 8 * place)
        if offset + length > len(data):
            raise ValueError(f"{path} is damaged: message {place} ends behind its {len(data)} bytes")
        return data[offset : offset + length]

    for place in range(count):
        message, translation = text(ours, place), text(theirs, place)
        if message and b"\0" not in message + translation:
            yield message.decode("utf-8", "replace"), translation.decode("utf-8", "replace")


def catalogues(language: str, folders: Sequence[Path] = FOLDERS) -> list[Path]:
    """The catalogues of `PROGRAMS` in that language, in the order of the programs.

    Raises:
        ValueError: there is none.
    """
    found = [
        folder / language / "LC_MESSAGES" / f"{program}.mo"
        for program in PROGRAMS for folder in folders
        if (folder / language / "LC_MESSAGES" / f"{program}.mo").is_file()
    ]  # fmt: skip
    if not found:
        places = " or ".join(str(folder) for folder in folders)
        raise ValueError(f"no translations into {language} in {places}; give --text {language}=FILE or --catalogues")
    return found


def translated_text(language: str, folders: Sequence[Path] = FOLDERS) -> str:
    """The long translations into `language`, a paragraph each, every one once; untranslated ones are left out."""
    paragraphs: dict[str, None] = {}
    for path in catalogues(language, folders):
        for message, translation in messages(path):
            text = " ".join(translation.split())
            letters = sum(character.isalpha() or character == " " for character in text)
            if "\ufffd" in text:
                continue  # a catalogue in another encoding than UTF-8
            if translation != message and len(text) >= _SHORTEST and letters >= _LETTERS * len(text):
                paragraphs[text] = None
    return "\n\n".join(paragraphs)
