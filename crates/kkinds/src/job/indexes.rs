//! Lists of completion indexes, such as `1,3-5,7`.

use kschema::quote::Quoted;

/// One entry: its first and its last index.
type Interval = (i64, i64);

/// How many indexes a list holds. Its entries must ascend and be less than `completions`.
pub(super) fn count(text: &str, completions: i64) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let (mut previous, mut total) = (None, 0);
    for entry in text.split(',') {
        let (first, last) = interval(entry, completions)?;
        if let Some(previous) = previous.filter(|previous| *previous >= first) {
            return Err(format!("non-increasing order, previous: {previous}, current: {first}"));
        }
        total += last - first + 1;
        previous = Some(last);
    }
    Ok(total)
}

/// The first index that two lists have in common. Faulty entries are passed over.
pub(super) fn overlap(one: &str, other: &str, completions: i64) -> Option<i64> {
    let intervals = |text: &str| -> Vec<Interval> {
        text.split(',').filter_map(|entry| interval(entry, completions).ok()).collect()
    };
    let (one, other) = (intervals(one), intervals(other));
    let (mut a, mut b) = (one.iter().peekable(), other.iter().peekable());
    while let (Some((a_first, a_last)), Some((b_first, b_last))) = (a.peek(), b.peek()) {
        if a_first <= b_last && b_first <= a_last {
            return Some(*a_first.max(b_first));
        }
        if a_first <= b_first {
            a.next();
        } else {
            b.next();
        }
    }
    None
}

fn interval(text: &str, completions: i64) -> Result<Interval, String> {
    let mut parts = text.split('-');
    let (first, last) = (parts.next().unwrap_or_default(), parts.next());
    if parts.next().is_some() {
        return Err(format!(
            "the fragment {text} violates the requirement that an index interval can have at most two parts separated by '-'",
            text = Quoted(text)
        ));
    }
    let first = index(first, completions)?;
    let Some(last) = last else {
        return Ok((first, first));
    };
    let last = index(last, completions)?;
    if first >= last {
        return Err(format!("non-increasing order, previous: {first}, current: {last}"));
    }
    Ok((first, last))
}

fn index(text: &str, completions: i64) -> Result<i64, String> {
    let index: i64 = text
        .parse()
        .map_err(|_| format!("cannot convert string to integer for index: {text}", text = Quoted(text)))?;
    if index >= completions {
        return Err(format!("too large index: {text}", text = Quoted(text)));
    }
    Ok(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_ascend_and_are_in_range() {
        assert_eq!(count("", 5), Ok(0));
        assert_eq!(count("1,3-5,7", 8), Ok(5));
        for (text, why) in [
            (
                "1-2-3",
                "the fragment \"1-2-3\" violates the requirement that an index interval can have at most two parts separated by '-'",
            ),
            ("a", "cannot convert string to integer for index: \"a\""),
            ("1-", "cannot convert string to integer for index: \"\""),
            ("8", "too large index: \"8\""),
            ("3,2", "non-increasing order, previous: 3, current: 2"),
            ("3-3", "non-increasing order, previous: 3, current: 3"),
        ] {
            assert_eq!(count(text, 8), Err(why.to_owned()), "{text}");
        }
        assert_eq!(overlap("0,2-4", "1,4-6", 8), Some(4));
        assert_eq!(overlap("0,2-4", "x,1,5-6", 8), None);
    }
}
