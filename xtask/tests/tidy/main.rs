//! Rules that no compiler checks: who may name whom, what the documents promise, what stays out of the sources.

#![cfg(test)] // Tells clippy that helpers are test code too.

mod source;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use source::{Source, files, relative, root, sources};
use tables::{
    BANNED, EDGES, FOR_ALL, FOREIGN, LONG, NO_NAMES, NOT_PURE, PANICS, PURE, TOO_LONG, WAITING,
    WAITS,
};

const TABLES: &str = "xtask/tests/tidy/tables.rs";

/// Fails with all problems at once, each on a line that says where it is and what to do.
#[track_caller]
fn none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// The module at the top of `host/src` that a file there belongs to.
fn module(in_host: &str) -> &str {
    let first = in_host.split('/').next().unwrap_or_default();
    first.strip_suffix(".rs").unwrap_or(first)
}

#[test]
fn modules_name_only_whom_the_table_allows() {
    let rows: BTreeMap<_, _> = EDGES.iter().copied().collect();
    let mut problems = vec![];
    for source in sources("host/src") {
        let from = module(source.in_host().unwrap());
        let Some(allowed) = rows.get(from) else {
            let path = &source.path;
            problems.push(format!(
                "{path}: the module `{from}` has no row in EDGES of {TABLES}: add it"
            ));
            continue;
        };
        for (line, path) in source.paths() {
            let mut segments = path.split("::");
            if segments.next() != Some("crate") {
                continue;
            }
            let to = segments.next().unwrap_or_default();
            if rows.contains_key(to)
                && to != from
                && !FOR_ALL.contains(&to)
                && !allowed.contains(&to)
            {
                problems.push(format!(
                    "{}:{line}: `{from}` may not name `{to}`: ask a module that may, or add the edge to EDGES of {TABLES} and say why in the commit",
                    source.path
                ));
            }
        }
    }
    none(&problems);
}

/// Whoever names another can be read after it, and nobody before.
#[test]
fn the_module_graph_has_no_cycle() {
    let mut problems = vec![];
    for folder in ["host/src", "tests/src", "xtask/src"] {
        let mut names = BTreeMap::<String, BTreeSet<String>>::new();
        let sources = sources(folder);
        let place = |path: &str| {
            module(path.strip_prefix(folder).unwrap().trim_start_matches('/')).to_owned()
        };
        let all: BTreeSet<_> = sources.iter().map(|source| place(&source.path)).collect();
        for source in &sources {
            let from = place(&source.path);
            for (_, path) in source.paths() {
                let mut segments = path.split("::");
                let to = segments.next().filter(|first| *first == "crate").and(segments.next());
                let to = to.filter(|to| *to != from && all.contains(*to));
                names.entry(from.clone()).or_default().extend(to.map(str::to_owned));
            }
        }
        // Whoever names nobody that is left is laid aside, until nobody is.
        while let Some(last) =
            names.iter().find(|(_, to)| to.iter().all(|to| !names.contains_key(to)))
        {
            let last = last.0.clone();
            names.remove(&last);
        }
        for (from, to) in &names {
            let to: Vec<_> = to.iter().filter(|to| names.contains_key(*to)).cloned().collect();
            problems.push(format!(
                "{folder}: `{from}` is in or before a cycle by {}: move what they share below both",
                to.join(", ")
            ));
        }
    }
    none(&problems);
}

#[test]
fn rows_of_the_tables_are_of_things_that_exist() {
    let host = root().join("host/src");
    let exists =
        |place: &str| host.join(place).is_dir() || host.join(format!("{place}.rs")).is_file();
    let mut problems = vec![];
    let names: BTreeSet<_> = EDGES.iter().flat_map(|(from, to)| to.iter().chain([from])).collect();
    for name in names.into_iter().filter(|name| !exists(name)) {
        problems.push(format!("{TABLES}: EDGES names `{name}`, which is not in host/src: drop it"));
    }
    for file in PURE.iter().filter(|file| !host.join(file).is_file()) {
        problems.push(format!("{TABLES}: PURE names {file}, which is not in host/src: drop it"));
    }
    none(&problems);
}

