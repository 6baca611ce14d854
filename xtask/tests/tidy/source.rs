//! Reads Rust sources as far as the rules need it: code without comments, literals and tests; the paths it names.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{LineColumn, Span, TokenStream, TokenTree};

/// A Rust file.
pub(crate) struct Source {
    /// Relative to the repository.
    pub(crate) path: String,
    /// All of it.
    pub(crate) text: String,
    /// Its code: comments, literals and tests are blanks, lines are where they were.
    pub(crate) code: String,
}

impl Source {
    fn read(root: &Path, file: &Path) -> Self {
        let text = fs::read_to_string(file).unwrap();
        let path = relative(root, file);
        let test = text.contains("#![cfg(test)]")
            || path.contains("/tests/")
            || path.ends_with("/tests.rs");
        let code = if test { String::new() } else { without_tests(&without_literals(&text)) };
        Self { path, text, code }
    }

    /// The path below `host/src`, for files that lie there.
    pub(crate) fn in_host(&self) -> Option<&str> {
        self.path.strip_prefix("host/src/")
    }

    /// The opening `//!` lines without their marks.
    pub(crate) fn header(&self) -> Vec<&str> {
        self.text.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect()
    }

    /// Non-empty lines of code.
    pub(crate) fn lines_of_code(&self) -> usize {
        self.code.lines().filter(|line| !line.trim().is_empty()).count()
    }

    /// Every path that the code names, with its line: `use` trees are spelt out.
    pub(crate) fn paths(&self) -> Vec<(usize, String)> {
        let mut found = vec![];
        let mut rest = String::with_capacity(self.code.len());
        let mut offset = 0;
        while let Some(start) = next_use(&self.code, offset) {
            let end = self.code[start..].find(';').map_or(self.code.len(), |end| start + end);
            let tree = self.code[start..end].trim_start().trim_start_matches("use ");
            let line = line_of(&self.code, start);
            found.extend(spelt_out(tree).into_iter().map(|path| (line, path)));
            rest.push_str(&self.code[offset..start]);
            rest.extend(self.code[start..end].chars().filter(|letter| *letter == '\n'));
            offset = end;
        }
        rest.push_str(&self.code[offset..]);
        for (number, line) in rest.lines().enumerate() {
            found.extend(inline_paths(line).into_iter().map(|path| (number + 1, path)));
        }
        found
    }
}

/// The repository's folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The Rust files below `folder` of the repository, sorted.
pub(crate) fn sources(folder: &str) -> Vec<Source> {
    let root = root();
    files(&root.join(folder))
        .iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "rs"))
        .map(|file| Source::read(&root, file))
        .collect()
}

/// All files below `folder` but for what builds leave behind, sorted.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for entry in entries.map(Result::unwrap) {
        let (name, path) = (entry.file_name(), entry.path());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && name != "target" && name != ".git" {
            found.extend(files(&path));
        } else if kind.is_file() {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// `file` as seen from `root`, with `/` everywhere.
pub(crate) fn relative(root: &Path, file: &Path) -> String {
    let parts = file.strip_prefix(root).unwrap().iter().map(|part| part.to_string_lossy());
    parts.collect::<Vec<_>>().join("/")
}

/// The number of the line at `offset`, from one.
fn line_of(text: &str, offset: usize) -> usize {
    let shown = &text[offset..];
    let blank = shown.len() - shown.trim_start().len();
    text[..offset + blank].matches('\n').count() + 1
}

/// Where the next `use` item begins, at the start of a line.
fn next_use(code: &str, from: usize) -> Option<usize> {
    let mut offset = from;
    for line in code[from..].split_inclusive('\n') {
        let shown = line.trim_start();
        let bare = ["pub(crate) ", "pub(super) ", "pub "]
            .iter()
            .fold(shown, |line, word| line.strip_prefix(word).unwrap_or(line));
        if bare.starts_with("use ") {
            return Some(offset + line.len() - bare.len());
        }
        offset += line.len();
    }
    None
}

/// `a::{b, c::{d as e}}` as `a::b`, `a::c::d`.
fn spelt_out(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return if path.is_empty() { vec![] } else { vec![path.to_owned()] };
    };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut start, mut parts) = (0, 0, vec![]);
    for (place, letter) in inner.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..place]);
                start = place + 1;
            }
            _ => (),
        }
    }
    parts.push(&inner[start..]);
    let paths = parts.into_iter().flat_map(spelt_out);
    paths.map(|path| format!("{}{path}", prefix.trim())).collect()
}

