"""Seeded string skills that the embedded demo teaches to a tiny character model.

Every skill turns a short prompt such as ``"reverse: abcde="`` into an answer such as ``"edcba"``. The shipped
base model is pretrained on ``BASE_SKILLS``; ``STREAM_SKILLS`` are the tasks the demo then teaches one by one.
Only the standard library is used, so the same seed gives the same rows on every machine.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Callable, Collection
from dataclasses import dataclass

from seekr_cl.errors import DataError

VOCABULARY: str = string.ascii_lowercase + string.digits + " :=,"
"""Every character a prompt or an answer may hold."""

MAX_CHARACTERS: int = 40
"""Upper bound on the length of a prompt plus its answer."""

_LETTERS = string.ascii_lowercase
_VOWELS = "aeiou"
_CONSONANTS = "".join(letter for letter in _LETTERS if letter not in _VOWELS)
# A small alphabet is used where the rule depends on which letter it is: a few hundred examples then show
# each letter often enough for the rule, rather than the alphabet, to be what is hard.
_FEW_LETTERS = _LETTERS[:10]

# Skills have small prompt spaces here and there; give up once this many draws in a row bring nothing new.
_MAX_BARREN_DRAWS = 2000


@dataclass(frozen=True)
class Skill:
    """One string-to-string task.

    Attributes:
        name: The short name, also the first word of every prompt.
        describe: One sentence that says what the answer is.
        make: Draws one ``(prompt, answer)`` pair from a random generator.
    """

    name: str
    describe: str
    make: Callable[[random.Random], tuple[str, str]]


def _word(rng: random.Random, low: int, high: int, alphabet: str = _LETTERS) -> str:
    return "".join(rng.choices(alphabet, k=rng.randint(low, high)))


def _words(rng: random.Random) -> list[str]:
    return [_word(rng, 2, 4) for _ in range(3)]


def _copy(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 3, 7)
    return f"copy: {word}=", word


def _repeat(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 2, 4)
    return f"repeat: {word}=", word + word


def _double(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 2, 4)
    return f"double: {word}=", "".join(letter * 2 for letter in word)


def _next(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 3, 6)
    return f"next: {word}=", "".join(_LETTERS[(_LETTERS.index(letter) + 1) % 26] for letter in word)


def _digits(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 3, 6, _FEW_LETTERS)
    return f"digits: {word}=", "".join(str(_FEW_LETTERS.index(letter)) for letter in word)


def _initials(rng: random.Random) -> tuple[str, str]:
    words = _words(rng)
    return f"initials: {' '.join(words)}=", "".join(word[0] for word in words)


def _sort(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 3, 5, _FEW_LETTERS)
    return f"sort: {word}=", "".join(sorted(word))


def _remove(rng: random.Random) -> tuple[str, str]:
    letters = rng.sample(_LETTERS, 3)
    word = "".join(rng.choices(letters, k=rng.randint(4, 6)))
    # One other letter always stays, so that the answer is never empty.
    gone = rng.choice([letter for letter in letters if set(word) != {letter}])
    return f"remove {gone}: {word}=", word.replace(gone, "")


def _reverse(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 4, 5)
    return f"reverse: {word}=", word[::-1]


def _last(rng: random.Random) -> tuple[str, str]:
    words = _words(rng)
    return f"last: {' '.join(words)}=", "".join(word[-1] for word in words)


def _length(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 2, 9)
    return f"length: {word}=", str(len(word))


def _after(rng: random.Random) -> tuple[str, str]:
    # No letter occurs twice, so the place to read from is never in doubt; the last letter has nothing after it.
    letters = rng.sample(_LETTERS, 5)
    place = rng.randrange(4)
    return f"after {letters[place]}: {''.join(letters)}=", "".join(letters[place + 1 :])


def _swap(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 6, 6)
    return f"swap: {word}=", "".join(word[i + 1] + word[i] for i in range(0, len(word), 2))


def _vowels(rng: random.Random) -> tuple[str, str]:
    kinds = [True, True, False, False, False, rng.random() < 0.5]
    rng.shuffle(kinds)
    word = "".join(rng.choice(_VOWELS if vowel else _CONSONANTS) for vowel in kinds)
    return f"vowels: {word}=", "".join(letter for letter in word if letter in _VOWELS)


BASE_SKILLS: tuple[Skill, ...] = (
    Skill("copy", "The word itself.", _copy),
    Skill("repeat", "The word twice.", _repeat),
    Skill("double", "Every letter of the word twice.", _double),
    Skill("next", "The following letter of the alphabet for every letter; z becomes a.", _next),
    Skill("digits", "The place in the alphabet, from 0, of every letter from a to j.", _digits),
    Skill("initials", "The first letter of every word.", _initials),
    Skill("sort", "The letters in alphabetical order.", _sort),
    Skill("remove", "The word without the named letter.", _remove),
)
"""The skills the shipped base model is pretrained on."""

STREAM_SKILLS: tuple[Skill, ...] = (
    Skill("reverse", "The word from its end to its start.", _reverse),
    Skill("length", "How many letters the word has.", _length),
    Skill("last", "The last letter of every word.", _last),
    Skill("after", "The letters that follow the named one.", _after),
    Skill("swap", "The letters with each pair of neighbours exchanged.", _swap),
    Skill("vowels", "The vowels of the word, in order.", _vowels),
)
"""The tasks the demo teaches one after another; the base model knows none of them."""


def examples(skill: Skill, n: int, seed: int, exclude: Collection[str] = frozenset()) -> list[dict[str, str]]:
    """Draw unique rows of a skill.

    Args:
        skill: The skill to draw from.
        n: How many rows to return.
        seed: The seed; with the skill's name it decides every row.
        exclude: Prompts that must not be drawn, such as those of another split.

    Returns:
        Rows with the keys ``prompt`` and ``completion``; no prompt occurs twice.

    Raises:
        DataError: If the skill cannot supply that many unique rows.
    """
    # ``hash()`` of a string changes from one process to the next; a digest does not.
    digest = hashlib.sha256(f"{skill.name}:{seed}".encode()).digest()
    rng = random.Random(int.from_bytes(digest, "big"))
    seen = set(exclude)
    rows: list[dict[str, str]] = []
    barren = 0
    while len(rows) < n:
        prompt, answer = skill.make(rng)
        if prompt in seen:
            barren += 1
            if barren > _MAX_BARREN_DRAWS:
                raise DataError(f"skill {skill.name}: only {len(rows)} of {n} unique rows found; ask for fewer")
            continue
        barren = 0
        seen.add(prompt)
        rows.append({"prompt": prompt, "completion": answer})
    return rows
