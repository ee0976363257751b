//! Durations and sizes as people write them.

/// Milliseconds of `200ms`, `5s`, `2m` or `1h`; 1 ms to 24 h.
pub(super) fn duration_ms(text: &str) -> Option<u64> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    quantity(text, &units).filter(|ms| (1..=86_400_000).contains(ms))
}

/// The same with `2d`; 1 ms to 366 days.
pub(super) fn long_duration_ms(text: &str) -> Option<u64> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    quantity(text, &units).filter(|ms| (1..=366 * 86_400_000).contains(ms))
}

/// Bytes of `4096`, `64KiB`, `512MiB` or `2GiB`; at least one.
pub(super) fn size_bytes(text: &str) -> Option<u64> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("B", 1), ("", 1)];
    quantity(text, &units).filter(|bytes| *bytes > 0)
}

fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_with_their_unit_only() {
        let duration = |text: &str, expected: Option<u64>| assert_eq!(duration_ms(text), expected, "{text}");
        duration("200ms", Some(200));
        duration("5s", Some(5000));
        duration("24h", Some(86_400_000));
        for bad in ["", "5", "s", "0s", "25h", "5 s", "-1s", "1.5s", "5S", "99999999999999999999s", "9999999999999999h"]
        {
            duration(bad, None);
        }
        let long = |text: &str, expected: Option<u64>| assert_eq!(long_duration_ms(text), expected, "{text}");
        long("90m", Some(5_400_000));
        long("366d", Some(366 * 86_400_000));
        for bad in ["", "0d", "367d", "1w", "1d12h"] {
            long(bad, None);
        }
        let size = |text: &str, expected: Option<u64>| assert_eq!(size_bytes(text), expected, "{text}");
        size("4096", Some(4096));
        size("512MiB", Some(512 << 20));
        for bad in ["0", "512MB", "1 GiB", "MiB", "99999999999TiB"] {
            size(bad, None);
        }
    }
}
