//! Numbers and bars as people read them.

/// Bytes with a unit of 1024s and three digits: `83.9 GiB`, `70.3 KiB`, `512 B`.
pub fn bytes(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let sign = if bytes < 0.0 { "-" } else { "" };
    let mut value = bytes.abs();
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.95 { 0 } else { 1 };
    format!("{sign}{value:.digits$} {}", UNITS[unit])
}

/// A count with a unit of 1000s and three digits: `684 B`, `1.05 M`, `512`.
pub fn short(count: f64) -> String {
    const UNITS: [&str; 5] = ["", " k", " M", " B", " T"];
    let sign = if count < 0.0 { "-" } else { "" };
    let mut value = count.abs();
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{sign}{value:.digits$}{}", UNITS[unit])
}

/// The same with a sign in front: `+1.05 M`; a dash for nothing.
pub fn gain(count: f64, unit: impl Fn(f64) -> String) -> String {
    if count > 0.0 {
        format!("+{}", unit(count))
    } else if count < 0.0 {
        unit(count)
    } else {
        "–".to_owned()
    }
}

/// All digits, in groups: `70,272`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A bar of `width` cells, `fraction` of them filled, to an eighth of a cell.
pub fn bar(fraction: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (fraction.clamp(0.0, 1.0) * (width * 8) as f64).round() as usize;
    let eighths = if fraction > 0.0 { eighths.max(1) } else { 0 };
    let mut text = "█".repeat(eighths / 8);
    text += EIGHTHS[eighths % 8];
    text + &" ".repeat(width - eighths.div_ceil(8))
}

/// Text in lines of at most `width` characters, each after `indent`.
pub fn wrapped(text: &str, width: usize, indent: &str) -> String {
    let mut lines = String::new();
    let mut line = indent.to_owned();
    for word in text.split_whitespace() {
        let long = line.chars().count() + 1 + word.chars().count() > width;
        if long && line.trim() != "" {
            lines += line.trim_end();
            lines.push('\n');
            line = indent.to_owned();
        }
        line += word;
        line.push(' ');
    }
    lines + line.trim_end() + "\n"
}

/// At most `width` characters, the last one an ellipsis where something is left out.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    kept.trim_end().to_owned() + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        for (value, expected) in [
            (0.0, "0 B"),
            (1023.0, "1023 B"),
            (1024.0, "1.0 KiB"),
            (70_272.0, "68.6 KiB"),
            (1023.9 * 1024.0, "1.0 MiB"),
            (-2.5 * 1024.0, "-2.5 KiB"),
        ] {
            assert_eq!(bytes(value), expected);
        }
        for (value, expected) in [(999.4, "999"), (684.5e9, "684 B"), (1_048_576.0, "1.05 M")] {
            assert_eq!(short(value), expected);
        }
        assert_eq!(grouped(70_272), "70,272");
        assert_eq!(grouped(999), "999");
        assert_eq!(gain(0.0, short), "–");
        assert_eq!(gain(1500.0, short), "+1.50 k");
    }

    #[test]
    fn bars_are_as_wide_as_they_say() {
        for fraction in [-1.0, 0.0, 1e-9, 0.1, 0.5, 0.99, 1.0, 7.0] {
            assert_eq!(bar(fraction, 20).chars().count(), 20, "{fraction}");
        }
        assert_eq!(bar(0.5, 4), "██  ");
        assert_ne!(bar(1e-9, 4), "    ");
    }

    #[test]
    fn lines_are_wrapped_between_words() {
        let text = wrapped("one two three four", 10, "  ");
        assert_eq!(text, "  one two\n  three\n  four\n");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("abc", 4), "abc");
    }
}