#[test]
fn foreign_crates_stay_where_the_table_puts_them() {
    let rows: BTreeMap<_, _> = FOREIGN.iter().copied().collect();
    let mut problems = vec![];
    for name in dependencies("host/Cargo.toml") {
        if !rows.contains_key(name.as_str()) {
            problems.push(format!(
                "host/Cargo.toml: `{name}` has no row in FOREIGN of {TABLES}: say who may name it"
            ));
        }
    }
    for source in sources("host/src") {
        let file = source.in_host().unwrap();
        let place = file.strip_suffix(".rs").unwrap_or(file);
        let within = |allowed: &&str| {
            allowed.is_empty()
                || place
                    .strip_prefix(*allowed)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        for (line, path) in source.paths() {
            let name = path.split("::").next().unwrap_or_default();
            if rows.get(name).is_some_and(|allowed| !allowed.iter().any(&within)) {
                problems.push(format!(
                    "{}:{line}: `{name}` is named outside of {:?}: go through one of those, or change FOREIGN of {TABLES} and say why in the commit",
                    source.path, rows[name]
                ));
            }
        }
    }
    none(&problems);
}

/// The names under `[dependencies]`, as code spells them.
fn dependencies(manifest: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    text.lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[test]
fn pure_modules_touch_no_clock_and_no_io() {
    let mut problems = vec![];
    for source in sources("host/src") {
        let says_so = || source.header().iter().any(|line| line.contains("; pure"));
        if !PURE.contains(&source.in_host().unwrap()) && !says_so() {
            continue;
        }
        for (number, line) in source.code.lines().enumerate() {
            for what in NOT_PURE.iter().filter(|what| has_word(line, what)) {
                problems.push(format!(
                    "{}:{}: a pure module has `{what}`: take `now` or the value as an argument",
                    source.path,
                    number + 1
                ));
            }
        }
    }
    none(&problems);
}

/// Whether `line` has `word`, and not only as the beginning of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let goes_on = |rest: &str| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let ends_in_a_word = word.ends_with(|c: char| c.is_ascii_alphanumeric());
    line.match_indices(word).any(|(at, _)| !ends_in_a_word || !goes_on(&line[at + word.len()..]))
}

#[test]
fn no_banned_package_is_in_the_lock_file() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let problems: Vec<_> = BANNED
        .iter()
        .filter(|(name, _)| lock.contains(&format!("\nname = \"{name}\"\n")))
        .map(|(name, why)| {
            format!("Cargo.lock: {name} came in: {why}; `cargo tree -i {name}` shows by whom")
        })
        .collect();
    none(&problems);
}

#[test]
fn sources_do_not_panic() {
    let mut problems = vec![];
    for source in ["host/src", "guest-sdk/rust/src", "selector/src"].into_iter().flat_map(sources) {
        for (number, line) in source.code.lines().enumerate() {
            for what in PANICS.iter().filter(|what| line.contains(**what)) {
                problems.push(format!(
                    "{}:{}: `{what}` outside of tests: return an error, or log the bug and go on",
                    source.path,
                    number + 1
                ));
            }
        }
    }
    none(&problems);
}

#[test]
fn no_public_signature_shows_a_lock() {
    let mut problems = vec![];
    for source in sources("host/src") {
        for (place, _) in source.code.match_indices("fn ") {
            let (before, rest) = source.code.split_at(place);
            let public = before.lines().next_back().unwrap_or_default().trim().starts_with("pub");
            let signature = &rest[..rest.find(['{', ';']).unwrap_or(rest.len())];
            let locks = ["Mutex<", "MutexGuard<", "RwLock<"];
            if public && locks.iter().any(|lock| signature.contains(lock)) {
                let (path, line) = (&source.path, before.matches('\n').count() + 1);
                problems.push(format!(
                    "{path}:{line}: a lock in a signature: hide it behind methods that neither block nor await"
                ));
            }
        }
    }
    none(&problems);
}

#[test]
fn files_have_one_noun_and_say_which() {
    let mut problems = vec![];
    for source in
        ["host/src", "guest-sdk/rust/src", "selector/src", "tests/src", "xtask/src", "bench/src"]
            .into_iter()
            .flat_map(sources)
    {
        let path = &source.path;
        let (name, lines) = (path.rsplit('/').next().unwrap(), source.lines_of_code());
        if lines > TOO_LONG {
            problems.push(format!("{path}: {lines} lines of code, {TOO_LONG} at most: find the second noun and give it a file"));
        } else if lines > LONG {
            eprintln!("{path}: {lines} lines of code: is there a second noun in it?");
        }
        if NO_NAMES.contains(&name.strip_suffix(".rs").unwrap_or(name)) {
            problems.push(format!(
                "{path}: a file of this name holds anything: name it after its noun"
            ));
        }
        if source.header().is_empty() {
            problems.push(format!("{path}: begin with `//!` and what the file decides"));
        }
    }
    none(&problems);
}

