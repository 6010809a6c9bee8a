//! A command line: a program, its flags, and what a person has to know about it.

/// One command of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Remarks that come before it, each a line.
    pub notes: Vec<String>,
    /// Program and positional arguments.
    pub program: Vec<String>,
    /// Flags with their values.
    pub flags: Vec<(String, Option<String>)>,
}

impl Command {
    /// A program and its positional arguments.
    pub fn new(program: &[&str]) -> Command {
        Command {
            program: program.iter().map(|&word| word.to_owned()).collect(),
            ..Command::default()
        }
    }

    /// Adds a flag with a value.
    pub fn with(&mut self, flag: &str, value: impl ToString) {
        self.flags.push((flag.to_owned(), Some(value.to_string())));
    }

    /// Adds a flag with a value, where there is one.
    pub fn with_some(&mut self, flag: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.with(flag, value);
        }
    }

    /// Adds a flag that stands alone, where it is wanted.
    pub fn when(&mut self, wanted: bool, flag: &str) {
        if wanted {
            self.flags.push((flag.to_owned(), None));
        }
    }

    /// Adds a remark.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Its words, as a process gets them.
    pub fn words(&self) -> Vec<String> {
        let flags = self.flags.iter();
        let flags =
            flags.flat_map(|(flag, value)| std::iter::once(flag.clone()).chain(value.clone()));
        self.program.iter().cloned().chain(flags).collect()
    }

    /// As a script: remarks, then the command with a flag a line.
    pub fn script(&self) -> String {
        let mut text: String = self
            .notes
            .iter()
            .map(|note| format!("# {note}\n"))
            .collect();
        let program: Vec<String> = self.program.iter().map(|word| quoted(word)).collect();
        text += &program.join(" ");
        for (flag, value) in &self.flags {
            text += " \\\n  ";
            text += flag;
            if let Some(value) = value {
                text.push(' ');
                text += &quoted(value);
            }
        }
        text.push('\n');
        text
    }

    /// On one line.
    pub fn line(&self) -> String {
        let words: Vec<String> = self.words().iter().map(|word| quoted(word)).collect();
        words.join(" ")
    }
}

/// A word for a shell: as it is, or in single quotes. `$(NAME)` and `$NAME` stay for the shell or
/// Kubernetes to fill in.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+$()~".contains(c);
    let variable = word.contains('$') && !word.starts_with("$(LWS_") && !word.starts_with("$HEAD");
    if !word.is_empty() && word.chars().all(plain) && !variable {
        // Brackets are only safe in a variable's name.
        if !word.contains(['(', ')']) || word.starts_with("$(LWS_") {
            return word.to_owned();
        }
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_take_apart_is_quoted() {
        for (word, expected) in [
            ("org/name", "org/name"),
            ("a b", "'a b'"),
            ("it's", "'it'\\''s'"),
            ("$(rm x)", "'$(rm x)'"),
            ("$HOME", "'$HOME'"),
            ("$HEAD_ADDRESS", "$HEAD_ADDRESS"),
            ("$(LWS_LEADER_ADDRESS)", "$(LWS_LEADER_ADDRESS)"),
            ("", "''"),
            ("a;b", "'a;b'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}
