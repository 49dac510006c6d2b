//! Byte counts as people write them.

/// Bytes of `4096`, `64KiB`, `512MiB`, `1.5GiB`, `2GB`; decimal and binary units are told apart.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => {
            return Err(format!(
                "size {text:?}: unit {unit:?} is not one of B, KiB, MiB, GiB, TiB, kB, MB, GB, TB"
            ));
        }
    };
    let value: f64 = number.parse().map_err(|_| format!("size {text:?} is not a number with a unit"))?;
    let bytes = value * factor as f64;
    if !(bytes.is_finite() && bytes < 2f64.powi(63)) {
        return Err(format!("size {text:?} is too large"));
    }
    Ok(bytes as u64)
}

/// `1.5 GiB`, `12 KiB`, `7 B`.
pub fn format_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value >= 100.0 || value.fract() < 0.05 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_as_written() {
        for (text, bytes) in
            [("4096", 4096), ("64KiB", 65536), ("1.5GiB", 3 << 29), ("2GB", 2_000_000_000), (" 1 m", 1 << 20)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "1.2.3", "5 parsecs", "99999999TiB", "-1"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_short() {
        assert_eq!(format_bytes(7), "7 B");
        assert_eq!(format_bytes(1536), "1.5 KiB");
        assert_eq!(format_bytes(2 << 30), "2 GiB");
    }
}
