//! Texts that came from outside, cut and made fit for one line; pure.
//!
//! Whatever a guest or a server says is cut where it enters: from there on its length is known.
//!
//! Invariants: `a_text_is_never_longer_than_its_limit`, `a_line_stays_one_line`.

use std::borrow::Cow;

/// The longest name of an object, a namespace or a finalizer that the API server takes.
pub const NAME: usize = 253;
/// The longest message: an Event's note, a condition, an error.
pub const MESSAGE: usize = 1_024;

/// Shows that something is missing.
const ELLIPSIS: &str = "…";

/// At most `limit` bytes of `text`, cut between characters; what was cut ends in an ellipsis if there is room for one.
pub fn cut(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit {
        return Cow::Borrowed(text);
    }
    if limit < ELLIPSIS.len() {
        return Cow::Borrowed(&text[..text.floor_char_boundary(limit)]);
    }
    let kept = &text[..text.floor_char_boundary(limit - ELLIPSIS.len())];
    Cow::Owned([kept, ELLIPSIS].concat())
}

/// The same of a text that is kept: what was cut off is given back, not only hidden.
pub fn cut_owned(text: String, limit: usize) -> String {
    let short = match cut(&text, limit) {
        Cow::Borrowed(kept) if kept.len() == text.len() => None,
        short => Some(short.into_owned()),
    };
    let mut text = short.unwrap_or(text);
    text.shrink_to_fit();
    text
}

/// At most `limit` bytes of `text` on one line: line ends, control characters and what turns the direction of writing
/// are shown as escapes. Costs no more than `limit`, however long the text is.
pub fn line(text: &str, limit: usize) -> Cow<'_, str> {
    // One character more than fits shows that something is missing.
    let near = &text[..text.ceil_char_boundary(limit.saturating_add(1))];
    if !near.contains(is_unfit) {
        return cut(near, limit);
    }
    let mut fit = String::with_capacity(near.len());
    for c in near.chars() {
        if is_unfit(c) {
            fit.extend(c.escape_default());
        } else {
            fit.push(c);
        }
        if fit.len() > limit {
            break;
        }
    }
    Cow::Owned(cut_owned(fit, limit))
}

/// Line ends of every kind, other control characters, and marks that reorder what is read.
fn is_unfit(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts of every kind, from a seed.
    fn texts() -> impl Iterator<Item = String> {
        let mut random = fastrand::Rng::with_seed(0x9e37_79b9_7f4a_7c15);
        let mut next = move |below: u64| random.u64(..) % below;
        let all =
            ["a", "ä", "…", "😀", "\n", "\r", "\u{1b}", "\0", "\u{85}", "\u{2028}", "\u{202e}"];
        (0..2_000).map(move |_| {
            let length = next(60);
            (0..length).map(|_| all[usize::try_from(next(11)).unwrap()]).collect()
        })
    }

    #[test]
    fn a_text_is_never_longer_than_its_limit() {
        for (text, limit, expected) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "…"),
            ("abcdef", 5, "ab…"),
            ("äöüß", 6, "ä…"),
            ("äöüß", 1, ""),
            ("abc", 2, "ab"),
            ("abc", 0, ""),
        ] {
            assert_eq!(cut(text, limit), expected, "{text} {limit}");
        }
        for text in texts() {
            for limit in 0..50 {
                let short = cut(&text, limit);
                assert!(short.len() <= limit && text.starts_with(short.trim_end_matches('…')));
                assert_eq!(text.len() <= limit, *short == *text, "{text:?} {limit}");
                assert_eq!(cut_owned(text.clone(), limit), short);
                assert!(line(&text, limit).len() <= limit, "{text:?} {limit}");
            }
        }
        let long = cut_owned("x".repeat(1 << 20), 10);
        assert!(long.capacity() < 100, "what was cut is given back");
    }

    #[test]
    fn a_line_stays_one_line() {
        assert_eq!(line("a\nERROR b\r\n", 100), "a\\nERROR b\\r\\n");
        assert_eq!(line("\u{1b}[31mred", 100), "\\u{1b}[31mred");
        assert_eq!(line("a\u{202e}b\u{2028}c", 100), "a\\u{202e}b\\u{2028}c");
        assert_eq!(line("ein Häuschen", 100), "ein Häuschen");
        assert_eq!(line(&"\n".repeat(1_000), 9), "\\n\\n\\n…");
        for text in texts() {
            assert!(!line(&text, 30).contains(is_unfit), "{text:?}");
        }
    }
}