/// The name of every test in the repository.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for source in ["host", "guest-sdk", "selector", "tests", "xtask", "examples", "bench"]
        .into_iter()
        .flat_map(sources)
    {
        let mut attribute = false;
        for line in source.text.lines().map(str::trim) {
            if line.starts_with("#[") {
                attribute |= line.starts_with("#[test]") || line.contains("::test");
            } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| attribute) {
                names.insert(rest.split('(').next().unwrap_or_default().to_owned());
                attribute = false;
            } else if !line.is_empty() && !line.starts_with("//") && !line.ends_with(")]") {
                attribute = false;
            }
        }
    }
    names
}

/// What stands in `text` between backquotes and looks like the name of a test.
fn quoted_names(text: &str, underscores: usize) -> Vec<&str> {
    let name = |word: &&str| {
        word.matches('_').count() >= underscores
            && word.starts_with(|letter: char| letter.is_ascii_lowercase())
            && word.chars().all(|letter| {
                letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_'
            })
    };
    text.split('`').skip(1).step_by(2).filter(name).collect()
}

#[test]
fn every_invariant_of_a_header_names_a_test() {
    let tests = tests();
    let mut problems = vec![];
    for source in
        ["host/src", "guest-sdk/rust/src", "selector/src", "tests/src", "xtask/src", "bench/src"]
            .into_iter()
            .flat_map(sources)
    {
        for name in invariants(&source) {
            if !tests.contains(&name) {
                problems.push(format!("{}: its header names the test `{name}`, which does not exist: write it or correct the name", source.path));
            }
        }
    }
    none(&problems);
}

/// The tests that a header names: all in its paragraph on invariants, elsewhere those with the length of a fact.
fn invariants(source: &Source) -> Vec<String> {
    let header = source.header();
    let (mut names, mut listed) = (vec![], false);
    for (number, line) in header.iter().enumerate() {
        listed |= line.starts_with("Invariant");
        let next = header.get(number + 1).copied().unwrap_or_default();
        names.extend(quoted_names(line, if listed { 1 } else { 3 }).into_iter().map(str::to_owned));
        listed &= !line.is_empty() || next.starts_with("- ");
    }
    names
}

#[test]
fn every_invariant_of_the_architecture_names_a_test() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, section) = text.split_once("\n## Invariants\n").unwrap();
    none(&unheld("ARCHITECTURE.md", section.split("\n## ").next().unwrap()));
}

#[test]
fn every_promise_to_authors_names_a_test() {
    let text = fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    let (promises, _) = text.split_once("\n## Not promised\n").unwrap();
    none(&unheld("docs/semantics.md", promises));
}

/// The items of a list that do not end in "Held by" and the names of tests that exist.
fn unheld(path: &str, section: &str) -> Vec<String> {
    let tests = tests();
    let mut problems = vec![];
    for item in section.split("\n- ").skip(1).map(|item| item.split("\n\n").next().unwrap_or(item))
    {
        let item = item.split_whitespace().collect::<Vec<_>>().join(" ");
        let held_by = item.rsplit_once("Held by");
        let names = held_by.map(|(_, names)| quoted_names(names, 1)).unwrap_or_default();
        let shown: String = item.chars().take(60).collect();
        if names.is_empty() {
            problems.push(format!("{path}: \"{shown}…\" does not end in \"Held by `its_test`\""));
        }
        for name in names.into_iter().filter(|name| !tests.contains(*name)) {
            problems.push(format!(
                "{path}: \"{shown}…\" names the test `{name}`, which does not exist"
            ));
        }
    }
    assert!(section.contains("\n- "), "the section has no items");
    problems
}

#[test]
fn every_mistake_that_is_documented_names_its_test() {
    none(&untested_rows("docs/bad-input.md"));
}

#[test]
fn every_rule_of_the_kubeconfig_names_its_test() {
    none(&untested_rows("docs/kubeconfig.md"));
}

#[test]
fn every_fault_that_is_documented_names_its_test() {
    none(&untested_rows("docs/faults.md"));
}

/// The rows of the table in `path` whose last cell does not name tests that exist. A row of which only the first cell says
/// something, in bold, is a heading.
fn untested_rows(path: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(path)).unwrap();
    let tests = tests();
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 20, "{path} has lost its table");
    let mut problems = vec![];
    for row in rows.into_iter().filter(|row| !row.ends_with("** | | |")) {
        let cells = row.trim_end_matches(" |").rsplit_once(" | ");
        let (_, last) = cells.unwrap_or_default();
        let names = quoted_names(last, 1);
        if names.is_empty() && !last.starts_with("the same") {
            problems.push(format!("{path}: {row}: who tests it?"));
        }
        for name in names.into_iter().filter(|name| !tests.contains(*name)) {
            problems.push(format!("{path}: names the test `{name}`, which does not exist"));
        }
    }
    problems
}

