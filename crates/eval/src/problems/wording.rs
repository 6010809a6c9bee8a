//! Ways to say a problem: an introduction, a set of phrases and a question are drawn.

/// A family's sentences; `{s}` is the start, `{a}` and `{b}` an operation's operands.
pub(super) struct Wording {
    pub intros: &'static [&'static str],
    /// Each indexed by an operation's kind.
    pub phrases: &'static [&'static [&'static str]],
    pub questions: &'static [&'static str],
}

pub(super) const ARITHMETIC: Wording = Wording {
    intros: &[
        "Start with {s}.",
        "Begin at {s}.",
        "Take the number {s}.",
        "A counter shows {s}.",
    ],
    phrases: &[
        &["add {a}", "subtract {a}", "multiply by {a}"],
        &["plus {a}", "minus {a}", "times {a}"],
        &["+{a}", "-{a}", "*{a}"],
    ],
    questions: &[
        "What is the result modulo 100?",
        "Work modulo 100. What is left?",
        "What are the last two digits?",
        "Keep only the last two digits. What do you get?",
    ],
};

pub(super) const COLUMNS: Wording = Wording {
    intros: &[
        "Work on two long numbers column by column, from the right.",
        "Here are the columns of two long numbers, from the right.",
        "Do this column by column, carrying as you go.",
    ],
    phrases: &[&["{a}+{b}", "{a}-{b}"]],
    questions: &[
        "What is the sum of all digits of the result, modulo 10?",
        "Ignore the last carry. What is the digit sum of the result modulo 10?",
        "Add up the digits of the result. What is the last digit of that sum?",
    ],
};

pub(super) const BOXES: Wording = Wording {
    intros: &[
        "Five boxes in a row hold {s}.",
        "Five cups stand in the order {s}.",
        "Five cards lie in the order {s}.",
    ],
    phrases: &[
        &["swap {a} and {b}"],
        &["exchange {a} and {b}"],
        &["switch {a} with {b}"],
    ],
    questions: &[
        "What is the order at the end?",
        "What is the row now?",
        "In which order are they now?",
    ],
};

pub(super) const VARIABLES: Wording = Wording {
    intros: &[
        "Four cells hold {s}.",
        "Four registers contain {s}.",
        "Four counters show {s}.",
    ],
    phrases: &[
        &["put {b} in {a}", "copy {b} to {a}", "increase {a} by {b}"],
        &["set {a} to {b}", "load {a} from {b}", "raise {a} by {b}"],
    ],
    questions: &[
        "What do they hold at the end, modulo 10?",
        "Count modulo 10. What are they now?",
        "Keep one digit each. What do they show?",
    ],
};
