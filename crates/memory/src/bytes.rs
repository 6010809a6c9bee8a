//! Amounts of memory as people write and read them: `2GiB`, `512MiB`, `1.5G`, `4096`.
//!
//! Units are powers of 1024 whichever way they are spelled (`G`, `GB`, `GiB`): a user who says
//! `--memory 8G` means what the machine's own tools call 8G.

use std::fmt;

use thiserror::Error;

/// Spellings and their factor, largest first.
const UNITS: [(&str, u32); 5] = [("T", 40), ("G", 30), ("M", 20), ("K", 10), ("", 0)];

/// Why a text is not an amount of memory.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseBytesError {
    /// Nothing, or no digits.
    #[error(
        "`{text}` is not an amount of memory: write a number and a unit, such as 2GiB, 512MiB, 1.5G or 4096"
    )]
    NotANumber {
        /// The text.
        text: String,
    },
    /// A suffix that is no unit.
    #[error(
        "`{unit}` in `{text}` is not a unit of memory: use B, KiB, MiB, GiB or TiB (or K, M, G, T)"
    )]
    UnknownUnit {
        /// The text.
        text: String,
        /// Its suffix.
        unit: String,
    },
    /// More bytes than an address has room for.
    #[error("`{text}` is more memory than this machine can address")]
    TooLarge {
        /// The text.
        text: String,
    },
}

/// Parses `2GiB`, `512 MiB`, `1.5G`, `100kb` or a plain number of bytes. Fractions are rounded
/// down to a whole byte. Letter case does not matter.
///
/// # Errors
/// When there is no number, the unit is unknown, or the product does not fit.
pub fn parse_bytes(text: &str) -> Result<usize, ParseBytesError> {
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let shift = unit_shift(unit.trim()).ok_or_else(|| match number {
        "" => ParseBytesError::NotANumber { text: text.into() },
        _ => ParseBytesError::UnknownUnit {
            text: text.into(),
            unit: unit.trim().into(),
        },
    })?;
    scale(number, shift, text)
}

/// Power of two that `unit` stands for.
fn unit_shift(unit: &str) -> Option<u32> {
    let upper = unit.to_ascii_uppercase();
    let prefix = upper
        .strip_suffix("IB")
        .or_else(|| upper.strip_suffix('B'))
        .unwrap_or(&upper);
    let bare_i = upper == "IB";
    UNITS
        .iter()
        .find(|(name, _)| *name == prefix && !bare_i)
        .map(|(_, shift)| *shift)
}

/// `number × 2^shift`, exactly: the fraction is taken digit by digit, not through a float.
fn scale(number: &str, shift: u32, text: &str) -> Result<usize, ParseBytesError> {
    let bad = || ParseBytesError::NotANumber { text: text.into() };
    let large = || ParseBytesError::TooLarge { text: text.into() };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(bad());
    }
    let digits = |part: &str| match part {
        "" => Some(0u128),
        part => part.parse::<u128>().ok(),
    };
    // Digits past the 18th are far below a byte.
    let fraction = &fraction[..fraction.len().min(18)];
    let whole = digits(whole).ok_or_else(large)?;
    let fraction_value = digits(fraction).ok_or_else(bad)?;
    let unit = 1u128 << shift;
    let below = fraction_value * unit / 10u128.pow(fraction.len() as u32);
    whole
        .checked_mul(unit)
        .and_then(|bytes| bytes.checked_add(below))
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(large)
}

/// Shows a number of bytes with a unit and up to two decimals: `1.50 GiB`, `512.00 MiB`, `17 B`.
///
/// Honours a width in the format string, so that columns align: `{:>12}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanBytes(pub usize);

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, shift) = UNITS
            .iter()
            .copied()
            .find(|(_, shift)| self.0 as u128 >= 1 << shift)
            .unwrap_or(("", 0));
        let text = match shift {
            0 => format!("{} B", self.0),
            _ => format!("{:.2} {name}iB", self.0 as f64 / 2f64.powi(shift as i32)),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn accepts_what_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1B", 1),
            ("2GiB", 2 << 30),
            ("2 gib", 2 << 30),
            ("512MiB", 512 << 20),
            ("1.5G", 3 << 29),
            (" 100kb ", 100 << 10),
            (".5K", 512),
            ("3.K", 3072),
            ("1T", 1 << 40),
            ("0.0001K", 0),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest_with_the_reason() {
        for text in ["", "  ", "G", ".", "1.2.3G", "-1G", "GiB2", "٣G"] {
            assert!(
                matches!(parse_bytes(text), Err(ParseBytesError::NotANumber { .. })),
                "{text}"
            );
        }
        for text in ["1X", "1GG", "1iB", "1e9", "1 G B", "5%"] {
            assert!(
                matches!(parse_bytes(text), Err(ParseBytesError::UnknownUnit { .. })),
                "{text}"
            );
        }
        for text in ["99999999999T", "18446744073709551616", &"9".repeat(60)] {
            assert!(
                matches!(parse_bytes(text), Err(ParseBytesError::TooLarge { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn shows_units_and_pads() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (3 << 29, "1.50 GiB"),
            (70_272, "68.62 KiB"),
            (5 << 40, "5.00 TiB"),
        ] {
            assert_eq!(HumanBytes(bytes).to_string(), text);
        }
        assert_eq!(format!("[{:>10}]", HumanBytes(17)), "[      17 B]");
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,12}") {
            let _ = parse_bytes(&text);
        }

        #[test]
        fn plain_numbers_are_themselves(bytes: usize) {
            prop_assert_eq!(parse_bytes(&bytes.to_string()), Ok(bytes));
        }

        #[test]
        fn what_is_shown_parses_back_within_half_a_percent(bytes in 0usize..1 << 50) {
            let back = parse_bytes(&HumanBytes(bytes).to_string()).unwrap();
            prop_assert!(back.abs_diff(bytes) as f64 <= bytes as f64 * 0.0051);
        }
    }
}
