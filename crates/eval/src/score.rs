//! Whether a chain came out right, where it first went wrong, and how long it was.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::problems::{Family, Problem};

/// What became of one problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Its kind.
    pub family: Family,
    /// Steps of its chain.
    pub steps: usize,
    /// Whether the answer is right.
    pub correct: bool,
    /// The first step (from 1; 0 is the starting state) whose line is wrong or missing.
    pub first_wrong_step: Option<usize>,
    /// Tokens of thinking, over those of the shortest right chain.
    pub inflation: f64,
}

impl Outcome {
    /// Holds what was generated against the problem.
    pub fn of(problem: &Problem, reasoning: &str, answer: &str, inflation: f64) -> Outcome {
        Outcome {
            family: problem.family,
            steps: problem.steps,
            correct: final_answer(answer) == Some(problem.value.as_str()),
            first_wrong_step: first_wrong_step(problem, reasoning),
            inflation,
        }
    }
}

/// The last word of the answer that could be a value, without punctuation.
fn final_answer(answer: &str) -> Option<&str> {
    let is_value = |w: &&str| {
        w.chars()
            .any(|c| c.is_ascii_digit() || c.is_ascii_uppercase())
    };
    let words = answer
        .split_whitespace()
        .map(|w| w.trim_matches(|c: char| !c.is_alphanumeric()));
    words.rev().find(is_value)
}

/// The first line that is not the shortest chain's, blank lines and spaces aside.
fn first_wrong_step(problem: &Problem, reasoning: &str) -> Option<usize> {
    let lines = |text: &str| -> Vec<String> {
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        text.lines()
            .map(words)
            .filter(|line| !line.is_empty())
            .collect()
    };
    let (wanted, found) = (lines(&problem.chain.join("\n")), lines(reasoning));
    (0..wanted.len()).find(|&i| found.get(i) != Some(&wanted[i]))
}

/// Accuracy of a set of outcomes, by family and by length of the chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Share of problems answered right.
    pub accuracy: f64,
    /// Number of problems.
    pub problems: usize,
    /// Wall time.
    pub seconds: f64,
    /// By kind of problem.
    pub families: Vec<FamilyReport>,
}

/// Accuracy within a family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FamilyReport {
    /// Its name.
    pub family: String,
    /// Share answered right.
    pub accuracy: f64,
    /// By length, shortest first.
    pub by_length: Vec<LengthReport>,
}

/// Accuracy at one length of the chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LengthReport {
    /// Steps of the chain.
    pub steps: usize,
    /// Number of problems.
    pub problems: usize,
    /// Share answered right.
    pub accuracy: f64,
    /// Mean of tokens thought over tokens of the shortest right chain.
    pub inflation: f64,
    /// Mean first wrong step, of the chains that went wrong.
    pub first_wrong_step: Option<f64>,
}

impl Report {
    /// Sums up `outcomes`.
    pub fn of(outcomes: &[Outcome], seconds: f64) -> Report {
        let mut families: BTreeMap<Family, BTreeMap<usize, Vec<&Outcome>>> = BTreeMap::new();
        for outcome in outcomes {
            let lengths = families.entry(outcome.family).or_default();
            lengths.entry(outcome.steps).or_default().push(outcome);
        }
        Report {
            accuracy: share(outcomes.iter()),
            problems: outcomes.len(),
            seconds,
            families: families
                .into_iter()
                .map(|(family, lengths)| FamilyReport {
                    family: family.name().to_owned(),
                    accuracy: share(lengths.values().flatten().copied()),
                    by_length: lengths.into_iter().map(|(s, o)| by_length(s, &o)).collect(),
                })
                .collect(),
        }
    }
}

impl Report {
    /// All families together, by length, shortest first.
    pub fn by_length(&self) -> Vec<LengthReport> {
        let mut lengths: BTreeMap<usize, Vec<&LengthReport>> = BTreeMap::new();
        for length in self.families.iter().flat_map(|f| &f.by_length) {
            lengths.entry(length.steps).or_default().push(length);
        }
        let pooled = lengths.into_iter().map(|(steps, of)| pooled(steps, &of));
        pooled.collect()
    }

