//! Kubernetes' quantities: `100m`, `1.5Gi`, `2e3`.

use std::{cmp::Ordering, fmt, ops, str::FromStr};

/// The longest text that is parsed as a quantity, in bytes.
pub const QUANTITY_BYTES_MAX: usize = 128;

/// The number of nano-units in one.
const NANO: i128 = 1_000_000_000;
/// Beyond this many units a quantity is capped, as upstream caps at `int64`'s range.
const UNITS_MAX: i128 = i64::MAX as i128;

/// A fixed-point number with the suffix family in which it was written (`k8s.io/apimachinery/pkg/api/resource`).
///
/// Kept in nano-units, the finest that Kubernetes knows; finer input is rounded up, larger than 2^63-1 is capped. The
/// canonical form, which `Display` writes, has no fraction and the largest suffix that allows it.
///
/// ```
/// use kcore::Quantity;
/// assert_eq!(Quantity::parse("1.5Gi")?.to_string(), "1536Mi");
/// assert_eq!(Quantity::parse("0.0001")?.to_string(), "100u");
/// assert_eq!(Quantity::parse("1e3")?.to_string(), "1e3");
/// assert_eq!(Quantity::parse("1Ki")?.value(), 1024);
/// # Ok::<(), kcore::quantity::QuantityError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The family of suffixes that a quantity is written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Powers of ten: `n u m "" k M G T P E`.
    #[default]
    DecimalSi,
    /// Powers of two: `Ki Mi Gi Ti Pi Ei`.
    BinarySi,
    /// `e3`, `E6`, ...
    DecimalExponent,
}

/// Why a text is no quantity; worded as upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text has not the form of a quantity.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number is fine, the suffix is not.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Nothing, in decimal form.
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// Parses a quantity.
    ///
    /// # Errors
    /// When the text has not the form of a quantity or is longer than [`QUANTITY_BYTES_MAX`].
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() || text.len() > QUANTITY_BYTES_MAX {
            return Err(QuantityError::Format);
        }
        let negative = text.starts_with('-');
        let body = text.strip_prefix(['+', '-']).unwrap_or(text);
        let digits_end = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
        let (number, suffix) = body.split_at(digits_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        let (format, base, exponent) = suffix_of(suffix)?;
        let nanos = scale(whole, fraction, base, exponent);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }

    /// `value` units in decimal form.
    #[must_use]
    pub const fn from_value(value: i64) -> Self {
        Self { nanos: value as i128 * NANO, format: Format::DecimalSi }
    }

    /// `value` thousandths in decimal form.
    #[must_use]
    pub const fn from_milli(value: i64) -> Self {
        Self { nanos: value as i128 * (NANO / 1000), format: Format::DecimalSi }
    }

    /// `value` units in the given form.
    #[must_use]
    pub const fn with_format(value: i64, format: Format) -> Self {
        Self { nanos: value as i128 * NANO, format }
    }

    /// The form it is written in.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// In units, rounded up (away from zero), as the scheduler counts memory.
    #[must_use]
    pub fn value(&self) -> i64 {
        saturate(divide_up(self.nanos, NANO))
    }

    /// In thousandths, rounded up (away from zero), as the scheduler counts CPU.
    #[must_use]
    pub fn milli(&self) -> i64 {
        saturate(divide_up(self.nanos, NANO / 1000))
    }

    /// Whether it is nothing.
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether it is less than nothing.
    #[must_use]
    pub const fn is_negative(&self) -> bool {
        self.nanos < 0
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn divide_up(value: i128, by: i128) -> i128 {
    let (quotient, rest) = (value / by, value % by);
    quotient + rest.signum()
}

/// The form, base and exponent that a suffix stands for.
fn suffix_of(suffix: &str) -> Result<(Format, u32, i32), QuantityError> {
    let decimal = |exponent| Ok((Format::DecimalSi, 10, exponent));
    let binary = |exponent| Ok((Format::BinarySi, 2, exponent));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(
                if suffix.chars().all(|c| "eEinumkKMGTP+-0123456789".contains(c)) {
                    QuantityError::Suffix
                } else {
                    QuantityError::Format
                },
            )?;
            let exponent = exponent.parse::<i32>().map_err(|_| QuantityError::Suffix)?;
            Ok((Format::DecimalExponent, 10, exponent))
        }
    }
}