/// The paths with `::` in one line that is no `use` item.
fn inline_paths(line: &str) -> Vec<String> {
    let part = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
    line.split(|letter| !part(letter))
        .filter(|word| word.contains("::") && !word.starts_with(':'))
        .map(str::to_owned)
        .collect()
}

/// `text` with comments and literals as blanks: every token that is neither stands where it stood.
fn without_literals(text: &str) -> String {
    let mut lines: Vec<Vec<char>> =
        text.lines().map(|line| vec![' '; line.chars().count()]).collect();
    show(text.parse().unwrap(), &mut lines);
    lines.into_iter().flat_map(|line| line.into_iter().chain(['\n'])).collect()
}

fn show(tokens: TokenStream, lines: &mut [Vec<char>]) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                for bracket in [group.span_open(), group.span_close()] {
                    let is_one = bracket.source_text().is_some_and(|text| "()[]{}".contains(&text));
                    if is_one {
                        write(bracket, lines);
                    }
                }
                show(group.stream(), lines);
            }
            // A doc comment is an attribute, whose signs come out of nowhere.
            TokenTree::Ident(_) | TokenTree::Punct(_) => write(token.span(), lines),
            TokenTree::Literal(_) => (),
        }
    }
}

fn write(span: Span, lines: &mut [Vec<char>]) {
    let (LineColumn { line, column }, text) = (span.start(), span.source_text());
    let text = text.unwrap_or_default();
    if text.starts_with("//") || text.starts_with("/*") {
        return;
    }
    for (place, letter) in text.chars().enumerate() {
        lines[line - 1][column + place] = letter;
    }
}

/// `code` with the items under `#[cfg(test)]` as blanks.
fn without_tests(code: &str) -> String {
    let mut shown = code.to_owned();
    while let Some(start) =
        ["#[cfg(test)]", "#[cfg(all(test"].iter().filter_map(|mark| shown.find(mark)).min()
    {
        let end = end_of_item(&shown, start);
        let blank: String = shown[start..end]
            .chars()
            .map(|letter| if letter == '\n' { '\n' } else { ' ' })
            .collect();
        shown.replace_range(start..end, &blank);
    }
    shown
}

/// The end of the item whose attributes begin at `start`: its semicolon, or the brace that closes its first.
fn end_of_item(code: &str, start: usize) -> usize {
    let mut depth = 0;
    for (place, letter) in code[start..].char_indices() {
        match letter {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth -= 1;
                if depth == 0 && letter == '}' {
                    return start + place + 1;
                }
            }
            ';' if depth == 0 => return start + place + 1,
            _ => (),
        }
    }
    code.len()
}

#[test]
fn code_is_told_from_comments_literals_and_tests() {
    let text = r##"
// x.unwrap()
use crate::{a::{self, B}, c::D as E}; /* y.unwrap() */
pub fn f<'a>(s: &'a str) -> char { g("a\".unwrap()", r#"b".unwrap()"#, '"', '\''); crate::h::i() }
#[cfg(test)]
mod tests { fn f() { x.unwrap(); } }
fn last() {}
"##;
    let code = without_tests(&without_literals(text));
    assert!(!code.contains("unwrap"), "{code}");
    assert!(code.contains("crate::h::i()") && code.contains("fn last()"), "{code}");
    let source = Source { path: String::new(), text: String::new(), code };
    let paths = source.paths();
    let expected = ["crate::a::self", "crate::a::B", "crate::c::D", "crate::h::i"];
    assert_eq!(paths.iter().map(|(_, path)| path.as_str()).collect::<Vec<_>>(), expected);
    assert_eq!(paths.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 3, 3, 4]);
}
