//! Stop strings over a stream of text.
//!
//! A stop string may arrive spread over many pieces, so text that could be its beginning is held
//! back until it is decided. Each string has a Knuth–Morris–Pratt automaton; the longest prefix
//! matched so far is what must be held. Time is linear in the text, for each stop string.

/// Watches a stream for the first of several strings.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// Text not given out yet: it may be the beginning of a stop string.
    held: String,
    is_done: bool,
}

/// What one piece of text led to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Text that is certainly before any stop string.
    pub text: String,
    /// The stop string that ended the stream, by its place in the list given to
    /// [`StopMatcher::new`].
    pub stop: Option<usize>,
    /// Bytes of this piece up to and with the end of the stop string; all of them without one.
    pub used: usize,
}

impl StopMatcher {
    /// Watches for `stops`; empty strings are passed over.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        let patterns = stops
            .iter()
            .enumerate()
            .filter(|(_, stop)| !stop.as_ref().is_empty());
        Self {
            patterns: patterns
                .map(|(i, stop)| Pattern::new(i, stop.as_ref()))
                .collect(),
            held: String::new(),
            is_done: false,
        }
    }

    /// Takes the next piece. The stream ends with the first stop string to be complete; of several
    /// complete at the same byte, the longest. After it nothing more is given out.
    pub fn push(&mut self, piece: &str) -> Stopped {
        if self.is_done {
            return Stopped::default();
        }
        for (i, byte) in piece.bytes().enumerate() {
            let complete = self
                .patterns
                .iter_mut()
                .filter_map(|pattern| pattern.step(byte));
            if let Some((len, stop)) = complete.max_by_key(|&(len, _)| len) {
                self.is_done = true;
                self.held.push_str(&piece[..=i]);
                self.held.truncate(self.held.len() - len);
                let text = std::mem::take(&mut self.held);
                return Stopped {
                    text,
                    stop: Some(stop),
                    used: i + 1,
                };
            }
        }
        self.held.push_str(piece);
        let matched = self
            .patterns
            .iter()
            .map(|pattern| pattern.matched)
            .max()
            .unwrap_or(0);
        let held = self.held.split_off(self.held.len() - matched);
        let text = std::mem::replace(&mut self.held, held);
        Stopped {
            text,
            stop: None,
            used: piece.len(),
        }
    }

    /// Ends the stream: what was held back is text after all.
    pub fn finish(&mut self) -> String {
        self.is_done = true;
        std::mem::take(&mut self.held)
    }

    /// Whether there is nothing to watch for.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

/// One stop string and how much of it the text ends with.
#[derive(Debug, Clone)]
struct Pattern {
    index: usize,
    bytes: Vec<u8>,
    /// `fallback[n]`: the longest proper prefix that the first `n` bytes also end with.
    fallback: Vec<usize>,
    matched: usize,
}

impl Pattern {
    fn new(index: usize, text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut pattern = Self {
            index,
            fallback: vec![0; bytes.len() + 1],
            bytes,
            matched: 0,
        };
        for end in 1..pattern.bytes.len() {
            pattern.advance(pattern.bytes[end]);
            pattern.fallback[end + 1] = pattern.matched;
        }
        pattern.matched = 0;
        pattern
    }

    fn advance(&mut self, byte: u8) {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched];
        }
        if self.bytes[self.matched] == byte {
            self.matched += 1;
        }
    }

    /// Takes one byte; gives the string's length and index once it is complete.
    fn step(&mut self, byte: u8) -> Option<(usize, usize)> {
        self.advance(byte);
        if self.matched < self.bytes.len() {
            return None;
        }
        self.matched = 0;
        Some((self.bytes.len(), self.index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The text before the first complete stop string, and which it is, by looking everywhere.
    fn naive(text: &str, stops: &[String]) -> (String, Option<usize>) {
        for end in 1..=text.len() {
            let complete = stops.iter().enumerate().filter(|(_, stop)| {
                !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes())
            });
            if let Some((i, stop)) = complete.max_by_key(|(_, stop)| stop.len()) {
                return (text[..end - stop.len()].to_owned(), Some(i));
            }
        }
        (text.to_owned(), None)
    }

    fn run(pieces: &[&str], stops: &[String]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops);
        let mut text = String::new();
        for piece in pieces {
            let out = matcher.push(piece);
            text.push_str(&out.text);
            if out.stop.is_some() {
                assert_eq!(matcher.push("more"), Stopped::default());
                assert_eq!(matcher.finish(), "");
                return (text, out.stop);
            }
        }
        (text + &matcher.finish(), None)
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop() {
        let mut matcher = StopMatcher::new(&["</s>", "\n\n"]);
        assert_eq!(matcher.push("hi <").text, "hi ");
        assert_eq!(matcher.push("/b").text, "</b");
        assert_eq!(matcher.push("\n").text, "");
        let end = matcher.push("\nrest");
        assert_eq!((end.text.as_str(), end.stop, end.used), ("", Some(1), 1));
    }

    #[test]
    fn the_longest_of_those_complete_at_once_wins() {
        let stops = ["b".to_owned(), "ab".to_owned()];
        assert_eq!(run(&["xa", "b"], &stops), ("x".into(), Some(1)));
    }

    #[test]
    fn no_stops_no_delay() {
        let mut matcher = StopMatcher::new(&[""]);
        assert!(matcher.is_empty());
        assert_eq!(matcher.push("é").text, "é");
    }

    proptest! {
        #[test]
        fn equals_naive_search(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
        ) {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (text, stop) = run(&pieces, &stops);
            let (naive_text, naive_stop) = naive(&pieces.concat(), &stops);
            prop_assert_eq!(&text, &naive_text);
            // Equal strings may be given twice; which of them is named does not matter.
            prop_assert_eq!(stop.map(|i| &stops[i]), naive_stop.map(|i| &stops[i]));
        }
    }
}
