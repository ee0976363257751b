//! An IP prefix that cannot hold host bits.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network: an address and a length, all bits after the length zero.
///
/// Orders IPv4 before IPv6, then by address, then shorter before longer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    V4(Ipv4Addr, u8),
    V6(Ipv6Addr, u8),
}

/// Why a text is not a prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    #[error("`{0}` is not an IP prefix; write ADDRESS/LENGTH, as in 10.0.0.0/8 or 2001:db8::/32")]
    Syntax(String),
    #[error("`{text}` has no length; for one address write {text}/{max}")]
    NoLength { text: String, max: u8 },
    #[error("the length of `{text}` must be 0 to {max}")]
    Length { text: String, max: u8 },
    #[error("`{text}` has bits set after its length; the network is {network}")]
    HostBits { text: String, network: Prefix },
}

impl Prefix {
    /// The network of `address` with `length` bits, or [`PrefixError`] when the length is too large or host bits are set.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, PrefixError> {
        let text = || format!("{address}/{length}");
        let max = if address.is_ipv4() { 32 } else { 128 };
        if length > max {
            return Err(PrefixError::Length { text: text(), max });
        }
        let network = Self::containing(address, length);
        if network.address() == address { Ok(network) } else { Err(PrefixError::HostBits { text: text(), network }) }
    }

    /// The network of `length` bits (clamped to the family's maximum) that contains `address`.
    pub fn containing(address: IpAddr, length: u8) -> Self {
        match address {
            IpAddr::V4(a) => {
                let length = length.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                Self::V4(Ipv4Addr::from_bits(a.to_bits() & mask), length)
            }
            IpAddr::V6(a) => {
                let length = length.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                Self::V6(Ipv6Addr::from_bits(a.to_bits() & mask), length)
            }
        }
    }

    pub fn address(self) -> IpAddr {
        match self {
            Self::V4(a, _) => a.into(),
            Self::V6(a, _) => a.into(),
        }
    }

    pub fn length(self) -> u8 {
        match self {
            Self::V4(_, l) | Self::V6(_, l) => l,
        }
    }

    pub fn is_ipv4(self) -> bool {
        matches!(self, Self::V4(..))
    }

    pub fn contains(self, address: IpAddr) -> bool {
        self.is_ipv4() == address.is_ipv4() && Self::containing(address, self.length()) == self
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let syntax = || PrefixError::Syntax(text.to_owned());
        let Some((address, length)) = text.split_once('/') else {
            return Err(match text.parse::<IpAddr>() {
                Ok(a) => PrefixError::NoLength { text: text.to_owned(), max: if a.is_ipv4() { 32 } else { 128 } },
                Err(_) => syntax(),
            });
        };
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        if length.is_empty()
            || !length.bytes().all(|b| b.is_ascii_digit())
            || (length.len() > 1 && length.starts_with('0'))
        {
            return Err(syntax());
        }
        let max = if address.is_ipv4() { 32 } else { 128 };
        match length.parse::<u8>() {
            Ok(l) if l <= max => Self::new(address, l).map_err(|e| match e {
                PrefixError::HostBits { network, .. } => PrefixError::HostBits { text: text.to_owned(), network },
                other => other,
            }),
            _ => Err(PrefixError::Length { text: text.to_owned(), max }),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.length())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_refuses_the_rest() {
        let check = |text: &str, expected: &str| {
            let got = match text.parse::<Prefix>() {
                Ok(p) => p.to_string(),
                Err(e) => e.to_string(),
            };
            assert_eq!(got, expected, "{text}");
        };
        check("10.0.0.0/8", "10.0.0.0/8");
        check("0.0.0.0/0", "0.0.0.0/0");
        check("::/0", "::/0");
        check("2001:DB8::/32", "2001:db8::/32");
        check("10.0.0.1/8", "`10.0.0.1/8` has bits set after its length; the network is 10.0.0.0/8");
        check("2001:db8::1/64", "`2001:db8::1/64` has bits set after its length; the network is 2001:db8::/64");
        check("10.0.0.0/33", "the length of `10.0.0.0/33` must be 0 to 32");
        check("::/129", "the length of `::/129` must be 0 to 128");
        check("10.0.0.0", "`10.0.0.0` has no length; for one address write 10.0.0.0/32");
        for bad in ["", "/", "10/8", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/08", "10.0.0.0/8/8", "x/8", "10.0.0.0/ 8"] {
            assert!(matches!(bad.parse::<Prefix>(), Err(PrefixError::Syntax(_))), "{bad}");
        }
    }
}
