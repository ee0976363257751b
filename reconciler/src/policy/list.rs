//! Prefix lists: one `PREFIX` or `PREFIX,NEXT-HOP-NAME` a line, `#` begins a comment.

use super::diagnostic::Span;
use super::prefix::{Prefix, PrefixError};

/// One line that is not blank: its 1-based number and what stands before a comment.
pub(super) struct Line<'a> {
    pub(super) number: u32,
    whole: &'a str,
    pub(super) prefix: &'a str,
    pub(super) next_hop: Option<&'a str>,
    /// More fields than a line has; the first of them.
    pub(super) surplus: Option<&'a str>,
}

impl Line<'_> {
    /// The place of `field`, a part of this line.
    pub(super) fn span(&self, field: &str) -> Span {
        let offset = (field.as_ptr() as usize).saturating_sub(self.whole.as_ptr() as usize).min(self.whole.len());
        let characters = |text: &str| u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
        let start = characters(&self.whole[..offset]) + 1;
        Span::new(self.number, start, self.number, start + characters(field).max(1))
    }
}

/// The lines of a list that say something.
pub(super) fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.split('\n').zip(1_u32..).filter_map(|(whole, number)| line(whole, number))
}

fn line(whole: &str, number: u32) -> Option<Line<'_>> {
    let content = whole.as_bytes().iter().position(|b| *b == b'#').map_or(whole, |at| &whole[..at]).trim_ascii();
    if content.is_empty() {
        return None;
    }
    let comma = |text: &str| text.as_bytes().iter().position(|b| *b == b',');
    let (prefix, rest) = match comma(content) {
        Some(at) => (content[..at].trim_ascii_end(), Some(content[at + 1..].trim_ascii_start())),
        None => (content, None),
    };
    let (next_hop, surplus) = match rest.map(|r| (r, comma(r))) {
        Some((rest, Some(at))) => (Some(rest[..at].trim_ascii_end()), Some(rest[at + 1..].trim_ascii_start())),
        other => (other.map(|(rest, _)| rest), None),
    };
    Some(Line { number, whole, prefix, next_hop, surplus })
}

/// The prefix that `text` says; a text longer than any prefix is cut in the error.
pub(super) fn parse_prefix(text: &str) -> Result<Prefix, PrefixError> {
    if text.len() > 64 { Err(PrefixError::Syntax(super::schema::shorten(text))) } else { text.parse() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_blanks_line_ends_and_spaces_do_not_matter() {
        let text = "# head\r\n\n10.0.0.0/8\r\n  10.1.0.0/16 , edge-a  # why\n\t\n::/0,b,c";
        let found: Vec<_> = lines(text).map(|l| (l.number, l.prefix, l.next_hop, l.surplus)).collect();
        assert_eq!(
            found,
            [
                (3, "10.0.0.0/8", None, None),
                (4, "10.1.0.0/16", Some("edge-a"), None),
                (6, "::/0", Some("b"), Some("c")),
            ]
        );
    }

    #[test]
    fn a_field_knows_its_columns() {
        let line = line("  10.1.0.0/16 , edge-ä", 9).expect("a line");
        assert_eq!(line.span(line.prefix), Span::new(9, 3, 9, 14));
        assert_eq!(line.span(line.next_hop.expect("a name")), Span::new(9, 17, 9, 23));
    }
}
