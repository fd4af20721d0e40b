//! Numbers that may be given as a share of others, as `maxUnavailable` is.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A number, or a percentage of `of` (apimachinery's `GetScaledValueFromIntOrPercent`). Nothing counts as 0; text that is
/// no percentage does, too, as validation keeps it out.
pub(crate) fn scaled(value: Option<&IntOrString>, of: i32, round_up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent =
                text.strip_suffix('%').and_then(|text| text.parse::<i64>().ok()).unwrap_or_default();
            let product = percent.saturating_mul(i64::from(of));
            let whole = if round_up {
                product.div_euclid(100) + i64::from(product.rem_euclid(100) > 0)
            } else {
                product / 100
            };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_as_asked() {
        let percent = |text: &str| Some(IntOrString::String(text.to_owned()));
        let cases = [
            (None, 10, true, 0),
            (Some(IntOrString::Int(3)), 10, true, 3),
            (percent("25%"), 10, true, 3),
            (percent("25%"), 10, false, 2),
            (percent("100%"), 7, false, 7),
            (percent("many"), 7, false, 0),
        ];
        for (value, of, round_up, expected) in cases {
            assert_eq!(scaled(value.as_ref(), of, round_up), expected, "{value:?} of {of}");
        }
    }
}
