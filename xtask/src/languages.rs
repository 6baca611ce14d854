//! Go, TypeScript and Python: each SDK's tests, the example `first` in each language with its tests, and its component, made
//! by `nagaya build`. A language whose tools cannot be had is named with the reason.
//!
//! The components lie in `target/languages`, each beside a second version that breaks down for a Greeting of `broken`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A language with what its tools are called.
struct Language {
    name: &'static str,
    tools: &'static [&'static str],
    /// Gets what the SDK and the example need: folder and command.
    install: &'static [(&'static str, &'static [&'static str])],
    tests: &'static [(&'static str, &'static [&'static str])],
    /// How the project that `nagaya new` makes is tested.
    test_new: &'static [&'static str],
    /// The source of the example, and what the second version has before a word of it.
    source: &'static str,
    breaks: (&'static str, &'static str),
}

const LANGUAGES: [Language; 3] = [
    Language {
        name: "go",
        tools: &["go"],
        install: &[],
        tests: &[
            ("guest-sdk/go", &["go", "vet", "./..."]),
            ("guest-sdk/go", &["go", "test", "./..."]),
            ("examples/first/go", &["go", "test", "./..."]),
        ],
        test_new: &["go", "test", "./..."],
        source: "main.go",
        breaks: (
            "\t\twords.Data =",
            "\t\tif greeting.Spec.Name == \"broken\" {\n\t\t\tpanic(\"as asked\")\n\t\t}\n",
        ),
    },
    Language {
        name: "typescript",
        tools: &["node", "npm"],
        install: &[
            ("guest-sdk/js", &["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]),
            (
                "examples/first/typescript",
                &["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"],
            ),
        ],
        tests: &[
            ("guest-sdk/js", &["npm", "--silent", "test"]),
            ("examples/first/typescript", &["npm", "--silent", "test"]),
        ],
        test_new: &["npm", "--silent", "test"],
        source: "src/index.ts",
        breaks: (
            "    const data =",
            "    if (greeting.spec.name === \"broken\") throw new Error(\"as asked\");\n",
        ),
    },
    Language {
        name: "python",
        tools: &["python3"],
        install: &[
            ("examples/first/python", &["python3", "-m", "venv", ".venv"]),
            (
                "examples/first/python",
                &[
                    ".venv/bin/pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "-r",
                    "requirements.txt",
                ],
            ),
        ],
        tests: &[
            ("guest-sdk/python", &["python3", "-m", "unittest", "discover", "-s", "tests"]),
            ("examples/first/python", &[".venv/bin/python", "-m", "unittest"]),
        ],
        test_new: &[".venv/bin/python", "-m", "unittest"],
        source: "app.py",
        breaks: (
            "    words = f",
            "    if greeting[\"spec\"][\"name\"] == \"broken\":\n        raise RuntimeError(\"as asked\")\n",
        ),
    },
];

/// What came of them: the names of those whose components are built, and what stood in the way of others.
pub(crate) struct Built {
    pub(crate) names: Vec<&'static str>,
    pub(crate) missing: Vec<String>,
}

/// Tests and builds all.
pub(crate) fn run(root: &Path, nagaya: &Path) -> Result<Built> {
    let mut built = Built { names: vec![], missing: vec![] };
    for language in &LANGUAGES {
        eprintln!("{}", language.name);
        if let Some(why) = language.missing(root) {
            built.missing.push(format!("{}: {why}", language.name));
            continue;
        }
        for (folder, command) in language.tests {
            succeed(&mut started(&root.join(folder), command))?;
        }
        language.build(root, nagaya).with_context(|| format!("building {}", language.name))?;
        built.names.push(language.name);
    }
    Ok(built)
}

impl Language {
    /// Gets what the language needs; why that cannot be had.
    fn missing(&self, root: &Path) -> Option<String> {
        for tool in self.tools {
            let version = if *tool == "go" { "version" } else { "--version" };
            if Command::new(tool).arg(version).output().is_err() {
                return Some(format!("{tool} is not installed"));
            }
        }
        for (folder, command) in self.install {
            let output = started(&root.join(folder), command).output();
            let said = match output {
                Ok(output) if output.status.success() => continue,
                Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                Err(error) => error.to_string(),
            };
            let last = said.lines().last().unwrap_or_default();
            return Some(format!("`{}` failed: {last}", command.join(" ")));
        }
        None
    }

    fn build(&self, root: &Path, nagaya: &Path) -> Result<()> {
        let (folder, target) = (root.join("examples/first").join(self.name), folder(root));
        fs::create_dir_all(&target).context("making the folder of the components")?;
        let other = target.join(format!("{}-2", self.name));
        let new = target.join(format!("new-{}", self.name));
        self.second_version(&folder, &other)?;
        self.new_project((root, nagaya), &folder, &new)?;
        let projects = [
            (&folder, self.name.to_owned()),
            (&other, format!("{}-2", self.name)),
            (&new, format!("new-{}", self.name)),
        ];
        for (project, name) in projects {
            let component = target.join(name).with_extension("wasm");
            succeed(Command::new(nagaya).arg("build").arg(project).arg("-o").arg(component))?;
        }
        Ok(())
    }

    /// What `nagaya new` makes, with its tests; what it would install lies in the example's folder already.
    fn new_project(&self, (root, nagaya): (&Path, &Path), example: &Path, to: &Path) -> Result<()> {
        if to.exists() {
            fs::remove_dir_all(to).with_context(|| format!("removing {}", to.display()))?;
        }
        let mut new = Command::new(nagaya);
        new.current_dir(folder(root)).arg("new").arg(format!("new-{}", self.name));
        new.args(["--lang", self.name, "--group"]).arg(format!("{}.example.com", self.name));
        succeed(new.arg("--kind").arg("Box").arg("--sdk").arg(root.join("guest-sdk")))?;
        link_installed(example, to)?;
        succeed(&mut started(to, self.test_new))
    }

    /// A copy of the project whose reconciler breaks down when it is asked to.
    fn second_version(&self, from: &Path, to: &Path) -> Result<()> {
        if to.exists() {
            fs::remove_dir_all(to).with_context(|| format!("removing {}", to.display()))?;
        }
        let source = from.join(self.source);
        let text = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
        let (before, more) = self.breaks;
        ensure!(text.matches(before).count() == 1, "{} has not one {before:?}", source.display());
        let target = to.join(self.source);
        fs::create_dir_all(target.parent().context("no folder")?)?;
        fs::write(&target, text.replace(before, &format!("{more}{before}")))?;
        for file in ["go.mod", "package.json", "tsconfig.json"] {
            if from.join(file).is_file() {
                fs::copy(from.join(file), to.join(file))?;
            }
        }
        link_installed(from, to)
    }
}

fn link_installed(from: &Path, to: &Path) -> Result<()> {
    for installed in ["node_modules", ".venv"] {
        if from.join(installed).is_dir() {
            symlink(from.join(installed), to.join(installed))
                .with_context(|| format!("linking {installed}"))?;
        }
    }
    Ok(())
}

/// Where the components lie.
fn folder(root: &Path) -> PathBuf {
    root.join("target/languages")
}

fn started(folder: &Path, command: &[&str]) -> Command {
    let (program, arguments) = command.split_first().unwrap_or((&"", &[]));
    // A program of the project itself.
    let own = folder.join(program);
    let mut started = Command::new(if own.is_file() { own } else { PathBuf::from(program) });
    started.args(arguments).current_dir(folder);
    started
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}
