//! Problems with one right answer and a chain of thought of a chosen length.
//!
//! The same problems as `tools/train/problems.py` makes: everything is drawn from one stream of
//! integers, and which split a problem belongs to is decided by a hash of its content, so that
//! training, validation and test are disjoint by construction. `models/ponder/README.md` describes
//! the grammar, `models/ponder/problems.json` holds the vectors both are tested against.

mod families;
mod random;
mod wording;

use random::SplitMix64;
use wording::Wording;

/// Longest chain a problem can have.
pub const MAX_STEPS: usize = 64;

/// A kind of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// A number changed left to right, modulo 100.
    Arithmetic,
    /// Two long numbers added or subtracted by columns.
    Columns,
    /// Five letters, two swapped at a time.
    Boxes,
    /// Four digits, stored, copied and increased.
    Variables,
}

/// Which part of the problems: what is measured was never trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Seen in training.
    Train,
    /// For choices made while training.
    Validation,
    /// For figures that are reported.
    Test,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its kind.
    pub family: Family,
    /// Steps of its chain.
    pub steps: usize,
    /// The user's message.
    pub prompt: String,
    /// The shortest right chain: the starting state, then one line a step.
    pub chain: Vec<String>,
    /// The bare answer.
    pub value: String,
}

/// One operation, numbered within its family.
struct Op {
    kind: usize,
    first: u32,
    second: u32,
}

/// A problem before wording.
struct Draft {
    start: String,
    ops: Vec<Op>,
    /// The content without the wording; its hash decides the split.
    canonical: String,
}

impl Family {
    /// Every family, in the generator's order.
    pub const ALL: [Family; 4] = [
        Family::Arithmetic,
        Family::Columns,
        Family::Boxes,
        Family::Variables,
    ];

    /// Its name in reports and arguments.
    pub fn name(self) -> &'static str {
        match self {
            Family::Arithmetic => "arithmetic",
            Family::Columns => "columns",
            Family::Boxes => "boxes",
            Family::Variables => "variables",
        }
    }

    fn draw(self, rng: &mut SplitMix64, steps: usize) -> Draft {
        match self {
            Family::Arithmetic => families::draw_arithmetic(rng, steps),
            Family::Columns => families::draw_columns(rng, steps),
            Family::Boxes => families::draw_boxes(rng, steps),
            Family::Variables => families::draw_variables(rng, steps),
        }
    }

    fn chain(self, draft: &Draft) -> (Vec<String>, String) {
        match self {
            Family::Arithmetic => families::chain_arithmetic(draft),
            Family::Columns => families::chain_columns(draft),
            Family::Boxes => families::chain_boxes(draft),
            Family::Variables => families::chain_variables(draft),
        }
    }

    fn wording(self) -> &'static Wording {
        match self {
            Family::Arithmetic => &wording::ARITHMETIC,
            Family::Columns => &wording::COLUMNS,
            Family::Boxes => &wording::BOXES,
            Family::Variables => &wording::VARIABLES,
        }
    }
}

impl std::str::FromStr for Family {
    type Err = String;

    fn from_str(name: &str) -> Result<Family, String> {
        Family::ALL
            .into_iter()
            .find(|f| f.name() == name)
            .ok_or_else(|| {
                let known = Family::ALL.map(Family::name).join(", ");
                format!("no family of problems is called {name:?}: there are {known}")
            })
    }
}

impl Split {
    /// The split a content belongs to: one in 16 test, one in 16 validation.
    fn of(canonical: &str) -> Split {
        match random::bucket(canonical) {
            0 => Split::Test,
            1 => Split::Validation,
            _ => Split::Train,
        }
    }
}

impl Problem {
    /// The problem that `seed` names; `steps` is brought into 1..=[`MAX_STEPS`].
    pub fn generate(family: Family, steps: usize, split: Split, seed: u64) -> Problem {
        let steps = steps.clamp(1, MAX_STEPS);
        let mut rng = SplitMix64::new(seed, family as u64, steps as u64, split as u64);
        let draft = loop {
            let draft = family.draw(&mut rng, steps);
            if Split::of(&draft.canonical) == split {
                break draft;
            }
        };
        let prompt = word(family.wording(), &draft, &mut rng);
        let (chain, value) = family.chain(&draft);
        Problem {
            family,
            steps,
            prompt,
            chain,
            value,
        }
    }
}

fn word(wording: &Wording, draft: &Draft, rng: &mut SplitMix64) -> String {
    let intro = rng.pick(wording.intros).replace("{s}", &draft.start);
    let phrases = rng.pick(wording.phrases);
    let question = rng.pick(wording.questions);
    let op = |(i, op): (usize, &Op)| {
        let phrase = phrases[op.kind].replace("{a}", &op.first.to_string());
        format!(
            " {}) {}",
            label(i),
            phrase.replace("{b}", &op.second.to_string())
        )
    };
    let ops: String = draft.ops.iter().enumerate().map(op).collect();
    format!("{intro}{ops}. {question}")
}

/// The label of step `i`, from 0: a to z, then aa to az, ba to bl.
fn label(i: usize) -> String {
    let letter = |i: usize| char::from(b'a' + (i % 26) as u8);
    match i {
        0..26 => letter(i).into(),
        _ => [letter(i / 26 - 1), letter(i)].iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTORS: &str = include_str!("../../../../models/ponder/problems.json");

    #[derive(serde::Deserialize)]
    struct File {
        vectors: Vec<Vector>,
    }

    #[derive(serde::Deserialize)]
    struct Vector {
        family: String,
        steps: usize,
        split: String,
        seed: u64,
        prompt: String,
        chain: Vec<String>,
        value: String,
    }

    #[test]
    fn problems_are_those_of_the_training_tools() {
        let file: File = serde_json::from_str(VECTORS).unwrap();
        assert!(file.vectors.len() >= 4 * 5);
        for v in file.vectors {
            let split = match v.split.as_str() {
                "train" => Split::Train,
                "validation" => Split::Validation,
                _ => Split::Test,
            };
            let family: Family = v.family.parse().unwrap();
            let found = Problem::generate(family, v.steps, split, v.seed);
            let wanted = Problem {
                family,
                steps: v.steps,
                prompt: v.prompt,
                chain: v.chain,
                value: v.value,
            };
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn an_unknown_family_is_told_the_known_ones() {
        assert!("sudoku".parse::<Family>().unwrap_err().contains("boxes"));
    }
}
