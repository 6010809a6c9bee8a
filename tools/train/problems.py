"""Problems with one right answer and a chain of thought of a chosen length.

Four families, each a list of labelled steps, each step solved on one line of the chain. Everything
is drawn from one SplitMix64 stream, so that a port to another language gives the same problems from
the same (family, steps, split, seed): the grammar and the order of the draws are written out in
models/ponder/README.md, and models/ponder/problems.json holds test vectors.

Which split a problem belongs to is decided by a hash of its content, not of its wording: training,
validation and test are disjoint by construction.
"""

from __future__ import annotations

from dataclasses import dataclass

MASK = (1 << 64) - 1
FAMILIES = ("arithmetic", "columns", "boxes", "variables")
SPLITS = ("train", "validation", "test")
MAX_STEPS = 64


def mix64(z: int) -> int:
    """SplitMix64's output function: a bijection on 64-bit integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


class SplitMix64:
    """Steele, Lea and Flood's generator; `below(n)` is the high half of a 32 x 32 bit product."""

    def __init__(self, state: int) -> None:
        self.state = state & MASK

    def next_u64(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        return mix64(self.state)

    def below(self, n: int) -> int:
        """An integer in 0..n (n < 2**32)."""
        return ((self.next_u64() >> 32) * n) >> 32


def fnv1a64(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def split_of(canonical: str) -> str:
    """The split a problem belongs to: 1/16 test, 1/16 validation, the rest training."""
    bucket = mix64(fnv1a64(canonical.encode())) & 15
    return {0: "test", 1: "validation"}.get(bucket, "train")


def label(i: int) -> str:
    """The label of step i (from 0): a..z, aa..az, ba..bl."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters[i] if i < 26 else letters[i // 26 - 1] + letters[i % 26]


@dataclass(frozen=True)
class Problem:
    """One problem: what is asked, the shortest right chain, and the answer."""

    family: str
    steps: int
    canonical: str  # the content without the wording; its hash decides the split
    prompt: str  # the user's message
    chain: tuple[str, ...]  # lines of the chain: the starting state, then one line a step
    value: str  # the bare answer
    answer: str  # the answer as a sentence

    @property
    def completion(self) -> str:
        """What follows the generation prompt (which ends with `<think>` and a newline)."""
        return "\n".join(self.chain) + f"\n</think>\n\n{self.answer}"


@dataclass(frozen=True)
class Draft:
    """A family's draw before wording: `ops` are (kind, first, second) triples."""

    start: str
    ops: list[tuple[int, int, int]]
    canonical: str


# --- arithmetic: left to right, modulo 100. Every operation is a bijection of 0..99, so that a wrong
# --- value never becomes right again.

SIGNS = "+-*"
FACTORS = (3, 7, 9)


def draw_arithmetic(rng: SplitMix64, steps: int) -> Draft:
    start = 10 + rng.below(90)
    ops = []
    for _ in range(steps):
        kind = (0, 0, 1, 1, 2)[rng.below(5)]
        operand = FACTORS[rng.below(3)] if kind == 2 else 10 + rng.below(90)
        ops.append((kind, operand, 0))
    text = "".join(f"|{SIGNS[k]}{n}" for k, n, _ in ops)
    return Draft(str(start), ops, f"arithmetic|{start}{text}")


def chain_arithmetic(draft: Draft, first: int) -> tuple[list[str], str]:
    value = int(draft.start)
    lines = [f"{value:02}"]
    for i, (kind, n, _) in enumerate(draft.ops):
        units = (value % 10 + n % 10, 10 + value % 10 - n % 10, (value % 10) * n)[kind]
        tens = (value // 10 + n // 10, value // 10 - n // 10 - 1, value // 10 * n)[kind] % 10
        value = (value + n, value - n, value * n)[kind] % 100
        operand = f" {n}" if kind == 2 else f"{n}"
        lines.append(f" {label(first + i)}) {SIGNS[kind]}{operand} {units:02}{tens} {value:02}")
    return lines, str(value)


# --- columns: addition or subtraction of two long numbers, column by column from the right.


def draw_columns(rng: SplitMix64, steps: int) -> Draft:
    kind = rng.below(2)
    ops = [(kind, rng.below(10), rng.below(10)) for _ in range(steps)]
    text = "".join(f"|{a}{SIGNS[kind]}{b}" for _, a, b in ops)
    return Draft("00 0" if kind == 0 else "10 0", ops, f"columns{text}")


def chain_columns(draft: Draft, first: int) -> tuple[list[str], str]:
    lines, carry, check = [draft.start], 0, 0
    for i, (kind, a, b) in enumerate(draft.ops):
        column = a + b + carry if kind == 0 else 10 + a - b - carry
        carry = column // 10 if kind == 0 else 1 - column // 10
        check = (check + column) % 10
        lines.append(f" {label(first + i)}) {a}{SIGNS[kind]}{b} {column:02} {check}")
    return lines, str(check)


# --- boxes: five letters in a row, two of them swapped at each step.


def draw_boxes(rng: SplitMix64, steps: int) -> Draft:
    row = list("ABCDE")
    for i in (4, 3, 2, 1):
        j = rng.below(i + 1)
        row[i], row[j] = row[j], row[i]
    ops = []
    for _ in range(steps):
        p = rng.below(5)
        q = (p + 1 + rng.below(4)) % 5
        ops.append((0, min(p, q) + 1, max(p, q) + 1))
    start = "".join(row)
    return Draft(start, ops, f"boxes|{start}" + "".join(f"|{p}{q}" for _, p, q in ops))


def chain_boxes(draft: Draft, first: int) -> tuple[list[str], str]:
    row, lines = list(draft.start), [draft.start]
    for i, (_, p, q) in enumerate(draft.ops):
        row[p - 1], row[q - 1] = row[q - 1], row[p - 1]
        lines.append(f" {label(first + i)}) {p}{q} {''.join(row)}")
    return lines, "".join(row)


# --- variables: four cells of one digit: stored into, copied, increased modulo 10.

MARKS = "=<+"


def draw_variables(rng: SplitMix64, steps: int) -> Draft:
    start = "".join(str(rng.below(10)) for _ in range(4))
    ops = []
    for _ in range(steps):
        kind = (0, 1, 2, 2)[rng.below(4)]
        cell = rng.below(4)
        operand = rng.below(10) if kind == 0 else (cell + 1 + rng.below(3)) % 4 + 1 if kind == 1 else 1 + rng.below(9)
        ops.append((kind, cell + 1, operand))
    text = "".join(f"|{c}{MARKS[k]}{n}" for k, c, n in ops)
    return Draft(start, ops, f"variables|{start}{text}")


def chain_variables(draft: Draft, first: int) -> tuple[list[str], str]:
    cells, lines = [int(c) for c in draft.start], [draft.start]
    for i, (kind, c, n) in enumerate(draft.ops):
        cells[c - 1] = n if kind == 0 else cells[n - 1] if kind == 1 else (cells[c - 1] + n) % 10
        lines.append(f" {label(first + i)}) {c}{MARKS[kind]}{n} {''.join(map(str, cells))}")
    return lines, "".join(map(str, cells))


# --- wording: {s} the start, {a} and {b} the operands, in the order the sentence needs them.


@dataclass(frozen=True)
class Wording:
    """Ways to say a problem: one intro, one set of operation phrases and one question are drawn."""

    intros: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]  # each indexed by an operation's kind
    questions: tuple[str, ...]


WORDING = {
    "arithmetic": Wording(
        ("Start with {s}.", "Begin at {s}.", "Take the number {s}.", "A counter shows {s}."),
        (
            ("add {a}", "subtract {a}", "multiply by {a}"),
            ("plus {a}", "minus {a}", "times {a}"),
            ("+{a}", "-{a}", "*{a}"),
        ),
        (
            "What is the result modulo 100?",
            "Work modulo 100. What is left?",
            "What are the last two digits?",
            "Keep only the last two digits. What do you get?",
        ),
    ),
    "columns": Wording(
        (
            "Work on two long numbers column by column, from the right.",
            "Here are the columns of two long numbers, from the right.",
            "Do this column by column, carrying as you go.",
        ),
        (("{a}+{b}", "{a}-{b}"),),
        (
            "What is the sum of all digits of the result, modulo 10?",
            "Ignore the last carry. What is the digit sum of the result modulo 10?",
            "Add up the digits of the result. What is the last digit of that sum?",
        ),
    ),
    "boxes": Wording(
        (
            "Five boxes in a row hold {s}.",
            "Five cups stand in the order {s}.",
            "Five cards lie in the order {s}.",
        ),
        (("swap {a} and {b}",), ("exchange {a} and {b}",), ("switch {a} with {b}",)),
        ("What is the order at the end?", "What is the row now?", "In which order are they now?"),
    ),
    "variables": Wording(
        ("Four cells hold {s}.", "Four registers contain {s}.", "Four counters show {s}."),
        (
            ("put {b} in {a}", "copy {b} to {a}", "increase {a} by {b}"),
            ("set {a} to {b}", "load {a} from {b}", "raise {a} by {b}"),
        ),
        (
            "What do they hold at the end, modulo 10?",
            "Count modulo 10. What are they now?",
            "Keep one digit each. What do they show?",
        ),
    ),
}

DRAW = {"arithmetic": draw_arithmetic, "columns": draw_columns, "boxes": draw_boxes, "variables": draw_variables}
CHAIN = {"arithmetic": chain_arithmetic, "columns": chain_columns, "boxes": chain_boxes, "variables": chain_variables}


def problem(family: str, steps: int, split: str, seed: int, first: int = 0) -> Problem:
    """The problem of this family, number of steps and split that `seed` names.

    `first` is the label of the first step: other than 0 (`a`) in training only, where short problems
    teach the labels of long ones.

    Raises ValueError for an unknown family or split, or steps outside 1..=64 - first.
    """
    if family not in FAMILIES or split not in SPLITS or not 1 <= steps <= MAX_STEPS - first:
        raise ValueError(f"no problems of family {family!r}, split {split!r}, {steps} steps from {first}")
    rng = SplitMix64(
        seed * 0x9E3779B97F4A7C15
        + FAMILIES.index(family) * 0xBF58476D1CE4E5B9
        + steps * 0x94D049BB133111EB
        + SPLITS.index(split) * 0xD6E8FEB86659FD93
    )
    while True:
        draft = DRAW[family](rng, steps)
        if split_of(draft.canonical) == split:
            break
    words = WORDING[family]
    intro = words.intros[rng.below(len(words.intros))].format(s=draft.start)
    phrases = words.phrases[rng.below(len(words.phrases))]
    question = words.questions[rng.below(len(words.questions))]
    ops = "".join(f" {label(first + i)}) {phrases[k].format(a=a, b=b)}" for i, (k, a, b) in enumerate(draft.ops))
    chain, value = CHAIN[family](draft, first)
    prompt = f"{intro}{ops}. {question}"
    return Problem(family, steps, draft.canonical, prompt, tuple(chain), value, f"The answer is {value}.")
