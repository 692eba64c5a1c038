//! Durations in readable form.

const UNITS: [(u64, &str); 3] = [(48 * 60 * 60, "d"), (60 * 60, "h"), (60, "min")];
const DAY_SECONDS: u64 = 24 * 60 * 60;

/// Returns `12 s`, `5 min`, `47 h` or `3 d`: whole units of a suitable size.
pub fn age(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match UNITS.into_iter().find(|(least, _)| seconds >= *least) {
        Some((_, "d")) => format!("{} d", seconds / DAY_SECONDS),
        Some((length, unit)) => format!("{} {unit}", seconds / length),
        None => format!("{seconds} s"),
    }
}

/// Returns how long something took, such as `69 ms`, `1.2 s` or `3 min 5 s`.
pub fn duration(milliseconds: u64) -> String {
    match milliseconds {
        0..1000 => format!("{milliseconds} ms"),
        1000..60_000 => format!("{:.1} s", (milliseconds / 100) as f64 / 10.0),
        _ => {
            let seconds = milliseconds / 1000;
            format!("{} min {} s", seconds / 60, seconds % 60)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_two_figures_or_more() {
        assert_eq!(
            [0, 69, 999, 1000, 59_999, 60_000, 185_400].map(duration),
            [
                "0 ms",
                "69 ms",
                "999 ms",
                "1.0 s",
                "59.9 s",
                "1 min 0 s",
                "3 min 5 s"
            ]
        );
    }

    #[test]
    fn the_unit_fits_the_length() {
        let said = [
            0,
            12_900,
            59_999,
            60_000,
            3_599_999,
            3_600_000,
            47 * 3_600_000,
            48 * 3_600_000,
            8 * 86_400_000,
        ];
        assert_eq!(
            said.map(age),
            [
                "0 s", "12 s", "59 s", "1 min", "59 min", "1 h", "47 h", "2 d", "8 d"
            ]
        );
    }
}
