//! Kubernetes quantities (`500m`, `1Gi`, `2e3`), exactly and rounded up as the API does.

/// Thousandths, e.g. of a CPU. `None` when the text is no quantity or does not fit.
pub fn milli(text: &str) -> Option<i64> {
    scaled(text, 1000)
}

/// Whole units, e.g. bytes.
pub fn bytes(text: &str) -> Option<i64> {
    scaled(text, 1)
}

fn scaled(text: &str, scale: i128) -> Option<i64> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (numerator, denominator) = factor(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() > 20
        || !fraction.bytes().all(|b| b.is_ascii_digit())
        || number.ends_with(['+', '-'])
    {
        return None;
    }
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let divisor = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?.checked_mul(denominator)?;
    let value = mantissa.checked_mul(numerator)?.checked_mul(scale)?;
    let rounded_up = value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0);
    i64::try_from(rounded_up).ok()
}

/// A suffix as a fraction.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    let decimal = |power: u32| 10_i128.checked_pow(power);
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (decimal(6)?, 1),
        "G" => (decimal(9)?, 1),
        "T" => (decimal(12)?, 1),
        "P" => (decimal(15)?, 1),
        "E" => (decimal(18)?, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = decimal(power.unsigned_abs())?;
            if power < 0 { (1, factor) } else { (factor, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_exactly_and_rounded_up() {
        for (text, thousandths, whole) in [
            ("1", 1000, 1),
            ("500m", 500, 1),
            ("0.25", 250, 1),
            ("1.5", 1500, 2),
            ("100u", 1, 1),
            ("1Ki", 1_024_000, 1024),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("2e3", 2_000_000, 2000),
            ("1k", 1_000_000, 1000),
            ("0", 0, 0),
        ] {
            assert_eq!(milli(text), Some(thousandths), "{text}");
            assert_eq!(bytes(text), Some(whole), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_quantity() {
        for text in ["", "lots", "1 Gi", "1Gb", "1.2.3", "--1", "Gi", "99999999999999999999999"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