    /// Mean token inflation over all problems; 1 without any.
    pub fn inflation(&self) -> f64 {
        let lengths = self.by_length();
        let problems: usize = lengths.iter().map(|l| l.problems).sum();
        let sum = |l: &LengthReport| l.inflation * l.problems as f64;
        match problems {
            0 => 1.0,
            n => lengths.iter().map(sum).sum::<f64>() / n as f64,
        }
    }
}

/// Several families' problems of one length.
fn pooled(steps: usize, of: &[&LengthReport]) -> LengthReport {
    let problems: usize = of.iter().map(|l| l.problems).sum();
    let weighted = |value: &dyn Fn(&LengthReport) -> f64| {
        of.iter().map(|l| value(l) * l.problems as f64).sum::<f64>() / problems.max(1) as f64
    };
    LengthReport {
        steps,
        problems,
        accuracy: weighted(&|l| l.accuracy),
        inflation: weighted(&|l| l.inflation),
        // How many chains went wrong is not kept, so neither is their mean.
        first_wrong_step: None,
    }
}

fn share<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> f64 {
    mean(outcomes.map(|o| f64::from(u8::from(o.correct)))).unwrap_or(0.0)
}

fn by_length(steps: usize, outcomes: &[&Outcome]) -> LengthReport {
    LengthReport {
        steps,
        problems: outcomes.len(),
        accuracy: share(outcomes.iter().copied()),
        inflation: mean(outcomes.iter().map(|o| o.inflation)).unwrap_or(0.0),
        first_wrong_step: mean(
            outcomes
                .iter()
                .filter_map(|o| Some(o.first_wrong_step? as f64)),
        ),
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0usize, 0.0), |(n, sum), x| (n + 1, sum + x));
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problems::Split;

    fn boxes() -> Problem {
        Problem::generate(Family::Boxes, 3, Split::Test, 5)
    }

    #[test]
    fn the_right_chain_and_answer_are_right() {
        let p = boxes();
        let answer = format!("The answer is {}.", p.value);
        let outcome = Outcome::of(&p, &p.chain.join("\n"), &answer, 1.0);
        assert!(outcome.correct && outcome.first_wrong_step.is_none());
    }

    #[test]
    fn the_first_wrong_line_is_found_and_a_missing_one_counts() {
        let p = boxes();
        let mut chain = p.chain.clone();
        chain[2] = " b) 11 XXXXX".into();
        assert_eq!(
            Outcome::of(&p, &chain.join("\n"), "", 1.0).first_wrong_step,
            Some(2)
        );
        let cut = p.chain[..3].join("\n");
        let outcome = Outcome::of(&p, &cut, "The answer is ABCDEF.", 1.0);
        assert_eq!(
            (outcome.correct, outcome.first_wrong_step),
            (false, Some(3))
        );
    }

    #[test]
    fn reports_group_by_family_and_length() {
        let outcome = |family, steps, correct, wrong| Outcome {
            family,
            steps,
            correct,
            first_wrong_step: wrong,
            inflation: 1.5,
        };
        let outcomes = [
            outcome(Family::Boxes, 4, true, None),
            outcome(Family::Boxes, 4, false, Some(3)),
            outcome(Family::Columns, 2, true, None),
            outcome(Family::Boxes, 1, true, None),
        ];
        let report = Report::of(&outcomes, 2.0);
        assert_eq!((report.accuracy, report.problems), (0.75, 4));
        assert_eq!(report.families[0].family, "columns");
        let boxes = &report.families[1].by_length;
        assert_eq!((boxes[0].steps, boxes[0].first_wrong_step), (1, None));
        assert_eq!(
            (boxes[1].accuracy, boxes[1].first_wrong_step),
            (0.5, Some(3.0))
        );
        let all = report.by_length();
        let steps: Vec<usize> = all.iter().map(|l| l.steps).collect();
        assert_eq!(steps, [1, 2, 4]);
        assert_eq!((all[2].problems, all[2].accuracy), (2, 0.5));
        assert_eq!(report.inflation(), 1.5);
        let none = Report::of(&[], 0.0);
        assert_eq!((none.accuracy, none.inflation()), (0.0, 1.0));
    }
}
