//! The difference of two texts by lines, as Python's difflib finds it and `k8s.io/apimachinery/pkg/util/diff` shows it.

use std::{collections::HashMap, fmt::Write as _, ops::Range};

use super::internal::Internal;

/// How many lines stand around what is different.
const CONTEXT: usize = 3;
/// From this many lines on, those that occur often are left out of account.
const POPULAR_FROM: usize = 200;
/// The most lines that are compared of each text, as the time grows with their square (a tenth of a second for the worst of
/// these); there is no difference to be seen in longer ones. A pod of a hundred containers has as many.
const LINES_MAX: usize = 10_000;

/// The difference between two values of a type, as unified hunks.
pub(crate) fn between(
    definition: &'static str,
    old: Option<&serde_json::Value>,
    new: Option<&serde_json::Value>,
) -> String {
    unified(&Internal(definition, old).pretty(), &Internal(definition, new).pretty())
}

/// Unified hunks, each with the lines around it.
pub(crate) fn unified(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.split('\n').collect(), new.split('\n').collect());
    let mut text = String::new();
    if old.len().max(new.len()) > LINES_MAX {
        return text;
    }
    for hunk in hunks(&blocks(&old, &new), old.len(), new.len()) {
        let (Some(first), Some(last)) = (hunk.first(), hunk.last()) else { continue };
        let (of_old, of_new) = (first.old.start..last.old.end, first.new.start..last.new.end);
        let _ = writeln!(text, "@@ -{} +{} @@", range(&of_old), range(&of_new));
        for part in hunk {
            let (was, now) = if part.equal { (" ", None) } else { ("-", Some("+")) };
            for line in &old[part.old] {
                let _ = writeln!(text, "{was}{line}");
            }
            for line in
                now.into_iter().flat_map(|now| new[part.new.clone()].iter().map(move |line| (now, line)))
            {
                let _ = writeln!(text, "{}{}", line.0, line.1);
            }
        }
    }
    text
}

/// A range of lines as hunks name it: counted from 1, an empty one by the line before it.
fn range(lines: &Range<usize>) -> String {
    match lines.len() {
        1 => (lines.start + 1).to_string(),
        0 => format!("{},0", lines.start),
        count => format!("{},{count}", lines.start + 1),
    }
}

/// Ranges of lines that are the same, or that replace each other.
#[derive(Clone, Debug)]
struct Part {
    equal: bool,
    old: Range<usize>,
    new: Range<usize>,
}

/// The longest run of lines that both have within these ranges; of several the first.
fn longest(
    old: &[&str],
    places: &HashMap<&str, Vec<usize>>,
    new: &[&str],
    (of_old, of_new): (Range<usize>, Range<usize>),
) -> (usize, usize, usize) {
    let (mut at, mut beside, mut size) = (of_old.start, of_new.start, 0);
    let mut runs: HashMap<usize, usize> = HashMap::new();
    for index in of_old.clone() {
        let mut longer = HashMap::new();
        for &other in places.get(old[index]).into_iter().flatten() {
            if other < of_new.start {
                continue;
            }
            if other >= of_new.end {
                break;
            }
            let length = other.checked_sub(1).and_then(|before| runs.get(&before)).copied().unwrap_or(0) + 1;
            longer.insert(other, length);
            if length > size {
                (at, beside, size) = (index + 1 - length, other + 1 - length, length);
            }
        }
        runs = longer;
    }
    // Lines that were left out of account still belong to the runs that they stand beside.
    while at > of_old.start && beside > of_new.start && old[at - 1] == new[beside - 1] {
        (at, beside, size) = (at - 1, beside - 1, size + 1);
    }
    while at + size < of_old.end && beside + size < of_new.end && old[at + size] == new[beside + size] {
        size += 1;
    }
    (at, beside, size)
}

