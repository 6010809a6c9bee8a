//! What each family draws, and how its chain goes.

use super::random::SplitMix64;
use super::{Draft, Op, label};

const SIGNS: [char; 3] = ['+', '-', '*'];
const MARKS: [char; 3] = ['=', '<', '+'];

/// Left to right, modulo 100. Every operation is a bijection of 0..99, so a wrong value never
/// becomes right again.
pub(super) fn draw_arithmetic(rng: &mut SplitMix64, steps: usize) -> Draft {
    let start = 10 + rng.below(90);
    let mut op = || {
        let kind = [0, 0, 1, 1, 2][rng.below(5) as usize];
        let operand = if kind == 2 {
            [3, 7, 9][rng.below(3) as usize]
        } else {
            10 + rng.below(90)
        };
        Op {
            kind,
            first: operand,
            second: 0,
        }
    };
    let ops: Vec<Op> = (0..steps).map(|_| op()).collect();
    let text: String = ops
        .iter()
        .map(|op| format!("|{}{}", SIGNS[op.kind], op.first))
        .collect();
    Draft {
        start: start.to_string(),
        canonical: format!("arithmetic|{start}{text}"),
        ops,
    }
}

/// Each line: the operation; the sum (difference + 10, product) of the last digits and the tens
/// digit before its carry; the new value.
pub(super) fn chain_arithmetic(draft: &Draft) -> (Vec<String>, String) {
    let mut value: u32 = draft
        .start
        .bytes()
        .fold(0, |v, d| v * 10 + u32::from(d - b'0'));
    let mut lines = vec![format!("{value:02}")];
    for (i, op) in draft.ops.iter().enumerate() {
        let n = op.first;
        let (units, tens, next) = match op.kind {
            0 => (value % 10 + n % 10, value / 10 + n / 10, value + n),
            1 => (
                10 + value % 10 - n % 10,
                9 + value / 10 - n / 10,
                100 + value - n,
            ),
            _ => (value % 10 * n, value / 10 * n, value * n),
        };
        let tens = tens % 10;
        value = next % 100;
        let space = if op.kind == 2 { " " } else { "" };
        lines.push(format!(
            " {}) {}{space}{n} {units:02}{tens} {value:02}",
            label(i),
            SIGNS[op.kind]
        ));
    }
    (lines, value.to_string())
}

/// Two long numbers added or subtracted, column by column from the right.
pub(super) fn draw_columns(rng: &mut SplitMix64, steps: usize) -> Draft {
    let kind = rng.below(2) as usize;
    let mut op = || Op {
        kind,
        first: rng.below(10),
        second: rng.below(10),
    };
    let ops: Vec<Op> = (0..steps).map(|_| op()).collect();
    let column = |op: &Op| format!("|{}{}{}", op.first, SIGNS[kind], op.second);
    let text: String = ops.iter().map(column).collect();
    let start = if kind == 0 { "00 0" } else { "10 0" };
    Draft {
        start: start.into(),
        canonical: format!("columns{text}"),
        ops,
    }
}

/// Each line: the column, its carry and digit (borrow: 0 in the tens), the running digit sum.
pub(super) fn chain_columns(draft: &Draft) -> (Vec<String>, String) {
    let mut lines = vec![draft.start.clone()];
    let (mut carry, mut check) = (0, 0);
    for (i, op) in draft.ops.iter().enumerate() {
        let (a, b) = (op.first, op.second);
        let column = if op.kind == 0 {
            a + b + carry
        } else {
            10 + a - b - carry
        };
        carry = if op.kind == 0 {
            column / 10
        } else {
            1 - column / 10
        };
        check = (check + column) % 10;
        lines.push(format!(
            " {}) {a}{}{b} {column:02} {check}",
            label(i),
            SIGNS[op.kind]
        ));
    }
    (lines, check.to_string())
}

/// Five letters in a row, two of them swapped at each step.
pub(super) fn draw_boxes(rng: &mut SplitMix64, steps: usize) -> Draft {
    let mut row = *b"ABCDE";
    for i in (1..5).rev() {
        row.swap(i, rng.below(i as u32 + 1) as usize);
    }
    let mut op = || {
        let p = rng.below(5);
        let q = (p + 1 + rng.below(4)) % 5;
        Op {
            kind: 0,
            first: p.min(q) + 1,
            second: p.max(q) + 1,
        }
    };
    let ops: Vec<Op> = (0..steps).map(|_| op()).collect();
    let start: String = row.iter().map(|&b| char::from(b)).collect();
    let text: String = ops
        .iter()
        .map(|op| format!("|{}{}", op.first, op.second))
        .collect();
    Draft {
        canonical: format!("boxes|{start}{text}"),
        start,
        ops,
    }
}

/// Each line: the two places, the row after the swap.
pub(super) fn chain_boxes(draft: &Draft) -> (Vec<String>, String) {
    let mut row: Vec<char> = draft.start.chars().collect();
    let mut lines = vec![draft.start.clone()];
    for (i, op) in draft.ops.iter().enumerate() {
        row.swap(op.first as usize - 1, op.second as usize - 1);
        let row: String = row.iter().collect();
        lines.push(format!(" {}) {}{} {row}", label(i), op.first, op.second));
    }
    (lines, row.into_iter().collect())
}

/// Four cells of one digit: stored into, copied, increased modulo 10.
pub(super) fn draw_variables(rng: &mut SplitMix64, steps: usize) -> Draft {
    let start: String = (0..4).map(|_| rng.below(10).to_string()).collect();
    let mut op = || {
        let kind = [0, 1, 2, 2][rng.below(4) as usize];
        let cell = rng.below(4);
        let operand = match kind {
            0 => rng.below(10),
            1 => (cell + 1 + rng.below(3)) % 4 + 1,
            _ => 1 + rng.below(9),
        };
        Op {
            kind,
            first: cell + 1,
            second: operand,
        }
    };
    let ops: Vec<Op> = (0..steps).map(|_| op()).collect();
    let mark = |op: &Op| format!("|{}{}{}", op.first, MARKS[op.kind], op.second);
    let text: String = ops.iter().map(mark).collect();
    Draft {
        canonical: format!("variables|{start}{text}"),
        start,
        ops,
    }
}

/// Each line: the operation, all cells after it.
pub(super) fn chain_variables(draft: &Draft) -> (Vec<String>, String) {
    let mut cells: Vec<u32> = draft.start.bytes().map(|b| u32::from(b - b'0')).collect();
    let show = |cells: &[u32]| cells.iter().map(u32::to_string).collect::<String>();
    let mut lines = vec![draft.start.clone()];
    for (i, op) in draft.ops.iter().enumerate() {
        let cell = op.first as usize - 1;
        cells[cell] = match op.kind {
            0 => op.second,
            1 => cells[op.second as usize - 1],
            _ => (cells[cell] + op.second) % 10,
        };
        let mark = MARKS[op.kind];
        lines.push(format!(
            " {}) {}{mark}{} {}",
            label(i),
            op.first,
            op.second,
            show(&cells)
        ));
    }
    (lines, show(&cells))
}