/// `whole.fraction * base^exponent` in nano-units, rounded up and capped.
fn scale(whole: &str, fraction: &str, base: u32, exponent: i32) -> i128 {
    let cap = UNITS_MAX * NANO;
    let mut mantissa: i128 = 0;
    let mut dropped = false;
    // The power of ten still to apply after the digits taken in, nano-units included.
    let mut power = 9 + if base == 10 { exponent.clamp(-200, 200) } else { 0 };
    let digits = whole.bytes().map(|d| (d, false)).chain(fraction.bytes().map(|d| (d, true)));
    for (digit, is_fraction) in digits {
        if mantissa > i128::MAX / 100 {
            // Digits beyond i128 only matter for rounding and magnitude.
            dropped |= digit != b'0';
            power += i32::from(!is_fraction);
            continue;
        }
        mantissa = mantissa * 10 + i128::from(digit - b'0');
        power -= i32::from(is_fraction);
    }
    let mut value = mantissa;
    if base == 2 {
        // 2^60 * mantissa may not fit: cap as soon as it cannot be below the cap any more.
        let shifted = value.checked_mul(1_i128 << exponent);
        value = match shifted {
            Some(value) => value,
            None if power <= -9 => {
                (value / 10_i128.pow(18)).saturating_mul(1_i128 << exponent).saturating_mul(10_i128.pow(18))
            }
            None => return cap,
        };
    }
    while power > 0 {
        value = match value.checked_mul(10) {
            Some(value) if value <= cap => value,
            _ => return if value == 0 { 0 } else { cap },
        };
        power -= 1;
    }
    while power < 0 && (value > 0 || dropped) {
        dropped |= value % 10 != 0;
        value /= 10;
        power += 1;
        if value == 0 {
            break;
        }
    }
    (value + i128::from(dropped)).min(cap)
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole = self.nanos % NANO == 0;
        let units = self.nanos / NANO;
        // Upstream writes a binary quantity below 1024, or one with a fraction, in decimal form.
        if self.format == Format::BinarySi && whole && units.abs() >= 1024 {
            let suffixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
            let step = ((units.trailing_zeros() / 10) as usize).min(suffixes.len() - 1);
            return write!(f, "{}{}", units >> (10 * step), suffixes[step]);
        }
        let suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        let (mut number, mut step) = (self.nanos, 0);
        while number % 1000 == 0 && step + 1 < suffixes.len() {
            number /= 1000;
            step += 1;
        }
        if self.format == Format::DecimalExponent {
            let exponent = (step as i32 - 3) * 3;
            return if exponent == 0 { write!(f, "{number}") } else { write!(f, "{number}e{exponent}") };
        }
        write!(f, "{number}{}", suffixes[step])
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl ops::Add for Quantity {
    type Output = Self;

    /// The sum, in the form of the first one that is not nothing.
    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: (self.nanos + other.nanos).clamp(-UNITS_MAX * NANO, UNITS_MAX * NANO), format }
    }
}

impl ops::Sub for Quantity {
    type Output = Self;

    /// The difference, in the form of the first one that is not nothing.
    fn sub(self, other: Self) -> Self {
        self + Self { nanos: -other.nanos, ..other }
    }
}

impl ops::AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_forms_are_upstreams() {
        for (text, canonical) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("1", "1"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1500m", "1500m"),
            ("2000m", "2"),
            ("0.1", "100m"),
            ("0.0001", "100u"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e2", "1200"),
            ("1E", "1E"),
            ("1Ei", "1Ei"),
            ("-5k", "-5k"),
            ("+5", "5"),
            (".5", "500m"),
            ("5.", "5"),
            ("0.0000000001", "1n"),
            ("1.00000000001", "1000000001n"),
            ("9223372036854775807", "9223372036854775807"),
            ("99E", "9223372036854775807"),
            ("100Ei", "9223372036854775807"),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "x", "1x", "1.2.3", "--1", "1 Ki", "1ki", "1Kii", "e3", "1e", "1e3.5", "."] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rounding_is_up() {
        assert_eq!(Quantity::parse("1500m").unwrap().value(), 2);
        assert_eq!(Quantity::parse("1u").unwrap().milli(), 1);
        assert_eq!(Quantity::parse("-1500m").unwrap().value(), -2);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(nanos in any::<i64>(), format in 0..3) {
            let format = [Format::DecimalSi, Format::BinarySi, Format::DecimalExponent][format as usize];
            let quantity = Quantity { nanos: i128::from(nanos), format };
            prop_assert_eq!(Quantity::parse(&quantity.to_string()).unwrap(), quantity);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-+0-9.eEinumkKMGTP]{0,40}") {
            let _ = Quantity::parse(&text);
        }
    }
}