/// The runs that both texts have, in their order, and an empty one at the end.
fn blocks(old: &[&str], new: &[&str]) -> Vec<(usize, usize, usize)> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, line) in new.iter().enumerate() {
        places.entry(line).or_default().push(index);
    }
    if new.len() >= POPULAR_FROM {
        let often = new.len() / 100 + 1;
        places.retain(|_, places| places.len() <= often);
    }
    let mut found = Vec::new();
    let mut open = vec![(0..old.len(), 0..new.len())];
    while let Some((of_old, of_new)) = open.pop() {
        let (at, beside, size) = longest(old, &places, new, (of_old.clone(), of_new.clone()));
        if size > 0 {
            found.push((at, beside, size));
            if of_old.start < at && of_new.start < beside {
                open.push((of_old.start..at, of_new.start..beside));
            }
            if at + size < of_old.end && beside + size < of_new.end {
                open.push((at + size..of_old.end, beside + size..of_new.end));
            }
        }
    }
    found.sort_unstable();
    found.push((old.len(), new.len(), 0));
    found
}

/// What is the same and what is not, in groups with lines around them.
fn hunks(blocks: &[(usize, usize, usize)], old: usize, new: usize) -> Vec<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    let (mut at, mut beside) = (0, 0);
    for &(start, other, size) in blocks {
        if at < start || beside < other {
            parts.push(Part { equal: false, old: at..start, new: beside..other });
        }
        (at, beside) = (start + size, other + size);
        if size > 0 {
            parts.push(Part { equal: true, old: start..at, new: other..beside });
        }
    }
    debug_assert!(at == old && beside == new, "blocks reach the end");
    let cut = |range: &Range<usize>, start: bool| {
        if start {
            range.end.saturating_sub(CONTEXT).max(range.start)..range.end
        } else {
            range.start..range.end.min(range.start + CONTEXT)
        }
    };
    if let Some(first) = parts.first_mut().filter(|part| part.equal) {
        (first.old, first.new) = (cut(&first.old, true), cut(&first.new, true));
    }
    if let Some(last) = parts.last_mut().filter(|part| part.equal) {
        (last.old, last.new) = (cut(&last.old, false), cut(&last.new, false));
    }
    let mut groups = Vec::new();
    let mut group = Vec::new();
    for part in parts {
        if part.equal && part.old.len() > 2 * CONTEXT {
            group.push(Part { equal: true, old: cut(&part.old, false), new: cut(&part.new, false) });
            groups.push(std::mem::take(&mut group));
            group.push(Part { equal: true, old: cut(&part.old, true), new: cut(&part.new, true) });
        } else {
            group.push(part);
        }
    }
    groups.push(group);
    groups.retain(|group| group.iter().any(|part| !part.equal));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected results: Python's `difflib.unified_diff`.
    #[test]
    fn differences_are_those_of_difflib() {
        let lines = |count: usize, changed: &[usize]| -> String {
            let line = |index| if changed.contains(&index) { format!("x{index}") } else { index.to_string() };
            (0..count).map(line).collect::<Vec<_>>().join("\n")
        };
        for (old, new, expected) in [
            (lines(3, &[]), lines(3, &[]), ""),
            ("a".into(), "b".into(), "@@ -1 +1 @@\n-a\n+b\n"),
            ("a\nb".into(), "b".into(), "@@ -1,2 +1 @@\n-a\n b\n"),
            ("b".into(), "b\nc".into(), "@@ -1 +1,2 @@\n b\n+c\n"),
            (lines(9, &[]), lines(9, &[4]), "@@ -2,7 +2,7 @@\n 1\n 2\n 3\n-4\n+x4\n 5\n 6\n 7\n"),
            (
                lines(20, &[]),
                lines(20, &[2, 12]),
                "@@ -1,6 +1,6 @@\n 0\n 1\n-2\n+x2\n 3\n 4\n 5\n@@ -10,7 +10,7 @@\n 9\n 10\n 11\n-12\n+x12\n 13\n 14\n 15\n",
            ),
            ("a\nb\na\nb\nc".into(), "b\na\nc\nb".into(), "@@ -1,5 +1,4 @@\n-a\n b\n a\n+c\n b\n-c\n"),
        ] {
            assert_eq!(unified(&old, &new), expected, "{old:?} {new:?}");
        }
    }
}
