//! Durations as Go writes them (`time.ParseDuration`, `Duration.String`), cut to whole milliseconds.

use std::time::Duration;

/// Reads `1h30m`, `90s`, `1.5h`, `500ms`; `None` for anything else, negative values included.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (value, tail) = rest.split_at(number);
        let unit = tail.len() - tail.trim_start_matches(|c: char| c.is_alphabetic()).len();
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(value.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = tail;
    }
    // Go counts nanoseconds in 64 bits, some 292 years.
    (!text.is_empty() && total.as_nanos() <= u128::from(i64::MAX.unsigned_abs()))
        .then(|| Duration::from_millis(u64::try_from(total.as_millis()).unwrap_or(u64::MAX)))
}

/// Writes `4m0s`, `8760h0m0s`, `1.5s`, `500ms`.
pub(super) fn format(duration: Duration) -> String {
    let (hours, minutes) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60);
    let (seconds, millis) = (duration.as_secs() % 60, duration.subsec_millis());
    if duration < Duration::from_secs(1) && millis > 0 {
        return format!("{millis}ms");
    }
    let fraction = if millis == 0 { String::new() } else { format!(".{millis:03}").trim_end_matches('0').to_owned() };
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, _) => format!("{minutes}m{seconds}{fraction}s"),
        _ => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_and_written_as_go_does() {
        for (text, millis, written) in [
            ("4m", 240_000, "4m0s"),
            ("8760h", 31_536_000_000, "8760h0m0s"),
            ("1h30m", 5_400_000, "1h30m0s"),
            ("1.5s", 1_500, "1.5s"),
            ("500ms", 500, "500ms"),
            ("90s", 90_000, "1m30s"),
            ("1s1500\u{b5}s999ns", 1_001, "1.001s"),
            ("0", 0, "0s"),
        ] {
            let duration = parse(text).unwrap();
            assert_eq!(duration, Duration::from_millis(millis), "{text}");
            assert_eq!(format(duration), written, "{text}");
        }
        for text in ["", "5", "4 m", "-1h", "h", "1d", "1h-3m", "..s", "9999999999h"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(millis in 0_u64..400_000_000_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&format(duration)), Some(duration));
        }

        #[test]
        fn reading_never_panics(text in "[0-9.hms-]{0,20}|\\PC{0,10}") {
            let _ = parse(&text);
        }
    }
}
