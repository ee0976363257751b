//! What a commit says of itself.

/// A commit as people look for it: its id, who wrote it, when, and its first line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Forty hexadecimal digits.
    pub id: String,
    /// `NAME <EMAIL>`. Nobody has checked that it is true.
    pub author: String,
    /// Seconds since 1970, as the author's clock had it.
    pub author_unix_s: i64,
    /// First paragraph of the message, in one line of at most 200 characters.
    pub subject: String,
}

/// A longer subject is cut, and ends with `…`.
const SUBJECT_CHARACTERS_MAX: usize = 200;

impl Commit {
    pub(super) fn of(commit: &git2::Commit<'_>) -> Self {
        let author = commit.author();
        let name = printable(author.name_bytes());
        let email = printable(author.email_bytes());
        Self {
            id: commit.id().to_string(),
            author: format!("{name} <{email}>"),
            author_unix_s: author.when().seconds(),
            subject: subject(commit.message_bytes()),
        }
    }
}

/// The first paragraph in one line.
fn subject(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message);
    let paragraph = text.trim_start().lines().take_while(|line| !line.trim().is_empty());
    let line = printable(paragraph.collect::<Vec<_>>().join(" ").as_bytes());
    match line.char_indices().nth(SUBJECT_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Text from a stranger for a terminal or a log: control characters become `?`.
pub(super) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_the_first_paragraph_in_one_printable_line() {
        let check = |message: &str, expected: &str| assert_eq!(subject(message.as_bytes()), expected);
        check("routes: add Ghent\n\nBecause.", "routes: add Ghent");
        check("\n\nwrapped\nsubject\n \nbody", "wrapped subject");
        check("red \x1b[31m alert", "red ?[31m alert");
        check("", "");
        check(&"é".repeat(300), &format!("{}…", "é".repeat(SUBJECT_CHARACTERS_MAX)));
    }
}
