//! `nagaya new`: a project that builds, passes its tests and can be pushed at once.
//!
//! Invariants: `every_language_has_a_project`, `a_name_that_cannot_be_is_refused`; on the real tools `go_runs_on_the_host`,
//! `typescript_runs_on_the_host`, `python_runs_on_the_host`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::say;

macro_rules! files {
    ($($folder:literal: [$($file:literal),* $(,)?]),* $(,)?) => {
        &[$($(($folder, $file, include_str!(concat!("../../templates/", $folder, "/", $file, ".in")))),*),*]
    };
}

/// Folder, file and text of every template; those of `common` are in every project.
const FILES: &[(&str, &str, &str)] = files! {
    "common": ["README.md", "controller.yaml", "crd.yaml", "sample.yaml"],
    "rust": [".cargo/config.toml", ".gitignore", "Cargo.toml", "src/lib.rs"],
    "typescript": [".gitignore", "package.json", "src/index.ts", "test/controller.test.ts", "tsconfig.json"],
    "go": [".gitignore", "go.mod", "main.go", "main_test.go"],
    "python": [".gitignore", "app.py", "requirements.txt", "test_app.py"],
};

/// What the project is called, and its language.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The SDKs are in no registry yet: the project refers to those of a clone of Nagaya's repository by their path.

Examples:
  nagaya new shop --lang typescript --sdk ~/nagaya/guest-sdk
  nagaya new shop --lang go --group shops.example.com --kind Shop --sdk ../nagaya/guest-sdk")]
pub(super) struct Args {
    /// The project, its folder and its controller
    name: String,
    /// The language
    #[arg(long, value_enum)]
    lang: Language,
    /// The API group of its kind
    #[arg(long, default_value = "example.com")]
    group: String,
    /// Its kind [default: the name in CamelCase]
    #[arg(long)]
    kind: Option<String>,
    /// The folder `guest-sdk` of a clone of the repository
    #[arg(long, env = "NAGAYA_SDK", value_name = "FOLDER")]
    sdk: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Language {
    Rust,
    #[value(alias = "ts")]
    Typescript,
    Go,
    Python,
}

impl Language {
    fn folder(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Typescript => "typescript",
            Self::Go => "go",
            Self::Python => "python",
        }
    }

    /// What comes before the tests, and the tests.
    fn commands(self) -> [&'static str; 2] {
        match self {
            Self::Rust => ["", "cargo test"],
            Self::Typescript => ["npm install\n", "npm test"],
            Self::Go => ["", "go test ./..."],
            Self::Python => [
                "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt\n",
                ".venv/bin/python -m unittest",
            ],
        }
    }
}

/// Makes it.
pub(super) fn run(args: &Args) -> Result<()> {
    let sdk = fs::canonicalize(&args.sdk)
        .with_context(|| format!("cannot find the SDKs in {}", args.sdk.display()))?;
    ensure!(
        sdk.join("rust/Cargo.toml").is_file(),
        "{} is not the folder guest-sdk of Nagaya's repository",
        sdk.display()
    );
    let words = Words::of(args, &sdk)?;
    let folder = Path::new(&args.name);
    fs::create_dir(folder).with_context(|| format!("cannot make the folder {}", args.name))?;
    let mine = |of: &str| of == "common" || of == args.lang.folder();
    for (_, file, text) in FILES.iter().filter(|(of, ..)| mine(of)) {
        let file = folder.join(file);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot make the folder {}", parent.display()))?;
        }
        fs::write(&file, words.put_into(text))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let [install, test] = args.lang.commands();
    say(&format!(
        "made {0}; next:\n\ncd {0}\n{install}{test}\nnagaya build\n\nREADME.md has the rest.\n",
        args.name
    ))
}

/// What stands for each word of a template.
struct Words(Vec<(&'static str, String)>);

impl Words {
    fn of(args: &Args, sdk: &Path) -> Result<Self> {
        let Args { name, group, .. } = args;
        ensure!(
            is_label(name),
            "{name:?} is no name for a controller: small letters, digits and dashes, beginning with a letter, at most 40"
        );
        ensure!(
            group.contains('.') && group.len() <= 200 && group.split('.').all(is_label),
            "{group:?} is no API group: it must have the form of a domain, such as example.com"
        );
        let kind = args.kind.clone().unwrap_or_else(|| camel_case(name));
        let is_kind = kind.starts_with(|c: char| c.is_ascii_uppercase())
            && kind.chars().all(|c| c.is_ascii_alphanumeric())
            && kind.len() <= 40;
        ensure!(is_kind, "{kind:?} is no kind: letters and digits, beginning with a capital");
        let singular = kind.to_ascii_lowercase();
        let plural = match singular.as_str() {
            word if word.ends_with(['s', 'x']) || word.ends_with("ch") => format!("{word}es"),
            word => format!("{word}s"),
        };
        let [install, test] = args.lang.commands();
        Ok(Self(vec![
            ("{{name}}", name.clone()),
            ("{{group}}", group.clone()),
            ("{{kind}}", kind),
            ("{{singular}}", singular),
            ("{{plural}}", plural),
            ("{{sdk}}", sdk.display().to_string()),
            ("{{install}}", install.to_owned()),
            ("{{test}}", test.to_owned()),
        ]))
    }

    fn put_into(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (word, value)| text.replace(word, value))
    }
}

fn is_label(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.len() <= 40
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn camel_case(name: &str) -> String {
    let capital = |part: &str| {
        let mut letters = part.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    name.split('-').map(capital).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(name: &str, lang: Language) -> Args {
        let (group, sdk) = ("example.com".to_owned(), PathBuf::from("/sdk"));
        Args { name: name.to_owned(), lang, group, kind: None, sdk }
    }

    #[test]
    fn every_language_has_a_project() {
        for lang in <Language as clap::ValueEnum>::value_variants() {
            let words = Words::of(&args("my-box", *lang), Path::new("/sdk")).unwrap();
            let of: Vec<_> = FILES.iter().filter(|(of, ..)| *of == lang.folder()).collect();
            assert!(of.len() >= 4, "{lang:?}");
            for (folder, file, text) in FILES {
                let text = words.put_into(text);
                assert!(!text.contains("{{"), "{folder}/{file}: {text}");
            }
            let crd = words.put_into(include_str!("../../templates/common/crd.yaml.in"));
            assert!(crd.contains("name: myboxs.example.com") || crd.contains("myboxes"), "{crd}");
            for document in crd.split("\n---\n") {
                serde_saphyr::from_str::<serde_json::Value>(document).unwrap();
            }
        }
    }

    #[test]
    fn a_name_that_cannot_be_is_refused() {
        let made = |args: Args| Words::of(&args, Path::new("/sdk")).is_ok();
        for name in ["a", "shop", "my-shop-2"] {
            assert!(made(args(name, Language::Go)), "{name}");
        }
        for name in
            ["", "Shop", "../shop", "shop-", "-shop", "2shop", "a b", "{{kind}}", &"a".repeat(41)]
        {
            assert!(!made(args(name, Language::Go)), "{name}");
        }
        for group in ["", "com", "a..b", "A.b", "a.b/c"] {
            assert!(!made(Args { group: group.to_owned(), ..args("a", Language::Go) }), "{group}");
        }
        for kind in ["shop", "Shop Keeper", "", "Shop\""] {
            assert!(
                !made(Args { kind: Some(kind.to_owned()), ..args("a", Language::Go) }),
                "{kind}"
            );
        }
    }
}