/// What authors are told to copy, what the examples are built with, and what the tests measure.
#[test]
fn the_documented_release_profile_is_the_one_that_is_used() {
    let profile = |path: &str| {
        let text = fs::read_to_string(root().join(path)).unwrap();
        let (_, rest) = text.split_once("[profile.release]\n").unwrap();
        let lines = rest.lines().take_while(|line| line.contains(" = "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let documented = profile("docs/provider.md");
    assert_eq!(documented.len(), 4, "{documented:?}");
    for path in ["examples/Cargo.toml", "tests/guests/Cargo.toml"] {
        assert_eq!(profile(path), documented, "{path} and docs/provider.md differ");
    }
}

#[test]
fn whoever_waits_for_several_things_has_its_polls_counted() {
    let (tests, mut problems) = (tests(), vec![]);
    let rows: BTreeMap<_, _> =
        WAITS.iter().map(|(file, count, held)| (*file, (*count, *held))).collect();
    let mut seen = BTreeSet::new();
    for source in sources("host/src") {
        let file = source.in_host().unwrap();
        let found: usize = WAITING.iter().map(|what| source.code.matches(what).count()).sum();
        let (count, held) = rows.get(file).copied().unwrap_or_default();
        if found != count {
            problems.push(format!("{}: {found} places wait for several things or are polled by hand, {count} in WAITS of {TABLES}: count the polls of the new one in a test (host/tests/loops.rs has the way) and change the row", source.path));
        }
        for name in held.iter().filter(|name| !tests.contains(**name)) {
            problems.push(format!("{TABLES}: WAITS names the test `{name}`, which does not exist"));
        }
        seen.insert(file.to_owned());
    }
    let gone = rows.keys().filter(|file| !seen.contains(**file));
    problems
        .extend(gone.map(|file| format!("{TABLES}: WAITS names {file}, which is not in host/src")));
    none(&problems);
}

/// Cargo looks for no tests of the host by itself, so that what runs in one process is linked once.
#[test]
fn every_test_file_of_the_host_is_built() {
    let folder = root().join("host/tests");
    let manifest = fs::read_to_string(root().join("host/Cargo.toml")).unwrap();
    let all = files(&folder).into_iter().filter(|file| file.parent() == Some(&*folder));
    let name = |file: &PathBuf| file.file_stem().unwrap().to_string_lossy().into_owned();
    let (targets, others): (Vec<_>, Vec<_>) =
        all.partition(|file| manifest.contains(&format!("[[test]]\nname = \"{}\"\n", name(file))));
    let targets: String = targets.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let mut problems = vec![];
    for name in others.iter().map(name) {
        if !targets.contains(&format!("\nmod {name};\n")) {
            problems.push(format!("host/tests/{name}.rs is built by nobody: add `mod {name};` to host/tests/in_process.rs"));
        }
    }
    none(&problems);
}

#[test]
fn the_code_map_has_every_module() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let modules: BTreeSet<_> = sources("host/src")
        .iter()
        .map(|source| module(source.in_host().unwrap()).to_owned())
        .collect();
    let named = |module: &String| {
        [format!("`{module}.rs`"), format!("`{module}/`")].iter().any(|name| text.contains(name))
    };
    let missing = modules.iter().filter(|module| *module != "lib" && !named(module));
    let mut problems: Vec<_> =
        missing.map(|module| format!("ARCHITECTURE.md: the code map lacks `{module}`")).collect();
    let rows = text.lines().skip_while(|line| *line != "## Code map").skip(1);
    let rows =
        rows.take_while(|line| !line.starts_with("## ")).filter(|line| line.starts_with("| `"));
    let files = sources("host/src");
    for name in rows.flat_map(|row| row.split('`').skip(1).step_by(2)) {
        let is_file = name.ends_with(".rs");
        let is_there = |path: &str| {
            let path = format!("/{path}");
            path.ends_with(&format!("/{name}")) || !is_file && path.contains(&format!("/{name}"))
        };
        let is_place = is_file || name.ends_with('/');
        if is_place && !files.iter().any(|file| is_there(file.in_host().unwrap())) {
            problems.push(format!(
                "ARCHITECTURE.md: the code map names `{name}`, which is not in host/src"
            ));
        }
    }
    none(&problems);
}

#[test]
fn the_tour_names_what_is_there() {
    let text = fs::read_to_string(root().join("docs/tour.md")).unwrap();
    let mut problems = vec![];
    let links = text.split("[`").skip(1).filter_map(|link| link.split_once("`](../"));
    for (name, rest) in links {
        let path = rest.split(')').next().unwrap_or_default();
        let Ok(source) = fs::read_to_string(root().join(path)) else {
            problems.push(format!("docs/tour.md: there is no {path}"));
            continue;
        };
        let last = name.rsplit("::").next().unwrap_or_default();
        let is = |what: &str| {
            let found = source.split(&format!("{what} {last}")).nth(1);
            found.is_some_and(|rest| {
                !rest.starts_with(|letter: char| letter.is_alphanumeric() || letter == '_')
            })
        };
        if !last.ends_with(".rs") && !["fn", "struct", "enum", "trait"].into_iter().any(is) {
            problems.push(format!("docs/tour.md: {path} has no `{name}`"));
        }
    }
    none(&problems);
}

/// A reader has this repository and nothing else: a comment says the fact, and no number of a paper.
#[test]
fn comments_refer_to_nothing_that_a_reader_does_not_have() {
    let root = root();
    let mut problems = vec![];
    for source in
        ["host/src", "guest-sdk/rust/src", "selector/src", "tests/src", "xtask/src", "bench/src"]
            .into_iter()
            .flat_map(sources)
    {
        for (number, line) in source.text.lines().enumerate() {
            let Some((_, comment)) = line.split_once("//") else { continue };
            let words = comment.split(|letter: char| !letter.is_alphanumeric());
            let is_code = |word: &&str| {
                let digits = word.strip_prefix(['R', 'F', 'S', 'T', 'U', 'G', 'H']);
                digits.is_some_and(|digits| {
                    !digits.is_empty()
                        && digits.len() < 4
                        && digits.bytes().all(|byte| byte.is_ascii_digit())
                })
            };
            let pages = comment
                .split([' ', '(', ')', ',', '`'])
                .map(|word| word.trim_end_matches(['.', ':']));
            let is_missing = |page: &&str| {
                page.ends_with(".md") && !root.join(page.trim_start_matches("../")).is_file()
            };
            for what in words.filter(is_code).chain(pages.filter(is_missing)) {
                problems.push(format!(
                    "{}:{}: `{what}` is nowhere in this repository: say what it says",
                    source.path,
                    number + 1
                ));
            }
        }
    }
    none(&problems);
}

/// All files of the repository that people read.
fn texts() -> Vec<(String, String)> {
    let root = root();
    let kinds = ["md", "rs", "toml", "yaml", "yml", "json", "wit", "go", "html", "js", "sh", "run"];
    files(&root)
        .into_iter()
        .filter(|file| {
            file.extension().is_some_and(|kind| kinds.iter().any(|one| kind == *one))
                || file.ends_with(".ci/run")
        })
        .filter_map(|file| Some((relative(&root, &file), fs::read_to_string(&file).ok()?)))
        .collect()
}

#[test]
fn no_path_of_a_machine_is_written_down() {
    // In two parts, so that this file is none of those it looks for.
    let places = [("/ho", "me/"), ("/Use", "rs/"), ("/ro", "ot/"), ("/wo", "rk/")];
    let places = places.map(|(first, last)| format!("{first}{last}"));
    let mut problems = vec![];
    for (path, text) in texts() {
        for (number, line) in text.lines().enumerate() {
            let starts = |place: usize| {
                let before = line[..place].chars().next_back();
                before.is_none_or(|letter| !letter.is_alphanumeric() && !"./-_~}".contains(letter))
            };
            let hit = places
                .iter()
                .find(|place| line.match_indices(*place).any(|(place, _)| starts(place)));
            if let Some(place) = hit {
                problems.push(format!("{path}:{}: `{place}…` is a path of one machine: derive it, or take it as an argument", number + 1));
            }
        }
    }
    none(&problems);
}

#[test]
fn links_in_documents_lead_somewhere() {
    let root = root();
    let mut problems = vec![];
    for (path, text) in texts().into_iter().filter(|(path, _)| path.ends_with(".md")) {
        let folder = root.join(&path).parent().unwrap().to_owned();
        for (number, line) in text.lines().enumerate() {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let file = target.split('#').next().unwrap_or_default();
                let outside =
                    file.is_empty() || file.contains("://") || file.starts_with("mailto:");
                if !outside && !folder.join(file).exists() {
                    problems
                        .push(format!("{path}:{}: the link to {target} leads nowhere", number + 1));
                }
            }
        }
    }
    none(&problems);
}

#[test]
fn agents_are_told_in_thirty_lines() {
    let text = fs::read_to_string(root().join("AGENTS.md")).unwrap();
    assert!(text.lines().count() <= 30, "AGENTS.md points, it does not repeat: 30 lines at most");
}
