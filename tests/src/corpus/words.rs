//! The words of a line: what stands first, bare words, and `key=value` pairs, each used exactly once.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, ensure};

/// One line or layer, split at white space.
#[derive(Debug)]
pub(super) struct Words<'t> {
    text: &'t str,
    bare: Vec<&'t str>,
    keyed: Vec<(&'t str, &'t str)>,
}

impl<'t> Words<'t> {
    pub(super) fn of(text: &'t str) -> Result<Self> {
        let mut words = Self { text: text.trim(), bare: Vec::new(), keyed: Vec::new() };
        for word in text.split_whitespace() {
            match word.split_once('=') {
                None => words.bare.push(word),
                Some((key, value)) => {
                    ensure!(words.keyed.iter().all(|(k, _)| *k != key), "`{key}` stands twice in `{}`", words.text);
                    words.keyed.push((key, value));
                }
            }
        }
        words.bare.reverse();
        Ok(words)
    }

    /// The next bare word, which must be there.
    pub(super) fn next(&mut self, what: &str) -> Result<&'t str> {
        self.bare.pop().ok_or_else(|| anyhow!("{what} is missing in `{}`", self.text))
    }

    /// Whether a bare word is there.
    pub(super) fn flag(&mut self, word: &str) -> bool {
        let before = self.bare.len();
        self.bare.retain(|bare| *bare != word);
        before != self.bare.len()
    }

    pub(super) fn text(&mut self, key: &str) -> Option<&'t str> {
        let at = self.keyed.iter().position(|(k, _)| *k == key)?;
        Some(self.keyed.remove(at).1)
    }

    pub(super) fn number<N: TryFrom<u64>>(&mut self, key: &str) -> Result<Option<N>> {
        self.text(key).map(|text| number(text).with_context(|| format!("`{key}={text}`"))).transpose()
    }

    pub(super) fn address<A: FromStr>(&mut self, key: &str) -> Result<Option<A>> {
        let parse = |text: &str| text.parse().map_err(|_| anyhow!("`{key}={text}` is no address of this family"));
        self.text(key).map(parse).transpose()
    }

    pub(super) fn hex(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        self.text(key).map(|text| hex(text).with_context(|| format!("`{key}={text}`"))).transpose()
    }

    /// Everything must have been used.
    pub(super) fn finish(self) -> Result<()> {
        let rest = self.bare.into_iter().rev().map(str::to_owned);
        let rest: Vec<String> = rest.chain(self.keyed.iter().map(|(key, value)| format!("{key}={value}"))).collect();
        ensure!(rest.is_empty(), "`{}` means nothing in `{}`", rest.join(" "), self.text);
        Ok(())
    }
}

/// A decimal number, or a hexadecimal one after `0x`.
pub(super) fn number<N: TryFrom<u64>>(text: &str) -> Result<N> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let number = number.map_err(|_| anyhow!("`{text}` is no number"))?;
    number.try_into().map_err(|_| anyhow!("{text} does not fit the field"))
}

/// Bytes as hexadecimal digits, `:` or `.` between them if that reads better.
pub(super) fn hex(text: &str) -> Result<Vec<u8>> {
    let digits: String = text.chars().filter(|c| !matches!(c, ':' | '.')).collect();
    ensure!(digits.is_ascii() && digits.len().is_multiple_of(2), "`{text}` is no whole number of bytes");
    let byte =
        |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| anyhow!("`{text}` is not hexadecimal"));
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// Defaults of addresses that a case does not write: RFC 2544 and RFC 5180 benchmarking.
pub(super) const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub(super) const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1);
