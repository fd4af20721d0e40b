//! The values that literals are written for: escapes in strings and bytes (the language's definition, "String and
//! Bytes Values").

/// The content of a string literal, quotes and prefix included in `text`.
pub(crate) fn unquote(text: &str) -> Result<String, &'static str> {
    let bytes = unescape(text, false)?;
    String::from_utf8(bytes).map_err(|_| "unable to unescape string")
}

/// The content of a bytes literal without its `b`.
pub(crate) fn unquote_bytes(text: &str) -> Result<Vec<u8>, &'static str> {
    unescape(text, true)
}

fn unescape(text: &str, is_bytes: bool) -> Result<Vec<u8>, &'static str> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let (raw, text) = match text.strip_prefix(['r', 'R']) {
        Some(rest) => (true, rest),
        None => (false, text.as_str()),
    };
    let marks =
        if text.len() >= 6 && (text.starts_with("'''") || text.starts_with("\"\"\"")) { 3 } else { 1 };
    let body = text.get(marks..text.len().saturating_sub(marks)).ok_or("unable to unescape string")?;
    if raw || !body.contains('\\') {
        return Ok(body.as_bytes().to_vec());
    }
    let mut out = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        if letter == '\\' {
            rest = escape(rest, is_bytes, &mut out)?;
        } else {
            out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    Ok(out)
}

/// Reads one escape after its backslash and gives what follows it.
fn escape<'t>(rest: &'t str, is_bytes: bool, out: &mut Vec<u8>) -> Result<&'t str, &'static str> {
    const FAILED: &str = "unable to unescape string";
    let letter = rest.chars().next().ok_or("unable to unescape string, found '\\' as last character")?;
    let simple = match letter {
        'a' => Some(7),
        'b' => Some(8),
        'f' => Some(12),
        'n' => Some(b'\n'),
        'r' => Some(b'\r'),
        't' => Some(b'\t'),
        'v' => Some(11),
        '\\' | '\'' | '"' | '`' | '?' => Some(letter as u8),
        _ => None,
    };
    if let Some(byte) = simple {
        out.push(byte);
        return Ok(&rest[1..]);
    }
    let (start, length, radix) = match letter {
        'x' | 'X' => (1, 2, 16),
        'u' if !is_bytes => (1, 4, 16),
        'U' if !is_bytes => (1, 8, 16),
        '0'..='3' => (0, 3, 8),
        _ => return Err(FAILED),
    };
    let digits = rest.get(start..start + length).ok_or(FAILED)?;
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(if radix == 8 { "unable to unescape octal sequence in string" } else { FAILED });
    }
    let code = u32::from_str_radix(digits, radix).map_err(|_| FAILED)?;
    if is_bytes {
        out.push(code as u8);
    } else {
        let letter = char::from_u32(code).ok_or("invalid unicode code point")?;
        out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
    }
    Ok(&rest[start + length..])
}
